"""evaluate: held-out measurements under named protocols beside baselines, and the gate's verdict."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctmr.errors import InputError
from ctmr.networks.model_folder import Description
from ctmr.pipeline.stage import Context, Stage, read_record
from ctmr.pipeline.stages.train import RUN_RECORD
from ctmr.system.digest import content_digest
from ctmr.system.home import Home

if TYPE_CHECKING:
    from ctmr.evaluation.candidates import Model
    from ctmr.evaluation.comparison import Cases
    from ctmr.evaluation.direction import DirectionResult
    from ctmr.evaluation.lesions import LesionTest
    from ctmr.evaluation.testset import TestSet
    from ctmr.metrics.stats import Summary
    from ctmr.recipe.recipe import Recipe
    from ctmr.reports.evaluation import EvaluationEvidence

GOLDEN = "golden.npz"
"""One held-out case with evaluate's own answer; deploy compares the served model with it."""


def run(context: Context) -> dict[str, Any]:
    """Write ``cases.csv``, ``metrics.json``, ``verdict.json``, ``decision.json``, the golden case and, in provenance,
    the report.

    Ends without an error once it measured: a failed gate is data.
    """
    with _threads(context.recipe.evaluate.threads):
        return _evaluate(context)


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


def _evaluate(context: Context) -> dict[str, Any]:
    from ctmr.evaluation.candidates import Model
    from ctmr.evaluation.direction import CHAMPION, measure_side
    from ctmr.evaluation.gate import judge
    from ctmr.evaluation.lesions import lesion_tests
    from ctmr.evaluation.robustness import robustness_sweep
    from ctmr.evaluation.testset import TestSet
    from ctmr.evaluation.uncertainty import uncertainty
    from ctmr.reports.evaluation import EvaluationEvidence

    recipe = context.recipe
    folder = context.inputs["model"]
    description = Description.read(folder)
    direction = recipe.directions[0]
    if direction not in description.directions:
        raise InputError(f"the model was trained for {[d.value for d in description.directions]}, not {direction}")
    held = TestSet.open(context.inputs, description.grid, direction)
    model = Model.load(folder, direction)
    context.report("translating the held-out test", 0.02)
    champion_name, champion = _champion(context, held)
    side = measure_side(held, model, recipe, tell=_part(context, 0.05, 0.6), champion=champion)
    other = _other_direction(context, held, model)
    context.report("lesions: kept, lost, invented", 0.72)
    sides = [(held, model)] if isinstance(other, str) else [(held, model), (other.held, other.model)]
    lesions = lesion_tests(sides, recipe)
    context.report("corrupted inputs", 0.82)
    sweep = robustness_sweep(held, model, recipe)
    context.report("uncertainty", 0.87)
    certainty = uncertainty(held, model, recipe)
    own, cases = _with_lesions(side, lesions, recipe.evaluate.bootstrap, recipe.evaluate.seed)
    baselines = {name: side.summaries[name] for name in sorted(side.baselines) if side.summaries.get(name)}
    verdict = judge(
        own,
        recipe.gate,
        has_pairs=held.has_pairs,
        unit=held.target_unit,
        baselines=baselines,
        alarms=[side.alarm] if side.alarm else [],
        champion=side.summaries.get(CHAMPION),
        champion_name=champion_name,
        information=[t.sentence() for t in lesions] + ([other] if isinstance(other, str) else []),
    )
    means = {n: _means(s) for n, s in sorted(own.items())}
    flat = {"passed": verdict.passed, **means}
    (context.out / "metrics.json").write_text(json.dumps(flat, indent=1, sort_keys=True) + "\n")
    evidence = EvaluationEvidence(
        side, verdict, own, other, tuple(lesions), sweep, certainty, champion_name, _lineage(context)
    )
    _write_cases(context.out / "cases.csv", cases)
    (context.out / "verdict.json").write_text(json.dumps(_tree(evidence, baselines), indent=1, sort_keys=True) + "\n")
    # What register reads: a changed limit that the model still passes must not register it again.
    decision = {"passed": verdict.passed, "replaces_champion": verdict.replaces_champion, "direction": direction.value}
    (context.out / "decision.json").write_text(json.dumps(decision, indent=1, sort_keys=True) + "\n")
    golden = side.measured.golden
    assert golden is not None
    np.savez_compressed(
        context.out / GOLDEN,
        answer=golden.answer,
        paths=np.array(golden.paths),
        formats=np.array(golden.formats),
        uneven_limits=np.array(golden.uneven_limits),
        modality=np.array(direction.source.value),
        subject=np.array(golden.subject),
        case=np.array(golden.case),
    )
    context.report("figures and report", 0.9)
    run_id = _report(context, evidence, baselines)
    return {
        "verdict": "pass" if verdict.passed else "fail",
        "reason": "; ".join(verdict.reasons),
        "statement": verdict.statement,
        "fidelity_measured": verdict.fidelity_measured,
        "protocols": {n: s.protocol.describe() for n, s in sorted(own.items())},
        "metrics": means,
        "baselines": _all_means(baselines),
        "tissues": _tissues(side),
        "warnings": list(side.warnings),
        "information": list(verdict.information),
        "golden": {"case": golden.case, "subject": golden.subject, "paths": list(golden.paths)},
        "champion": context.options.get("champion", ""),
        "mlflow_run": run_id,
    }


def _part(context: Context, start: float, length: float) -> Any:
    """Progress of one part of the stage."""
    return lambda message, fraction: context.report(message, start + length * (fraction or 0.0))


def _champion(context: Context, held: TestSet) -> tuple[str, Model | None]:
    """Return the champion's name, and its generators unless there is none or it cannot translate these images."""
    from ctmr.evaluation.candidates import Model
    from ctmr.tracking.mlflow import Tracking

    option = context.options.get("champion", "")
    if not option:
        return "the champion", None
    champion: Mapping[str, str] = json.loads(option)
    name = f"version {champion['version']}"
    folder = Tracking(context.home).download(champion["run_id"], "model", context.work)
    description = Description.read(folder)
    if description.grid != held.grid or held.direction not in description.directions:
        return f"{name} (made for another grid or direction, not compared)", None
    return name, Model.load(folder, held.direction)


def _other_direction(context: Context, held: TestSet, model: Model) -> DirectionResult | str:
    """Measure the direction that is not gated, or return a sentence why not."""
    from ctmr.evaluation.candidates import reverse
    from ctmr.evaluation.direction import measure_side, open_side

    direction, most = reverse(held.direction), context.recipe.evaluate.other_direction
    if not most:
        return f"{direction} was not measured: the recipe sets evaluate.other_direction to 0"
    opened = open_side(held, model, direction)
    if isinstance(opened, str):
        return opened
    return measure_side(*opened, context.recipe, tell=_part(context, 0.65, 0.07), most=most)


def _with_lesions(
    side: DirectionResult, lesions: Sequence[LesionTest], resamples: int, seed: int
) -> tuple[dict[str, Summary], Cases]:
    """Return the gated direction's summaries and cases, its hallucination test among them."""
    from ctmr.metrics.stats import summarise

    own, cases = dict(side.own), dict(side.cases)
    for test in lesions:
        if test.direction is side.held.direction:
            rows = list(test.measured)
            name = rows[0].protocol.name
            own[name], cases[name] = summarise(rows, resamples=resamples, seed=seed), rows
    return own, cases


def _tree(evidence: EvaluationEvidence, baselines: Mapping[str, Mapping[str, Summary]]) -> dict[str, Any]:
    """Return what ``verdict.json`` holds: the verdict, and every number behind it."""
    side, other = evidence.side, evidence.other
    tree = evidence.verdict.to_dict() | {
        "direction": side.held.direction.value,
        "has_pairs": side.held.has_pairs,
        "tissues": _tissues(side),
        "warnings": list(side.warnings),
        "summaries": _dicts(evidence.summaries),
        "baselines": {k: _dicts(v) for k, v in sorted(baselines.items())},
        "lesions": {t.direction.value: t.to_dict() for t in evidence.lesions},
        "robustness": evidence.robustness.to_dict() if evidence.robustness else None,
        "uncertainty": evidence.uncertainty.to_dict() if evidence.uncertainty else None,
        "as_trained": None if side.as_trained is None else _dicts(side.as_trained),
    }
    if isinstance(other, str):
        return tree | {"other_direction": {"note": other}}
    return tree | {
        "other_direction": {
            "direction": other.held.direction.value,
            "summaries": _dicts(other.own),
            "baselines": {t: _dicts(other.summaries[t]) for t in sorted(other.baselines) if other.summaries.get(t)},
            "tissues": _tissues(other),
            "alarm": other.alarm,
            "warnings": list(other.warnings),
        }
    }


def _dicts(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    return {n: s.to_dict() for n, s in sorted(summaries.items())}


def _tissues(side: DirectionResult) -> dict[str, Any]:
    from ctmr.metrics.tissue import table_to_dict

    return table_to_dict(side.measured.tissues)


def _means(summary: Summary) -> dict[str, float | None]:
    from ctmr.metrics.stats import finite_or_none

    return {m: finite_or_none(v.mean) for m, v in summary.metrics.items()}


def _all_means(named: Mapping[str, Mapping[str, Summary]]) -> dict[str, Any]:
    return {k: {n: _means(s) for n, s in sorted(v.items())} for k, v in sorted(named.items())}


def _lineage(context: Context) -> dict[str, str]:
    from importlib.metadata import version

    from ctmr.recipe.recipe import section_digest
    from ctmr.system.digest import content_digest

    return {
        "recipe": context.recipe.name,
        "evaluate and gate settings": section_digest(context.recipe, STAGE.sections),
        "model (content digest)": content_digest(context.inputs["model"]),
        "manifest (content digest)": content_digest(context.inputs["manifest"]),
        "seed": str(context.recipe.evaluate.seed),
        "versions": ", ".join(f"{p} {version(p)}" for p in ("ctmr", "torch", "numpy", "scipy")),
    }


def _write_cases(path: Path, cases: Cases) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["protocol", "case", "subject", "metric", "value"])
        for name, rows in sorted(cases.items()):
            for case in rows:
                for metric, value in sorted(case.values.items()):
                    writer.writerow([name, case.case, case.subject, metric, f"{value:.8g}"])


def _report(context: Context, evidence: EvaluationEvidence, baselines: Mapping[str, Mapping[str, Summary]]) -> str:
    """Write the HTML report and figures, and log everything to the model's MLflow run."""
    from ctmr.tracking.mlflow import Tracking, held_out_metrics

    side, verdict = evidence.side, evidence.verdict
    folder = context.out / "provenance"
    folder.mkdir(exist_ok=True)
    source, target = side.held.direction.source, side.held.direction.target
    files = evidence.write(folder, f"{context.recipe.name}: synthetic {target} from {source}")
    run_id = model_run(context.inputs["model"], context.home, context.recipe.name)
    tracking = Tracking(context.home)
    tracking.metrics(run_id, held_out_metrics({n: _means(s) for n, s in evidence.summaries.items()}))
    beside = {f"baselines.{who.replace(' ', '_')}": protocols for who, protocols in baselines.items()}
    if side.as_trained is not None:
        beside["as_trained"] = side.as_trained
    if not isinstance(evidence.other, str):
        beside[evidence.other.held.direction.value] = evidence.other.own
    for label, protocols in beside.items():
        for name, summary in protocols.items():
            tracking.metrics(run_id, {f"{label}.{name}.{m}": v.mean for m, v in summary.metrics.items()})
    tracking.tag(
        run_id,
        {
            "verdict": "pass" if verdict.passed else "fail",
            "verdict_reason": "; ".join(verdict.reasons)[:4000],
            "fidelity_measured": str(verdict.fidelity_measured).lower(),
            "protocols": "; ".join(s.protocol.describe() for s in evidence.summaries.values())[:4000],
        },
    )
    for file in (context.out / "verdict.json", context.out / "cases.csv", *files):
        tracking.artifact(run_id, file, "evaluation")
    if not verdict.passed:
        tracking.end(run_id, "FINISHED")
    return run_id


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


STAGE = Stage(
    "evaluate",
    takes={
        "model": "train",
        "preprocessed": "preprocess",
        "raw": "fetch/raw",
        "manifest": "validate/manifest.parquet",
    },
    options=("champion",),
    sections=("directions", "evaluate", "gate"),
    run=run,
    version=6,
    files=_files,
)
