"""deploy as a Kubeflow component."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(
    register: dsl.Input[dsl.Model],
    evaluate: dsl.Input[dsl.Artifact],
    fetch: dsl.Input[dsl.Dataset],
    settings: str,
    workspace: str,
    tracking_uri: str,
    out: dsl.Output[dsl.Artifact],
):
    """Bring the registered version live, proven by a golden case, and make it champion, or leave the old one both."""
    from ctmr.kubeflow.tasks import run_task

    upstream = {"register": register.path, "evaluate": evaluate.path, "fetch": fetch.path}
    run_task("deploy", upstream, out, settings=settings, workspace=workspace, tracking_uri=tracking_uri)
