"""evaluate: measurements of the test set under named protocols beside baselines, and the gate's verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctmr.errors import InputError
from ctmr.networks.model_folder import Description
from ctmr.pipeline.promotion import require_recorded
from ctmr.pipeline.stage import Context, Stage, read_record
from ctmr.pipeline.stages.train import RUN_RECORD
from ctmr.system.digest import content_digest
from ctmr.system.home import Home
from ctmr.system.progress import Progress
from ctmr.system.tables import write_csv

if TYPE_CHECKING:
    from ctmr.evaluation.candidates import Model
    from ctmr.evaluation.comparison import Cases
    from ctmr.evaluation.direction import DirectionResult
    from ctmr.evaluation.gate import Verdict
    from ctmr.evaluation.result import EvaluationResult
    from ctmr.evaluation.testset import TestSet
    from ctmr.metrics.stats import Summary
    from ctmr.recipe.recipe import Recipe
    from ctmr.tracking.mlflow import Tracking

GOLDEN = "golden.npz"
"""One case of the test set with evaluate's own answer; deploy compares the served model with it."""


def run(context: Context) -> dict[str, Any]:
    """Write ``cases.csv``, ``metrics.json``, ``verdict.json``, ``decision.json``, the golden case and, in provenance,
    the report.

    Ends without an error once it measured: a failed gate is data.
    """
    with _threads(context.recipe.evaluate.threads):
        result = _measure(context)
    _write(context.out, result)
    context.report("figures and report", 0.9)
    return _summary(result) | {
        "champion": context.options.get("champion", ""),
        "mlflow_run": _report(context, result),
    }


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Fix PyTorch's threads: what a process did before, such as training, must not change the sums."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(context: Context) -> EvaluationResult:
    """Measure the gated direction beside baselines and champion, then the rest, and judge."""
    from ctmr.evaluation.direction import measure_direction
    from ctmr.evaluation.lesions import lesion_tests
    from ctmr.evaluation.result import EvaluationResult
    from ctmr.evaluation.robustness import robustness_sweep
    from ctmr.evaluation.uncertainty import calibrate_series, uncertainty

    recipe = context.recipe
    test_set, model = _open(context)
    context.report("translating the test set", 0.02)
    known = _champion(context, test_set, model)
    gated = measure_direction(test_set, model, recipe, tell=_part(context, 0.05, 0.6), champion=known.model)
    reverse = _reverse(test_set, model, recipe)
    other: DirectionResult | str = (
        reverse
        if isinstance(reverse, str)
        else measure_direction(*reverse, recipe, tell=_part(context, 0.65, 0.07), most=recipe.evaluate.other_direction)
    )
    context.report("lesions: kept, lost, invented", 0.72)
    sides = [(test_set, model)] if isinstance(reverse, str) else [(test_set, model), reverse]
    lesions = lesion_tests(sides, recipe)
    gated = gated.with_lesions(lesions, recipe)
    context.report("corrupted inputs", 0.82)
    robustness = robustness_sweep(test_set, model, recipe)
    context.report("uncertainty", 0.87)
    certainty = uncertainty(test_set, model, recipe)
    calibration = calibrate_series(test_set, model, recipe)
    information = [t.sentence() for t in lesions] + ([other] if isinstance(other, str) else [])
    return EvaluationResult(
        gated=gated,
        verdict=_judge(gated, recipe, known, information),
        other=other,
        lesions=tuple(lesions),
        robustness=robustness,
        uncertainty=certainty,
        calibration=calibration,
        champion=known.name,
        compared_with=known.identity,
        lineage=_lineage(context),
    )


def _open(context: Context) -> tuple[TestSet, Model]:
    """Open test set and model in the gated direction."""
    from ctmr.evaluation.candidates import Model
    from ctmr.evaluation.testset import TestSet

    folder, direction = context.inputs["model"], context.recipe.direction
    description = Description.read(folder)
    if direction not in description.directions:
        raise InputError(f"the model was trained for {[d.value for d in description.directions]}, not {direction}")
    return TestSet.open(context.inputs, description.grid, direction), Model.load(folder, direction)


def _part(context: Context, start: float, length: float) -> Progress:
    """Progress of one part of the stage."""

    def tell(message: str, fraction: float | None = None) -> None:
        context.report(message, start + length * (fraction or 0.0))

    return tell


@dataclass(frozen=True)
class _Champion:
    """The registered champion: its name, version and digest, and its generators, or why they cannot be compared."""

    name: str = "the champion"
    identity: Mapping[str, str] | None = None
    model: Model | None = None
    uncompared: str = ""


def _champion(context: Context, test_set: TestSet, candidate: Model) -> _Champion:
    """Return the champion that the option names, as far as it can translate these images."""
    from ctmr.evaluation.candidates import Model
    from ctmr.tracking import models
    from ctmr.tracking.mlflow import Tracking

    option = context.options.get("champion", "")
    if not option:
        return _Champion()
    champion: Mapping[str, str] = json.loads(option)
    name = f"version {champion['version']}"
    identity = {key: champion[key] for key in ("name", "version", "digest")}
    require_recorded(context.home, identity)
    scratch = context.work / "champion"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    folder = models.fetch(Tracking(context.home), champion["run_id"], champion["digest"], scratch)
    if folder is None:
        return _Champion(name, identity, uncompared=f"{name} was registered without digests, so nothing can check it")
    direction = test_set.direction
    unlike = Description.read(folder).unlike(candidate.description, direction)
    if unlike:
        return _Champion(name, identity, uncompared=f"{name} was made for another {unlike}, so nothing compares it")
    return _Champion(name, identity, Model.load(folder, direction))


def _reverse(test_set: TestSet, model: Model, recipe: Recipe) -> tuple[TestSet, Model] | str:
    """Return test set and model in the direction that is not gated, or a sentence why it is not measured."""
    from ctmr.evaluation.direction import turn

    if not recipe.evaluate.other_direction:
        return f"{test_set.direction.reverse} was not measured: the recipe sets evaluate.other_direction to 0"
    return turn(test_set, model)


def _judge(gated: DirectionResult, recipe: Recipe, champion: _Champion, information: Sequence[str]) -> Verdict:
    """Hold the gated direction against the recipe's gate, the baselines, the alarm and the champion."""
    from ctmr.evaluation.direction import CHAMPION
    from ctmr.evaluation.gate import judge

    return judge(
        gated.own,
        recipe.gate.limits,
        has_pairs=gated.has_pairs,
        unit=gated.unit,
        baselines=gated.baselines,
        alarms=[gated.alarm] if gated.alarm else [],
        champion=gated.summaries.get(CHAMPION),
        champion_name=champion.name,
        uncompared=champion.uncompared,
        allow_unmeasured_fidelity=recipe.gate.allow_unmeasured_fidelity,
        information=information,
    )


def _write(out: Path, result: EvaluationResult) -> None:
    gated, verdict = result.gated, result.verdict
    _write_json(out / "metrics.json", {"passed": verdict.passed, **_means(gated.own)})
    _write_json(out / "verdict.json", result.to_dict())
    # What register reads: a changed limit that the model still passes must not register it again.
    decision = {
        "passed": verdict.passed,
        "direction": gated.direction.value,
        "replaces_champion": verdict.replaces_champion,
        "compared_with": result.compared_with,
        "uncompared": verdict.uncompared,
        "stays": verdict.stays,
        "calibration": result.calibration.to_dict()["calibration"] if result.calibration else None,
    }
    _write_json(out / "decision.json", decision)
    _write_cases(out / "cases.csv", gated.cases)
    golden = gated.golden
    np.savez_compressed(
        out / GOLDEN,
        answer=golden.answer,
        paths=np.array(golden.paths),
        formats=np.array(golden.formats),
        uneven_limits=np.array(golden.uneven_limits),
        modality=np.array(gated.direction.source.value),
        subject=np.array(golden.subject),
        case=np.array(golden.case),
    )


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")


def _write_cases(path: Path, cases: Cases) -> None:
    rows = (
        [name, case.case, case.subject, metric, f"{value:.8g}"]
        for name, found in sorted(cases.items())
        for case in found
        for metric, value in sorted(case.values.items())
    )
    write_csv(path, ["protocol", "case", "subject", "metric", "value"], rows)


def _summary(result: EvaluationResult) -> dict[str, Any]:
    from ctmr.metrics.tissue import table_to_dict

    gated, verdict, golden = result.gated, result.verdict, result.gated.golden
    return {
        "verdict": "pass" if verdict.passed else "fail",
        "reason": "; ".join(verdict.reasons),
        "statement": verdict.statement,
        "fidelity_measured": verdict.fidelity_measured,
        "protocols": {n: s.protocol.describe() for n, s in sorted(gated.own.items())},
        "metrics": _means(gated.own),
        "baselines": {name: _means(summaries) for name, summaries in gated.baselines.items()},
        "tissues": table_to_dict(gated.measured.tissues),
        "warnings": list(gated.warnings),
        "information": list(verdict.information),
        "replaces_champion": verdict.replaces_champion,
        "stays": verdict.stays,
        "golden": {"case": golden.case, "subject": golden.subject, "paths": list(golden.paths)},
    }


def _means(summaries: Mapping[str, Summary]) -> dict[str, dict[str, float | None]]:
    from ctmr.metrics.stats import finite_or_none

    return {n: {m: finite_or_none(v.mean) for m, v in s.metrics.items()} for n, s in sorted(summaries.items())}


def _lineage(context: Context) -> dict[str, str]:
    from importlib.metadata import version

    from ctmr.recipe.recipe import section_digest

    return {
        "recipe": context.recipe.name,
        "evaluate and gate settings": section_digest(context.recipe, STAGE.sections),
        "model (content digest)": content_digest(context.inputs["model"]),
        "manifest (content digest)": content_digest(context.inputs["manifest"]),
        "seed": str(context.recipe.evaluate.seed),
        "versions": ", ".join(f"{p} {version(p)}" for p in ("ctmr", "torch", "numpy", "scipy")),
    }


def _report(context: Context, result: EvaluationResult) -> str:
    """Write the HTML report and figures, and log everything to the model's MLflow run."""
    from ctmr.reports.evaluation import write_report
    from ctmr.tracking.attended import attended
    from ctmr.tracking.mlflow import Tracking

    folder = context.out / "provenance"
    folder.mkdir(exist_ok=True)
    gated = result.gated
    title = f"{context.recipe.name}: synthetic {gated.direction.target} from {gated.direction.source}"
    files = write_report(result, folder, title, context.inputs["model"])
    run_id = model_run(context.inputs["model"], context.home, context.recipe.name)
    tracking = Tracking(context.home)
    with attended(tracking, run_id):
        _log(tracking, run_id, result, [context.out / "verdict.json", context.out / "cases.csv", *files])
    return run_id


def _log(tracking: Tracking, run_id: str, result: EvaluationResult, files: Sequence[Path]) -> None:
    from ctmr.tracking.mlflow import held_out_metrics

    gated, verdict = result.gated, result.verdict
    tracking.metrics(run_id, held_out_metrics(_means(gated.own)))
    beside = {f"baselines.{who.replace(' ', '_')}": summaries for who, summaries in gated.baselines.items()}
    if gated.as_trained is not None:
        beside["as_trained"] = gated.as_trained
    if not isinstance(result.other, str):
        beside[result.other.direction.value] = result.other.own
    for label, summaries in beside.items():
        for name, summary in summaries.items():
            tracking.metrics(run_id, {f"{label}.{name}.{m}": v.mean for m, v in summary.metrics.items()})
    tracking.tag(
        run_id,
        {
            "verdict": "pass" if verdict.passed else "fail",
            "verdict_reason": "; ".join(verdict.reasons)[:4000],
            "fidelity_measured": str(verdict.fidelity_measured).lower(),
            "protocols": "; ".join(s.protocol.describe() for s in gated.own.values())[:4000],
        },
    )
    for file in files:
        tracking.artifact(run_id, file, "evaluation")


def model_run(model: Path, home: Home, recipe: str) -> str:
    """Return the MLflow run of a trained model; a new one where it is not in this store (trained elsewhere)."""
    from ctmr.tracking.mlflow import Tracking

    record = model / RUN_RECORD
    tracking = Tracking(home)
    if record.is_file() and read_record(model):
        known = str(json.loads(record.read_text())["run_id"])
        if tracking.exists(known):
            return known
    digest = content_digest(model)
    found = tracking.run_of(digest)
    return found or tracking.start(recipe, tags={"stage": "evaluate", "recipe": recipe, "model_digest": digest})


def _files(recipe: Recipe) -> dict[str, str]:
    weights = recipe.evaluate.feature_weights
    return {} if weights is None else {"evaluate.feature_weights": weights}


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return the verdict and its reason, in half a line."""
    s = summary
    measured = "" if s["fidelity_measured"] else " (fidelity not measured)"
    return f"{s['verdict']}{measured}{': ' if s['reason'] else ''}{s['reason']}"


STAGE = Stage(
    "evaluate",
    help="held-out measurements under named protocols, verdict of the gate.",
    takes={
        "model": "train",
        "preprocessed": "preprocess",
        "raw": "fetch/raw",
        "manifest": "validate/manifest.parquet",
    },
    options={"champion": "Compare with the registered champion, which is the default, or with none."},
    sections=("direction", "evaluate", "gate"),
    run=run,
    summary_line=summary_line,
    version=8,
    files=_files,
)
