"""The study in MLflow: one run, with a child for each finished slot: settings, curves, pictures."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home
from ctmr.tracking.names import trial_name
from ctmr.tuning.evidence import TrialEvidence
from ctmr.tuning.study import Study
from ctmr.tuning.trial import Slot, SlotState, bracket

if TYPE_CHECKING:
    from mlflow.entities import Run

SCORE = "validation_score"
_MOST_RUNS = 50_000
_BATCH = 1000
"""Points that MLflow takes at a time."""


class StudyRun:
    """The study as one MLflow run with a child for each finished slot.

    Parameters
    ----------
    home
        Says where MLflow is.
    recipe
        Of the study.
    study
        Created.
    """

    def __init__(self, home: Home, recipe: Recipe, study: Study) -> None:
        from ctmr.tracking.mlflow import Tracking

        self.recipe, self.study = recipe, study
        self.tracking = Tracking(home)
        self._logged: set[int] = set()
        with study.alone():
            self.parent = self._parent()

    def log_finished(self, slots: Sequence[Slot]) -> None:
        """Log every finished slot that has no child run yet, and anew a child that a kill left unfinished."""
        new = [slot for slot in slots if slot.finished and slot.number not in self._logged]
        if not new:
            return
        with self.study.alone():
            known = {run.info.run_name: run for run in self._runs(f"tags.mlflow.parentRunId = '{self.parent}'")}
            for slot in new:
                self._log(slot, known.get(trial_name(slot.number)))
                self._logged.add(slot.number)

    def fail(self) -> None:
        """Close the run of a study in which every trial failed."""
        self.tracking.end(self.parent, "FAILED")

    def finish(self, best: Slot, name: str, importances: Mapping[str, float], settings: Path, figures: Path) -> str:
        """Log the outcome on the parent and return its id.

        Parameters
        ----------
        name
            What the score is.
        importances
            Dotted recipe key → share of the score's variance.
        settings
            File of the best trial's settings.
        figures
            Folder.
        """
        assert best.score is not None
        shares = {f"importance.{key}": share for key, share in importances.items()}
        self.tracking.metrics(self.parent, {"best_validation_score": best.score, **shares})
        self.tracking.tag(self.parent, {"objective": name, "best_trial": str(best.number)})
        self.tracking.artifact(self.parent, settings)
        self.tracking.artifact(self.parent, figures, "figures")
        return self.parent

    def attended(self) -> AbstractContextManager[None]:
        """Call the study's run RUNNING inside; it goes on after a fault, so that it is not called FAILED."""
        from ctmr.tracking.attended import attended

        return attended(self.tracking, self.parent, fault="KILLED")

    def _parent(self) -> str:
        """Return this study's run, which a killed or finished stage may have begun."""
        found = self._runs(f"tags.`ctmr.study` = '{self.study.uid}'")
        begun = [run for run in found if run.info.status != "FAILED"]
        if begun:
            return str(begun[0].info.run_id)
        recipe = self.recipe
        tags = {"stage": "tune", "recipe": recipe.name, "study": self.study.uid}
        parent = self.tracking.start(f"tune {recipe.name}", tags=tags)
        self.tracking.params(parent, {"tune": recipe.dump()["tune"]})
        return parent

    def _log(self, slot: Slot, child: Run | None) -> None:
        from ctmr.tracking.attended import attended

        if child is not None:
            if child.info.status in ("FINISHED", "FAILED"):
                return
            # A kill or a fault cut it in two.
            self.tracking.client.delete_run(child.info.run_id)
        evidence = TrialEvidence.of(self.study.kept(slot))
        run_id = self.tracking.start(trial_name(slot.number), tags=self._tags(slot), parent=self.parent)
        with attended(self.tracking, run_id, fault="KILLED"):
            self.tracking.params(run_id, slot.params)
            curves = {SCORE: dict(slot.reports)}
            for step, losses in evidence.losses.items():
                for name, value in losses.items():
                    curves.setdefault(f"train.{name}", {})[step] = value
            self._curves(run_id, curves)
            if evidence.pictures is not None:
                self._pictures(run_id, slot, evidence)
            if slot.error:
                self.tracking.tag(run_id, {"error": slot.error})
            self.tracking.end(run_id, "FAILED" if slot.state is SlotState.FAILED else "FINISHED")

    def _tags(self, slot: Slot) -> dict[str, str]:
        mine = bracket(self.recipe, slot.number)
        tags = {"stage": "trial", "state": slot.state.value}
        return tags if mine is None else {**tags, "bracket": str(mine)}

    def _curves(self, run_id: str, curves: Mapping[str, Mapping[int, float]]) -> None:
        from mlflow.entities import Metric

        from ctmr.tracking.mlflow import faults

        client, now = self.tracking.client, int(time.time() * 1000)
        logged = [
            Metric(name, value, now, step)
            for name, points in curves.items()
            for step, value in points.items()
            if math.isfinite(value)
        ]
        with faults(self.tracking.uri):
            for k in range(0, len(logged), _BATCH):
                client.log_batch(run_id, metrics=logged[k : k + _BATCH])

    def _pictures(self, run_id: str, slot: Slot, evidence: TrialEvidence) -> None:
        """Log the trial's sample: validation images and what it made of them at its last report."""
        import numpy as np

        from ctmr.reports.samples import SampleGroup, sample_sheet

        assert evidence.pictures is not None
        shown = evidence.pictures.images.astype(np.float32) / 127.5 - 1.0
        columns = evidence.pictures.columns
        group = SampleGroup(
            columns, tuple(shown.swapaxes(0, 1)), ("",) * len(shown), (-1.0, 1.0), "as the networks see it"
        )
        title = f"trial {slot.number} · step {evidence.step} · validation slices"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"step_{evidence.step:07d}.png"
            path.write_bytes(sample_sheet([group], title=title))
            self.tracking.artifact(run_id, path, "samples")

    def _runs(self, where: str) -> list[Run]:
        return list(self.tracking.client.search_runs([self.tracking.experiment_id], where, max_results=_MOST_RUNS))
