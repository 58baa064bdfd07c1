"""The ctmr local runner: the run part of the Kubeflow Pipelines v2beta1 API on loopback, without Kubernetes.

It is not Kubeflow. It runs one compiled pipeline after another under ``kfp.local``, in a child process each, and
answers the calls that ``kfp --endpoint … run|experiment|pipeline`` and ``kfp.Client`` make for experiments, runs and
uploaded pipelines. What it does not serve (recurring runs, retries, artifacts, the web page) it refuses with a sentence
in the API's error form.

It executes code as the user who started it, so it listens on 127.0.0.1 only, refuses requests that a web page of
another site could have made, and accepts only pipelines whose executors are those of this checkout's compiled
pipeline, unless ``CTMR_ALLOW_ANY_PIPELINE=1`` stands in its environment. It knows no users: whoever may log in on the
machine may call it.

Records lie in ``pipelines/records.db`` of the home, each run's files (pipeline, parameters, log, events, artifacts) in
``pipelines/runs/<run id>``.
"""

NAME = "ctmr local runner"
PIPELINES_PORT = 8888
