"""fetch as a Kubeflow component."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch(dataset: str, settings: str, workspace: str, out: dsl.Output[dsl.Dataset]):
    """Copy the pinned dataset and describe every image in an inventory."""
    from ctmr.kubeflow.tasks import run_task

    run_task("fetch", {}, out, settings=settings, workspace=workspace, dataset=dataset)
