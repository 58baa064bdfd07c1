"""One stage alone: the run it continues, and what whole runs see to that a person calling stages must not lose."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from ctmr.datasets.dvc import DatasetSource
from ctmr.errors import InputError
from ctmr.pipeline import inline, stages
from ctmr.pipeline.parameters import DEMO
from ctmr.pipeline.stage import Result, Stage, read_record, run_stage
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home
from ctmr.system.progress import Progress
from ctmr.tracking.mlflow import GIVEN, Tracking
from ctmr.tracking.names import run_name


class Champion(StrEnum):
    """Model that a stage with the option ``champion`` compares a model with."""

    REGISTERED = "registered"
    NONE = "none"


def run_alone(
    name: str,
    recipe: Recipe,
    *,
    folder: Path,
    home: Home,
    report: Progress,
    source: DatasetSource | None = None,
    inputs: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
) -> Result:
    """Run one stage of the run in `folder`.

    Parameters
    ----------
    source
        What fetch fetches.
    inputs
        ``NAME=PATH``: inputs that do not lie below `folder`.
    options
        The stage's own options as they were given, checked by `check_options`; empty ones were not.

    Raises
    ------
    InputError
        An input is missing or unknown, or register is asked for a model that was not compared with the champion.
    """
    spec = stages.load(name)
    where = spec.inputs(inline.outputs_below(folder)) | _given(inputs, spec)
    chosen = {key: value for key, value in (options or {}).items() if value}
    if source:
        chosen["dataset"] = source.to_option()
    if "champion" in spec.options:
        none = chosen.get("champion") == Champion.NONE
        chosen["champion"] = "" if none else inline.champion_for(folder, recipe, home)
    if name == "register":
        _require_compared(folder, where["decision"], recipe, home)
    # Read now: MLflow takes it out of the environment when a run is resumed by its id.
    given = os.environ.get(GIVEN)
    result = run_stage(spec, inputs=where, recipe=recipe, out=folder / name, home=home, options=chosen, report=report)
    if given:
        tracking = Tracking(home)
        tracking.tag(given, {"stage": name, "digest": result.digest, "reused": str(result.reused).lower()})
        tracking.outcome(given, {name: result.summary})
    return result


def check_options(options: Mapping[str, str]) -> None:
    """Refuse an option of a stage that has a value which nobody knows."""
    champion = options.get("champion", "")
    if champion not in ("", *Champion):
        raise InputError(f"--champion {champion!r}: allowed are {', '.join(Champion)}")


def run_folder(recipe: Recipe, dataset: str, path: str, home: Home) -> Path:
    """Return the folder of the run that a stage without ``--out`` continues.

    Parameters
    ----------
    dataset, path
        As they were given to fetch; an empty `dataset` takes the recipe's only run.

    Raises
    ------
    InputError
        There is none, or several.
    """
    found = sorted(p for p in home.runs.glob(run_name(recipe.name, "*")) if p.is_dir()) if home.runs.is_dir() else []
    of = ""
    if dataset:
        of = f" on dataset {dataset}"
        address = _address(dataset, home)
        found = [p for p in found if _pins(p, address, path)]
    if len(found) != 1:
        names = f" ({', '.join(p.name for p in found)})" if found else ""
        raise InputError(
            f"there are {len(found)} runs of recipe {recipe.name}{of} below {home.runs}{names}; "
            "begin one with `ctmr fetch`, or name one with --dataset or --out"
        )
    return found[0]


def _pins(folder: Path, address: str, path: str) -> bool:
    record = read_record(folder / "fetch")
    if record is None:
        return False
    pinned = DatasetSource.from_option(record["parts"]["option dataset"])
    return pinned.address == address and path in ("", pinned.path)


def _address(dataset: str, home: Home) -> str:
    """Return a dataset's address as `ctmr.datasets.dvc.resolve` records it, without looking whether it is there."""
    if "://" in dataset or dataset.startswith("git@"):
        return dataset
    return str((home.demo / "repository" if dataset == DEMO else Path(dataset)).resolve())


def _given(inputs: Sequence[str], spec: Stage) -> dict[str, Path]:
    found = {}
    for text in inputs:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--input {text!r} is not NAME=PATH; {spec.name} takes {sorted(spec.takes)}")
        found[key] = Path(value)
    return found


def _require_compared(folder: Path, decision: Path, recipe: Recipe, home: Home) -> None:
    """Refuse a model whose verdict left today's champion out: registering it would replace the champion unseen."""
    if decision != folder / "evaluate" / "decision.json" or not decision.is_file():
        return
    if not json.loads(decision.read_text())["passed"]:
        return
    record = read_record(folder / "evaluate")
    compared = record["summary"]["champion"] if record else ""
    today = inline.champion_for(folder, recipe, home)
    if compared != today:
        now = json.loads(today) if today else {}
        against = f"{now['name']} version {now['version']} is the champion now" if now else "that is not the champion"
        before = f"version {json.loads(compared)['version']}" if compared else "no champion"
        raise InputError(
            f"the model in {folder} was compared with {before}, and {against}; run `ctmr evaluate --out {folder}` "
            "with the same recipe first"
        )
