"""validate as a Kubeflow component."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(fetch: dsl.Input[dsl.Dataset], settings: str, workspace: str, out: dsl.Output[dsl.Dataset]):
    """Decide which images may be used, with splits; a refused dataset is an outcome that preprocess stops at."""
    from ctmr.kubeflow.tasks import run_task

    run_task("validate", {"fetch": fetch.path}, out, settings=settings, workspace=workspace)
