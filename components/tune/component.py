"""tune as three Kubeflow components over one stage: create the study, work on it side by side, take the best."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def create_study(
    preprocess: dsl.Input[dsl.Dataset],
    settings: str,
    study_storage: str,
    tracking_uri: str,
    study: dsl.Output[dsl.Artifact],
) -> list:
    """Create the Optuna study with all its trials waiting; returns one name a worker."""
    from ctmr.kubeflow.tasks import plan_study

    return plan_study(preprocess.path, study, settings=settings, study_storage=study_storage, tracking_uri=tracking_uri)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def work_on_study(
    worker: str,
    study: dsl.Input[dsl.Artifact],
    preprocess: dsl.Input[dsl.Dataset],
    study_storage: str,
    tracking_uri: str,
):
    """Run trials until none is left."""
    from ctmr.kubeflow import tasks

    tasks.work_on_study(worker, study.path, preprocess.path, study_storage=study_storage, tracking_uri=tracking_uri)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tune(
    preprocess: dsl.Input[dsl.Dataset],
    settings: str,
    workspace: str,
    study_storage: str,
    tracking_uri: str,
    out: dsl.Output[dsl.Artifact],
):
    """Run what is left of the study, if anything, and write its best settings."""
    from ctmr.kubeflow.tasks import run_task

    run_task(
        "tune",
        {"preprocess": preprocess.path},
        out,
        settings=settings,
        workspace=workspace,
        tracking_uri=tracking_uri,
        study_storage=study_storage,
    )
