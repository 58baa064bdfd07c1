"""tune: an Optuna study over the recipe's search space; each trial is a child run in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ctmr.errors import EnvironmentFault
from ctmr.pipeline.stage import Context, Stage, locate
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home
from ctmr.system.progress import Progress, silent
from ctmr.tracking.names import study_name
from ctmr.tuning.figures import draw, importances
from ctmr.tuning.naming import study_folder
from ctmr.tuning.study import Study
from ctmr.tuning.tracking import StudyRun
from ctmr.tuning.trial import Slot, SlotState
from ctmr.tuning.worker import supervise


def create(inputs: Mapping[str, Path], recipe: Recipe, home: Home) -> str:
    """Create the study with all its trials waiting, unless it is there; return its name.

    Any number of `work` calls, on any machines that reach the database, and `STAGE` itself then work on it. What it
    comes to depends on recipe and data alone.

    Parameters
    ----------
    inputs
        As in ``STAGE.takes``.

    Raises
    ------
    InputError
        When the data or the address CTMR_STUDY_STORAGE cannot be used, or the study was begun with another search
        space.
    EnvironmentFault
        When the database does not answer.
    """
    _score_name(inputs["preprocessed"], recipe)
    study = open_study(inputs, recipe, home)
    study.create()
    return study.name


def work(inputs: Mapping[str, Path], recipe: Recipe, home: Home, report: Progress = silent) -> None:
    """Keep one worker process at the study until no trial is left; start it again when it dies.

    Parameters
    ----------
    inputs
        As in ``STAGE.takes``; equal data, not equal paths, make it the same study.
    report
        Progress of the whole study.

    Raises
    ------
    InputError
        When nobody has created the study, or it was created with another search space.
    EnvironmentFault
        When the worker cannot work here.
    """
    study = open_study(inputs, recipe, home)
    study.require_same_space()
    supervise(study, inputs["preprocessed"], workers=1, report=report)


def run(context: Context) -> dict[str, Any]:
    """Finish the study and write ``best.yaml``, ``trials.json`` and, in provenance, its figures.

    Starts ``tune.workers`` worker processes; none when others have done all the work.
    """
    name = _score_name(context.inputs["preprocessed"], context.recipe)
    study = open_study(context.inputs, context.recipe, context.home)
    study.create()
    tracking = StudyRun(context.home, context.recipe, study)
    with tracking.attended():
        return _finish(context, study, tracking, name)


def _finish(context: Context, study: Study, tracking: StudyRun, name: str) -> dict[str, Any]:
    recipe, preprocessed = context.recipe, context.inputs["preprocessed"]
    slots = supervise(
        study, preprocessed, workers=recipe.tune.workers, report=context.report, watch=tracking.log_finished
    )
    complete = [slot for slot in slots if slot.state is SlotState.COMPLETE]
    if not complete:
        tracking.fail()
        study.tell_failure()
        last = [slot.error for slot in slots if slot.error][-1]
        raise EnvironmentFault(f"every trial failed; the last said: {last}")
    best = min(complete, key=lambda slot: (slot.score, slot.number))
    (context.out / "best.yaml").write_text(yaml.safe_dump(dict(best.params), sort_keys=True))
    tree = {"objective": name, "direction": "minimize", "best": best.number, "trials": [_row(s) for s in slots]}
    (context.out / "trials.json").write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    figures = context.out / "provenance" / "figures"
    figures.mkdir(parents=True)
    shares = importances(recipe, slots)
    draw(figures, recipe, slots, best, name, shares)
    return {
        "objective": name,
        "trials": len(slots),
        "pruned": sum(slot.state is SlotState.PRUNED for slot in slots),
        "best_trial": best.number,
        "best_score": best.score,
        "best_params": dict(best.params),
        "mlflow_run": tracking.finish(best, name, shares, context.out / "best.yaml", figures),
    }


def open_study(inputs: Mapping[str, Path], recipe: Recipe, home: Home) -> Study:
    """Open the study of these data and this recipe, created or not."""
    place = locate(STAGE, inputs=inputs, recipe=recipe, home=home)
    folder = study_folder(place.parts, place.work, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    return Study(study_name(folder.name), home.study_storage(folder), recipe)


def _score_name(preprocessed: Path, recipe: Recipe) -> str:
    from ctmr.training.setup import describe
    from ctmr.tuning.objective import Scorer

    return Scorer.make(preprocessed / "shards", recipe, describe(preprocessed, recipe)).name


def _row(slot: Slot) -> dict[str, Any]:
    """Return what the output says of a slot; how far a failed one came is chance, and is left out."""
    reports = {} if slot.state is SlotState.FAILED else {str(step): score for step, score in slot.reports.items()}
    return {
        "trial": slot.number,
        "state": slot.state.value,
        "score": slot.score,
        "params": dict(slot.params),
        "reports": reports,
    }


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return the best trial, in half a line."""
    s = summary
    return f"best of {s['trials']} trials ({s['pruned']} pruned): trial {s['best_trial']}, {s['best_score']:.4g}"


STAGE = Stage(
    "tune",
    help="Optuna study; every trial is an MLflow child run.",
    takes={"preprocessed": "preprocess"},
    sections=("direction", "preprocess", "normalise", "network", "loss", "train", "tune"),
    run=run,
    summary_line=summary_line,
    version=3,
)
