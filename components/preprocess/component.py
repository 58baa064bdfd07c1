"""preprocess as a Kubeflow component."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preprocess(
    fetch: dsl.Input[dsl.Dataset],
    validate: dsl.Input[dsl.Dataset],
    settings: str,
    workspace: str,
    out: dsl.Output[dsl.Dataset],
):
    """Bring usable images onto the model's grid, in shards of physical units; a refused dataset ends the run here."""
    from ctmr.kubeflow.tasks import run_task

    upstream = {"fetch": fetch.path, "validate": validate.path}
    run_task("preprocess", upstream, out, settings=settings, workspace=workspace)
