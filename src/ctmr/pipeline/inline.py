"""Run the stages in order, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctmr.datasets.dvc import DatasetSource
from ctmr.errors import GateFailed, InputError
from ctmr.pipeline import stages
from ctmr.pipeline.parameters import DEMO
from ctmr.pipeline.stage import Result, Stage, read_record, run_stage
from ctmr.recipe.recipe import Recipe
from ctmr.system.digest import content_digest
from ctmr.system.home import Home
from ctmr.system.progress import Progress, silent
from ctmr.tracking import database
from ctmr.tracking.mlflow import whole_run
from ctmr.tracking.names import model_name


@dataclass
class Run:
    """A finished or stopped pipeline run.

    Attributes
    ----------
    folder
        Holds a folder a stage.
    results
        Stage name → what it left, in order.
    """

    folder: Path
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def reused(self) -> bool:
        """True when nothing had to be done."""
        return all(r.reused for r in self.results.values())

    def summaries(self) -> dict[str, Mapping[str, Any]]:
        """Return stage name → summary of what has ended so far."""
        return {name: result.summary for name, result in self.results.items()}


def outputs_below(folder: Path) -> dict[str, Path]:
    """Return where each stage of a run leaves its output."""
    return {name: folder / name for name in stages.names()}


def resolve_dataset(address: str, path: str, revision: str, home: Home, report: Progress = silent) -> DatasetSource:
    """Pin a dataset; ``demo`` is the phantom cohort, made now where it is not there yet."""
    from ctmr.datasets.dvc import resolve
    from ctmr.system.home import quiet_libraries

    quiet_libraries()
    if address == DEMO:
        from ctmr.phantom.cohort import CohortPlan
        from ctmr.phantom.repository import demo_repository, make_demo_dataset

        make_demo_dataset(home, CohortPlan(), report)
        address = str(demo_repository(home))
    return resolve(address, path=path, revision=revision)


def run_pipeline(
    source: DatasetSource,
    recipe: Recipe,
    *,
    folder: Path,
    home: Home,
    report_for: Callable[[str], Progress] = lambda name: silent,
    on_result: Callable[[Result], None] = lambda result: None,
) -> Run:
    """Run all stages; stop after evaluate when the gate fails.

    Raises
    ------
    GateFailed
        The model was measured and refused; nothing was registered or deployed. The run folder keeps the verdict.
    InputError
        The dataset was refused, or an option cannot be used.
    """
    done, outputs = Run(folder), outputs_below(folder)
    with whole_run(home, done.summaries):
        champion = resolve_champion(source.dataset.name, recipe, home)
        for name in stages.names():
            spec = stages.load(name)
            result = run_stage(
                spec,
                inputs=spec.inputs(outputs),
                recipe=recipe,
                out=outputs[name],
                home=home,
                options=options_of(spec, outputs, outputs[name], source.to_option(), champion),
                report=report_for(name),
            )
            done.results[name] = result
            on_result(result)
            if name == "validate":
                _stop_if_refused(result)
            if name == "evaluate":
                _stop_if_failed(result)
    return done


def options_of(
    spec: Stage, outputs: Mapping[str, Path], out: Path, dataset: str, champion: Mapping[str, str]
) -> dict[str, str]:
    """Return a stage's options in a whole run: the pinned dataset and the champion, where it asks for them.

    Parameters
    ----------
    outputs
        Where earlier stages' outputs lie; a stage that asks for the champion takes a ``model``, the candidate.
    out
        The stage's own output.
    """
    found = {"dataset": dataset} if "dataset" in spec.options else {}
    if "champion" in spec.options:
        found["champion"] = champion_option(champion, spec.inputs(outputs)["model"], out)
    return found


def champion_for(folder: Path, recipe: Recipe, home: Home) -> str:
    """Return evaluate's champion option for a stage that is run alone."""
    pinned = folder / "fetch" / "dataset.json"
    if not pinned.is_file():
        raise InputError(f"there is no fetched dataset in {folder}; run `ctmr fetch` first, or name the run with --out")
    dataset = json.loads(pinned.read_text())["name"]
    return champion_option(resolve_champion(dataset, recipe, home), folder / "train", folder / "evaluate")


def resolve_champion(dataset: str, recipe: Recipe, home: Home) -> Mapping[str, str]:
    """Find the registered champion of a dataset once, at the start of a run."""
    file = database.file_of(home.tracking_uri)
    if file is None or file.exists():
        from ctmr.tracking.mlflow import Tracking

        name = model_name(recipe.register_.name, recipe.name, dataset)
        found = Tracking(home).champion(name, recipe.register_.alias)
        if found:
            return {"name": found.name, "version": found.version, "digest": found.digest, "run_id": found.run_id}
    return {}


def champion_option(champion: Mapping[str, str], candidate: Path, out: Path) -> str:
    """Return the champion as evaluate's option.

    A champion is not judged against itself: when the candidate is the champion, the judgement that made it one stands.

    Parameters
    ----------
    champion
        Name, version, digest and run id; empty when there is none.
    candidate
        Model folder.
    out
        Evaluate's output, where it may have judged this model before.
    """
    if champion and champion["digest"] == content_digest(candidate):
        record = read_record(out)
        return str(record["summary"]["champion"]) if record else ""
    return json.dumps(champion, sort_keys=True) if champion else ""


def _stop_if_refused(result: Result) -> None:
    if result.summary["outcome"] == "refuse":
        raise InputError(f"the dataset was refused: {result.summary['reason']}; see {result.out / 'findings.csv'}")


def _stop_if_failed(result: Result) -> None:
    if result.summary["verdict"] != "pass":
        raise gate_failed(result.summary["reason"], result.out)


def gate_failed(reason: str, evaluate: Path) -> GateFailed:
    """Return the error of a failed gate."""
    return GateFailed(
        f"the gate failed: {reason}; nothing was registered or deployed, the verdict is in {evaluate / 'verdict.json'}"
    )
