"""The pipeline: versioned CT and MR images in, a judged, registered and served CycleGAN out."""

from kfp import dsl

from components.deploy.component import deploy
from components.evaluate.component import evaluate, reject
from components.fetch.component import fetch
from components.preprocess.component import preprocess
from components.register.component import register
from components.start.component import start
from components.train.component import train
from components.tune.component import create_study, tune, work_on_study
from components.validate.component import validate
from pipelines.platform import on_kubernetes


@dsl.pipeline(name="ct-mr", description="CT<->MR synthesis: from a dataset revision to a model behind Triton.")
def ct_mr(
    dataset_repo: str = "demo",
    dataset_rev: str = "",
    dataset_path: str = "",
    recipe: str = "demo",
    overrides: list = [],  # noqa: B006
    limits: dict = {},  # noqa: B006
    tracking_uri: str = "",
    study_storage: str = "",
    triton_url: str = "",
):
    """Run the eight stages; a model that fails the gate is neither registered nor deployed, and fails the run.

    Parameters
    ----------
    dataset_repo, dataset_rev, dataset_path
        git + DVC repository (or plain folder, or ``demo``), its revision, and the path that it tracks.
    recipe
        Name of a recipe, or its text in YAML.
    overrides
        Recipe keys, as ``["train.steps=500"]``.
    limits
        Gate limits, as ``{"paired_volume_hu.psnr.min": 24}``.
    tracking_uri, study_storage, triton_url
        Addresses of MLflow, of the Optuna study's database, of Triton's gRPC. Empty: what the environment says.
        Addresses with a password belong into the cluster's secret, not here.
    """
    begun = start(
        dataset_repo=dataset_repo,
        dataset_rev=dataset_rev,
        dataset_path=dataset_path,
        recipe=recipe,
        overrides=overrides,
        limits=limits,
        tracking_uri=tracking_uri,
        triton_url=triton_url,
    )
    given = begun.outputs
    here = given["workspace"]
    fetched = fetch(dataset=given["dataset"], settings=given["fetch"], workspace=here)
    raw = fetched.outputs["out"]
    validated = validate(fetch=raw, settings=given["validate"], workspace=here)
    usable = validated.outputs["out"]
    preprocessed = preprocess(fetch=raw, validate=usable, settings=given["preprocess"], workspace=here)
    shards = preprocessed.outputs["out"]
    study = create_study(
        preprocess=shards, settings=given["tune"], study_storage=study_storage, tracking_uri=tracking_uri
    )
    # Only pipeline parameters and artifacts go into the loop: local runners hand it nothing else.
    with dsl.ParallelFor(study.outputs["Output"], name="workers") as worker:
        worked = work_on_study(
            worker=worker,
            study=study.outputs["study"],
            preprocess=shards,
            study_storage=study_storage,
            tracking_uri=tracking_uri,
        )
    tuned = tune(
        preprocess=shards,
        settings=given["tune"],
        workspace=here,
        study_storage=study_storage,
        tracking_uri=tracking_uri,
    ).after(worked)
    trained = train(
        preprocess=shards,
        tune=tuned.outputs["out"],
        settings=given["train"],
        workspace=here,
        tracking_uri=tracking_uri,
    )
    model = trained.outputs["out"]
    evaluated = evaluate(
        train=model,
        preprocess=shards,
        fetch=raw,
        validate=usable,
        champion=given["champion"],
        settings=given["evaluate"],
        workspace=here,
        tracking_uri=tracking_uri,
    )
    judged = evaluated.outputs["out"]
    with dsl.If(evaluated.outputs["Output"] == "pass", name="gate-passed"):
        registered = register(
            train=model,
            evaluate=judged,
            fetch=raw,
            validate=usable,
            settings=given["register"],
            workspace=here,
            tracking_uri=tracking_uri,
        )
        deployed = deploy(
            register=registered.outputs["out"],
            evaluate=judged,
            fetch=raw,
            settings=given["deploy"],
            workspace=here,
            tracking_uri=tracking_uri,
        )
    with dsl.If(evaluated.outputs["Output"] != "pass", name="gate-failed"):
        rejected = reject(evaluate=judged)
    on_kubernetes(
        {
            "start": begun,
            "fetch": fetched,
            "validate": validated,
            "preprocess": preprocessed,
            "create_study": study,
            "work_on_study": worked,
            "tune": tuned,
            "train": trained,
            "evaluate": evaluated,
            "register": registered,
            "deploy": deployed,
            "reject": rejected,
        }
    )
