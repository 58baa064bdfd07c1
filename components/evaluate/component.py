"""evaluate as a Kubeflow component, and the branch that a failed gate takes."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    train: dsl.Input[dsl.Model],
    preprocess: dsl.Input[dsl.Dataset],
    fetch: dsl.Input[dsl.Dataset],
    validate: dsl.Input[dsl.Dataset],
    champion: str,
    settings: str,
    workspace: str,
    tracking_uri: str,
    out: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Measure the model on held-out images; returns ``pass`` or ``fail``, alone, because the gate compares it."""
    import shutil
    from pathlib import Path

    from ctmr.kubeflow.tasks import run_task

    upstream = {"train": train.path, "preprocess": preprocess.path, "fetch": fetch.path, "validate": validate.path}
    summary = run_task(
        "evaluate",
        upstream,
        out,
        settings=settings,
        workspace=workspace,
        champion=champion,
        tracking_uri=tracking_uri,
    )
    for protocol, values in summary["metrics"].items():
        for name, value in values.items():
            if value is not None:
                metrics.log_metric(f"{protocol}.{name}", value)
    Path(report.path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(out.path) / "provenance" / "report.html", report.path)
    return summary["verdict"]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def reject(evaluate: dsl.Input[dsl.Artifact]):
    """End the run as failed with the gate's reason; what evaluate wrote and logged stays."""
    from ctmr.kubeflow import tasks

    tasks.reject(evaluate.path)
