"""The ctmr local runner: the run part of the Kubeflow Pipelines v2beta1 API on loopback, without Kubernetes.

It is not Kubeflow. It runs one compiled pipeline after another under ``kfp.local``, in a child process each, and
answers the calls that ``kfp --endpoint … run|experiment|pipeline`` and ``kfp.Client`` make for experiments, runs and
uploaded pipelines. What it does not serve (recurring runs, retries, artifacts, the web page) it refuses with a sentence
in the API's error form.

It executes code as the user who started it, so it listens on 127.0.0.1 only, refuses requests that a web page of
another site could have made, answers only who knows the token, which its owner alone can read, and accepts only this
checkout's compiled pipeline, unless ``CTMR_ALLOW_ANY_PIPELINE=1`` stands in its environment.

Records lie in ``pipelines/records.db`` of the home, each run's files (pipeline, parameters, log, events, artifacts) in
``pipelines/runs/<run id>``, the token in ``pipelines/token``.
"""

NAME = "ctmr local runner"
PIPELINES_PORT = 8888
FOLDER = "pipelines"
"""Of the home."""
TOKEN_FILE = "token"
TOKEN_VARIABLE = "KFP_EXISTING_TOKEN"
"""Where kfp's command line looks for the value of its option ``--existing-token``."""
