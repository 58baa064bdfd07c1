"""register as a Kubeflow component."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    train: dsl.Input[dsl.Model],
    evaluate: dsl.Input[dsl.Artifact],
    fetch: dsl.Input[dsl.Dataset],
    validate: dsl.Input[dsl.Dataset],
    settings: str,
    workspace: str,
    tracking_uri: str,
    out: dsl.Output[dsl.Model],
):
    """Make a model that passed the gate an MLflow version whose tags lead back to its data."""
    from ctmr.kubeflow.tasks import run_task

    upstream = {"train": train.path, "evaluate": evaluate.path, "fetch": fetch.path, "validate": validate.path}
    run_task("register", upstream, out, settings=settings, workspace=workspace, tracking_uri=tracking_uri)
