"""tune: an Optuna study over the recipe's search space; each trial is a child run in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ctmr.errors import EnvironmentFault
from ctmr.home import Home
from ctmr.recipe import Recipe
from ctmr.stages.contract import Context, Report, Stage, locate, silent
from ctmr.stages.study import Study, study_name
from ctmr.stages.study_worker import supervise
from ctmr.stages.trial import Slot, SlotState

if TYPE_CHECKING:
    from mlflow.entities import Run


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
        When the data or the address CTMR_STUDY_STORAGE cannot be used.
    EnvironmentFault
        When the database does not answer.
    """
    _score_name(inputs["preprocessed"], recipe)
    study = _open(locate(STAGE, inputs=inputs, recipe=recipe, home=home).work, recipe, home)
    study.create()
    return study.name


def work(inputs: Mapping[str, Path], recipe: Recipe, home: Home, report: Report = silent) -> None:
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
        When nobody has created the study.
    EnvironmentFault
        When the worker cannot work here.
    """
    study = _open(locate(STAGE, inputs=inputs, recipe=recipe, home=home).work, recipe, home)
    supervise(study, inputs["preprocessed"], workers=1, report=report)


def run(context: Context) -> dict[str, Any]:
    """Finish the study and write ``best.yaml``, ``trials.json`` and, in provenance, the history plot.

    Starts ``tune.workers`` worker processes; none when others have done all the work.
    """
    recipe, preprocessed = context.recipe, context.inputs["preprocessed"]
    name = _score_name(preprocessed, recipe)
    study = _open(context.work, recipe, context.home)
    study.create()
    tracking = _Tracking(context, study)
    slots = supervise(
        study, preprocessed, workers=recipe.tune.workers, report=context.report, watch=tracking.log_finished
    )
    complete = [slot for slot in slots if slot.state is SlotState.COMPLETE]
    if not complete:
        tracking.fail()
        study.tell_failure()
        last = [slot.error for slot in slots if slot.error][-1]
        raise EnvironmentFault(f"every trial failed; the last said: {last}")
    best = min(complete, key=lambda slot: (_score(slot), slot.number))
    (context.out / "best.yaml").write_text(yaml.safe_dump(dict(best.params), sort_keys=True))
    tree = {"objective": name, "direction": "minimize", "best": best.number, "trials": [_row(s) for s in slots]}
    (context.out / "trials.json").write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    _history(context.out, slots, best, name)
    return {
        "objective": name,
        "trials": len(slots),
        "pruned": sum(slot.state is SlotState.PRUNED for slot in slots),
        "best_trial": best.number,
        "best_score": best.score,
        "best_params": dict(best.params),
        "mlflow_run": tracking.finish(best, name),
    }


def _open(folder: Path, recipe: Recipe, home: Home) -> Study:
    """Open the study of the stage's work folder, created or not."""
    folder.mkdir(parents=True, exist_ok=True)
    return Study(study_name(folder), home.study_storage(folder), recipe)


def _score_name(preprocessed: Path, recipe: Recipe) -> str:
    from ctmr.stages.scoring import Scorer
    from ctmr.stages.training import describe

    return Scorer.make(preprocessed / "shards", recipe, describe(preprocessed, recipe)).name


def _score(slot: Slot) -> float:
    assert slot.score is not None
    return slot.score


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


def _history(out: Path, slots: Sequence[Slot], best: Slot, name: str) -> None:
    """Draw score over steps of every trial; a view, so it lives in provenance."""
    from ctmr.reports.study import trial_curves

    curves = {f"trial {slot.number}": slot.reports for slot in slots if slot.scored}
    folder = out / "provenance"
    folder.mkdir(exist_ok=True)
    (folder / "history.png").write_bytes(trial_curves(curves, best=f"trial {best.number}", label=name))


class _Tracking:
    """The study as one MLflow run with a child for each finished slot."""

    def __init__(self, context: Context, study: Study) -> None:
        from ctmr.tracking import Tracking

        self.context, self.study = context, study
        self.tracking = Tracking(context.home)
        self._logged: set[int] = set()
        with study.alone():
            self.parent = self._parent()

    def log_finished(self, slots: Sequence[Slot]) -> None:
        """Log every finished slot that has no child run yet, and complete a child that a kill left unfinished."""
        new = [slot for slot in slots if slot.finished and slot.number not in self._logged]
        if not new:
            return
        with self.study.alone():
            known = {run.info.run_name: run for run in self._runs(f"tags.mlflow.parentRunId = '{self.parent}'")}
            for slot in new:
                self._log(slot, known.get(f"trial {slot.number}"))
                self._logged.add(slot.number)

    def fail(self) -> None:
        """Close the run of a study in which every trial failed."""
        self.tracking.end(self.parent, "FAILED")

    def finish(self, best: Slot, name: str) -> str:
        """Log the best trial on the parent and close it."""
        self.tracking.metrics(self.parent, {"best_validation_score": _score(best)})
        self.tracking.tag(self.parent, {"objective": name, "best_trial": str(best.number)})
        self.tracking.artifact(self.parent, self.context.out / "best.yaml")
        self.tracking.artifact(self.parent, self.context.out / "provenance" / "history.png")
        self.tracking.end(self.parent)
        return self.parent

    def _parent(self) -> str:
        """Return this study's run, which a killed or finished stage may have begun."""
        found = self._runs(f"tags.`ctmr.study` = '{self.study.uid}'")
        begun = [run for run in found if run.info.status != "FAILED"]
        if begun:
            return str(begun[0].info.run_id)
        recipe = self.context.recipe
        tags = {"stage": "tune", "recipe": recipe.name, "study": self.study.uid}
        parent = self.tracking.start(f"tune {recipe.name}", tags=tags)
        self.tracking.params(parent, {"tune": recipe.dump()["tune"]})
        return parent

    def _log(self, slot: Slot, child: Run | None) -> None:
        if child is not None and child.info.status != "RUNNING":
            return
        if child is None:
            tags = {"stage": "trial", "state": slot.state.value}
            run_id = self.tracking.start(f"trial {slot.number}", tags=tags, parent=self.parent)
        else:
            run_id = str(child.info.run_id)
        self.tracking.params(run_id, slot.params)
        known = {point.step for point in self.tracking.client.get_metric_history(run_id, "validation_score")}
        for step, score in slot.reports.items():
            if step not in known:
                self.tracking.metrics(run_id, {"validation_score": score}, step)
        if slot.error:
            self.tracking.tag(run_id, {"error": slot.error})
        self.tracking.end(run_id, "FAILED" if slot.state is SlotState.FAILED else "FINISHED")

    def _runs(self, where: str) -> list[Run]:
        return list(self.tracking.client.search_runs([self.tracking.experiment_id], where, max_results=_MOST_RUNS))


_MOST_RUNS = 50_000

STAGE = Stage(
    "tune",
    takes={"preprocessed": "preprocess"},
    sections=("directions", "preprocess", "normalise", "network", "loss", "train", "tune"),
    run=run,
    version=2,
)
