"""The bodies of the Kubeflow tasks: what `components/` calls, here, in a container or on a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctmr.errors import CtmrError
from ctmr.pipeline import events, stages
from ctmr.pipeline.stage import Result, run_stage
from ctmr.recipe.recipe import Recipe
from ctmr.system.environment import RUN_NAME, STUDY_STORAGE, WORKSPACE
from ctmr.system.home import Home, fault_of, quiet_libraries
from ctmr.tracking.names import run_name

START = "start"


class Started(NamedTuple):
    """Values fixed once, at a run's start; every later task takes its part as a parameter, and so in its cache key.

    Attributes
    ----------
    dataset
        The pinned dataset: address, path, revision and md5.
    champion
        The registered champion; empty when there is none.
    workspace
        Folder that keeps the outputs between runs; empty where each task has a disk of its own.
    settings
        Stage name → the recipe sections that it reads, as JSON.
    """

    dataset: str
    champion: str
    workspace: str
    settings: Mapping[str, str]


def start(
    *,
    dataset_repo: str,
    dataset_rev: str,
    dataset_path: str,
    recipe: str,
    overrides: Sequence[str],
    limits: Mapping[str, float],
    triton_url: str,
    tracking_uri: str,
) -> Started:
    """Pin the dataset, find the champion, and give each stage the settings that it reads."""
    with _task(START, tracking_uri=tracking_uri):
        from ctmr.pipeline.inline import resolve_champion, resolve_dataset

        home = Home.current()
        chosen = recipe_for(recipe, overrides, limits, triton_url)
        source = resolve_dataset(dataset_repo, dataset_path, dataset_rev, home, events.progress(START))
        champion = resolve_champion(source.dataset.name, chosen, home)
        events.emit(START, message=f"dataset {source.dataset.name}, md5 {source.dataset.md5}, recipe {chosen.name}")
        return Started(
            source.to_option(),
            json.dumps(champion, sort_keys=True) if champion else "",
            _workspace(run_name(chosen.name, source.dataset.name)),
            stage_settings(chosen),
        )


def recipe_for(recipe: str, overrides: Sequence[str], limits: Mapping[str, float], triton_url: str) -> Recipe:
    """Return the recipe of a run's parameters.

    Parameters
    ----------
    recipe
        Name of a recipe, or the text of one in YAML.
    overrides
        ``key=value``, as after ``--set``.
    limits
        Gate limits: ``<protocol>.<metric>.min|max`` → value.
    triton_url
        gRPC address of the Triton to deploy to; empty leaves ``deploy.url``.
    """
    from ctmr.recipe.loading import load

    more = [f"gate.{key}={json.dumps(value)}" for key, value in sorted(limits.items())]
    if triton_url:
        more.append(f"deploy.url={json.dumps(triton_url)}")
    return load(recipe, [*overrides, *more])


def stage_settings(recipe: Recipe) -> dict[str, str]:
    """Return, for each stage, its recipe sections and the recipe's name as JSON: nothing else can reach it."""
    tree = recipe.dump()
    return {
        name: json.dumps({k: tree[k] for k in {"name", *stages.load(name).sections}}, sort_keys=True)
        for name in stages.names()
    }


def recipe_from(settings: str) -> Recipe:
    """Return a recipe from `stage_settings`' text; sections that are not in it are at their defaults."""
    return Recipe.model_validate(json.loads(settings))


def run_task(
    name: str,
    upstream: Mapping[str, str],
    out: Any,
    *,
    settings: str,
    workspace: str = "",
    dataset: str = "",
    champion: str = "",
    tracking_uri: str = "",
    study_storage: str = "",
) -> dict[str, Any]:
    """Run one stage as a task and return its summary.

    Parameters
    ----------
    name
        Stage.
    upstream
        Name of an earlier stage → path of its output.
    out
        The task's output artifact. It is filled in place or, with a workspace, points at the folder there.
    settings
        The stage's part of `Started.settings`.
    workspace, dataset, champion
        Parts of `Started`; the latter two for fetch and evaluate.
    tracking_uri, study_storage
        Addresses of MLflow and of the Optuna study; empty leaves what the environment says.
    """
    with _task(name, tracking_uri=tracking_uri, study_storage=study_storage):
        from ctmr.pipeline.inline import options_of

        spec = stages.load(name)
        outputs = {k: Path(v) for k, v in upstream.items()}
        folder = Path(workspace) / name if workspace else Path(out.path)
        result = run_stage(
            spec,
            inputs=spec.inputs(outputs),
            recipe=recipe_from(settings),
            out=folder,
            home=Home.current(),
            options=options_of(spec, outputs, folder, dataset, json.loads(champion or "{}")),
            report=events.progress(name),
        )
        if workspace:
            out.uri = str(folder)
        out.metadata |= _metadata(result)
        events.finished(result)
        return result.summary


def plan_study(preprocess: str, out: Any, *, settings: str, study_storage: str, tracking_uri: str) -> list[str]:
    """Create the Optuna study and return the names of the workers to start; `out` tells them what to work on."""
    with _task("tune", tracking_uri=tracking_uri, study_storage=study_storage):
        from ctmr.pipeline.stages import tune

        recipe = recipe_from(settings)
        study = tune.create({"preprocessed": Path(preprocess)}, recipe, Home.current())
        Path(out.path).parent.mkdir(parents=True, exist_ok=True)
        Path(out.path).write_text(settings, encoding="utf-8")
        out.metadata["study"] = study
        return [str(k) for k in range(recipe.tune.workers)]


def work_on_study(worker: str, study: str, preprocess: str, *, study_storage: str, tracking_uri: str) -> None:
    """Run trials of the study until none is left."""
    with _task("tune", tracking_uri=tracking_uri, study_storage=study_storage):
        from ctmr.pipeline.stages import tune

        recipe = recipe_from(Path(study).read_text(encoding="utf-8"))
        report = events.progress("tune")
        tune.work({"preprocessed": Path(preprocess)}, recipe, Home.current(), report)
        events.emit("tune", message=f"worker {worker} is done")


def reject(evaluate: str) -> None:
    """End the run as failed, with the gate's reason; evaluate's output and MLflow run stay."""
    with _task("evaluate"):
        from ctmr.pipeline.inline import gate_failed

        verdict = json.loads((Path(evaluate) / "verdict.json").read_text())
        raise gate_failed("; ".join(verdict["reasons"]), Path(evaluate))


@contextlib.contextmanager
def _task(name: str, *, tracking_uri: str = "", study_storage: str = "") -> Iterator[None]:
    """Set the addresses, and end the process with one sentence and the right exit code where a person erred."""
    quiet_libraries()
    for variable, value in (("MLFLOW_TRACKING_URI", tracking_uri), (STUDY_STORAGE, study_storage)):
        if value:
            os.environ[variable] = value
    events.started(name)
    try:
        yield
    except (CtmrError, OSError) as error:
        known = error if isinstance(error, CtmrError) else fault_of(error)
        events.failed(name, known)
        sys.exit(known.exit_code)
    finally:
        events.ended(name)


def _workspace(name: str) -> str:
    folder = os.environ.get(WORKSPACE)
    return str(Path(folder.replace(RUN_NAME, name)).absolute()) if folder else ""


def _metadata(result: Result) -> dict[str, Any]:
    """Return what Kubeflow shows beside an artifact: its digest and the short facts of its summary."""
    facts = {k: v for k, v in result.summary.items() if isinstance(v, str | int | float | bool) and v != ""}
    return {"digest": result.digest, **facts}
