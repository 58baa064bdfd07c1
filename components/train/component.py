"""train as a Kubeflow component."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    preprocess: dsl.Input[dsl.Dataset],
    tune: dsl.Input[dsl.Artifact],
    settings: str,
    workspace: str,
    tracking_uri: str,
    out: dsl.Output[dsl.Model],
):
    """Train the CycleGAN with the best settings found and export it to ONNX."""
    from ctmr.kubeflow.tasks import run_task

    upstream = {"preprocess": preprocess.path, "tune": tune.path}
    run_task("train", upstream, out, settings=settings, workspace=workspace, tracking_uri=tracking_uri)
