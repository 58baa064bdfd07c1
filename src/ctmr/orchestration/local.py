"""Run the eight stages in order, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from ctmr.digest import content_digest
from ctmr.errors import GateFailed, InputError
from ctmr.home import Home
from ctmr.recipe import Recipe
from ctmr.stages.contract import RECORD, Report, Result, Stage, run_stage, silent
from ctmr.stages.names import STAGE_NAMES
from ctmr.storage import Source


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


def stage(name: str) -> Stage:
    """Return a stage by name; imports only that stage."""
    if name not in STAGE_NAMES:
        raise InputError(f"there is no stage {name!r}; the stages are {', '.join(STAGE_NAMES)}")
    found: Stage = import_module(f"ctmr.stages.{name}").STAGE
    return found


def default_inputs(spec: Stage, folder: Path) -> dict[str, Path]:
    """Return where the pipeline finds a stage's inputs below a run folder."""
    return {name: folder / where for name, where in spec.takes.items()}


def run_pipeline(
    source: Source,
    recipe: Recipe,
    *,
    folder: Path,
    home: Home,
    report_for: Callable[[str], Report] = lambda name: silent,
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
    done = Run(folder)
    options = {"fetch": {"dataset": source.to_option()}}
    champion = resolve_champion(source.dataset.name, recipe, home)
    for name in STAGE_NAMES:
        spec = stage(name)
        if name == "evaluate":
            options[name] = {"champion": _champion_option(champion, done.results["train"].digest, folder / name)}
        result = run_stage(
            spec,
            inputs=default_inputs(spec, folder),
            recipe=recipe,
            out=folder / name,
            home=home,
            options=options.get(name, {}),
            report=report_for(name),
        )
        done.results[name] = result
        on_result(result)
        if name == "validate":
            _stop_if_refused(result)
        if name == "evaluate":
            _stop_if_failed(result)
    return done


def champion_for(folder: Path, recipe: Recipe, home: Home) -> str:
    """Return evaluate's champion option for a stage that is run alone."""
    pinned = folder / "fetch" / "dataset.json"
    if not pinned.is_file():
        raise InputError(f"there is no fetched dataset in {folder}; run `ctmr fetch` first, or name the run with --out")
    dataset = json.loads(pinned.read_text())["name"]
    return _champion_option(
        resolve_champion(dataset, recipe, home), content_digest(folder / "train"), folder / "evaluate"
    )


def resolve_champion(dataset: str, recipe: Recipe, home: Home) -> Mapping[str, str]:
    """Find the registered champion of a dataset once, at the start of a run."""
    if not home.tracking_uri.startswith("sqlite:") or (home.root / "mlflow.db").exists():
        from ctmr.tracking import Tracking

        found = Tracking(home).champion(model_name(recipe, dataset), recipe.register_.alias)
        if found:
            return {"name": found.name, "version": found.version, "digest": found.digest, "run_id": found.run_id}
    return {}


def model_name(recipe: Recipe, dataset: str) -> str:
    """Return the registered model's name."""
    return recipe.register_.name or f"{recipe.name}-{dataset}"


def _champion_option(champion: Mapping[str, str], candidate: str, out: Path) -> str:
    """Return the champion as evaluate's option.

    A champion is not judged against itself: when the candidate is the champion, the judgement that made it one stands.
    """
    if champion and champion["digest"] == candidate:
        try:
            before: str = json.loads((out / RECORD).read_text())["summary"]["champion"]
            return before
        except (OSError, ValueError, KeyError):
            return ""
    return json.dumps(champion, sort_keys=True) if champion else ""


def _stop_if_refused(result: Result) -> None:
    if result.summary["outcome"] == "refuse":
        raise InputError(f"the dataset was refused: {result.summary['reason']}; see {result.out / 'findings.csv'}")


def _stop_if_failed(result: Result) -> None:
    if result.summary["verdict"] != "pass":
        raise GateFailed(
            f"the gate failed: {result.summary['reason']}; nothing was registered or deployed, the verdict is in "
            f"{result.out / 'verdict.json'}"
        )
