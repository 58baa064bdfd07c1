"""evaluate: held-out measurements under named protocols beside trivial translators, and the gate's verdict."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctmr.digest import content_digest
from ctmr.errors import InputError
from ctmr.home import Home
from ctmr.stages.contract import Context, Stage, read_record
from ctmr.stages.model_folder import Description
from ctmr.stages.train import RUN_RECORD

if TYPE_CHECKING:
    from ctmr.metrics.stats import Summary
    from ctmr.metrics.verdict import Verdict
    from ctmr.stages.heldout import HeldOut, Measured

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
    from ctmr.metrics.stats import summarise
    from ctmr.metrics.verdict import judge
    from ctmr.stages.heldout import HeldOut, measure, measure_trivial

    recipe = context.recipe
    model = context.inputs["model"]
    description = Description.read(model)
    direction = recipe.directions[0]
    if direction not in description.directions:
        raise InputError(f"the model was trained for {[d.value for d in description.directions]}, not {direction}")
    held = HeldOut.open(context.inputs, recipe, description.grid, direction)
    seed = recipe.evaluate.seed
    context.report("translating the held-out test", 0.05)
    own = measure(held, model, recipe, lambda message, f: context.report(message, 0.05 + 0.55 * (f or 0.0)))
    summaries = {n: summarise(c, resamples=recipe.evaluate.bootstrap, seed=seed) for n, c in own.cases.items()}
    context.report("trivial translators", 0.65)
    trivial = {
        name: {n: summarise(c, resamples=recipe.evaluate.bootstrap, seed=seed) for n, c in cases.items()}
        for name, cases in measure_trivial(held, recipe).items()
    }
    champion = _measure_champion(context, held)
    verdict = judge(
        summaries,
        recipe.gate,
        has_pairs=held.has_pairs,
        unit=held.target_unit,
        trivial=trivial,
        alarms=[own.alarm] if own.alarm else [],
        champion=champion[1],
        champion_name=champion[0],
    )
    _write_cases(context.out / "cases.csv", own)
    means = {n: _means(s) for n, s in sorted(summaries.items())}
    flat = {"passed": verdict.passed, **means}
    (context.out / "metrics.json").write_text(json.dumps(flat, indent=1, sort_keys=True) + "\n")
    tree = verdict.to_dict() | {
        "direction": direction.value,
        "has_pairs": held.has_pairs,
        "tissues": own.tissues_as_dict(),
        "warnings": list(own.warnings),
        "summaries": {n: s.to_dict() for n, s in sorted(summaries.items())},
        "trivial": {k: {n: s.to_dict() for n, s in sorted(v.items())} for k, v in sorted(trivial.items())},
    }
    (context.out / "verdict.json").write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    # What register reads: a changed limit that the model still passes must not register it again.
    decision = {"passed": verdict.passed, "replaces_champion": verdict.replaces_champion, "direction": direction.value}
    (context.out / "decision.json").write_text(json.dumps(decision, indent=1, sort_keys=True) + "\n")
    golden = own.golden
    np.savez_compressed(
        context.out / GOLDEN, answer=golden.answer, paths=np.array(golden.paths), formats=np.array(golden.formats),
        modality=np.array(direction.source.value), subject=np.array(golden.subject), case=np.array(golden.case),
    )  # fmt: skip
    context.report("figures and report", 0.85)
    run_id = _report(context, held, own, summaries, trivial, verdict, champion)
    return {
        "verdict": "pass" if verdict.passed else "fail",
        "reason": "; ".join(verdict.reasons),
        "statement": verdict.statement,
        "fidelity_measured": verdict.fidelity_measured,
        "protocols": {n: s.protocol.describe() for n, s in sorted(summaries.items())},
        "metrics": means,
        "trivial": {k: {n: _means(s) for n, s in sorted(v.items())} for k, v in sorted(trivial.items())},
        "tissues": own.tissues_as_dict(),
        "warnings": list(own.warnings),
        "golden": {"case": golden.case, "subject": golden.subject, "paths": list(golden.paths)},
        "champion": context.options.get("champion", ""),
        "mlflow_run": run_id,
    }


def _means(summary: Summary) -> dict[str, float | None]:
    from ctmr.metrics.stats import finite_or_none

    return {m: finite_or_none(v.mean) for m, v in summary.metrics.items()}


def _measure_champion(context: Context, held: HeldOut) -> tuple[str, dict[str, Summary] | None]:
    """Measure the champion on the same cases; ``None`` when there is none or it cannot translate them."""
    from ctmr.metrics.stats import summarise
    from ctmr.stages.heldout import measure
    from ctmr.tracking import Tracking

    option = context.options.get("champion", "")
    if not option:
        return "the champion", None
    champion: Mapping[str, str] = json.loads(option)
    name = f"version {champion['version']}"
    context.report(f"measuring the champion, {name}", 0.75)
    folder = Tracking(context.home).download(champion["run_id"], "model", context.work)
    description = Description.read(folder)
    if description.grid != held.grid or held.direction not in description.directions:
        return f"{name} (made for another grid or direction, not compared)", None
    measured = measure(held, folder, context.recipe, lambda message, fraction: None)
    seed = context.recipe.evaluate.seed
    return name, {
        n: summarise(c, resamples=context.recipe.evaluate.bootstrap, seed=seed) for n, c in measured.cases.items()
    }


def _write_cases(path: Path, own: Measured) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["protocol", "case", "subject", "metric", "value"])
        for name, cases in sorted(own.cases.items()):
            for case in cases:
                for metric, value in sorted(case.values.items()):
                    writer.writerow([name, case.case, case.subject, metric, f"{value:.8g}"])


def _report(
    context: Context,
    held: HeldOut,
    own: Measured,
    summaries: Mapping[str, Summary],
    trivial: Mapping[str, Mapping[str, Summary]],
    verdict: Verdict,
    champion: tuple[str, Mapping[str, Summary] | None],
) -> str:
    """Write the HTML report and figures, and log everything to the model's MLflow run."""
    from ctmr.reports.figures import tissue_figure
    from ctmr.reports.html import Report, ReportFigure, render_report
    from ctmr.tracking import Tracking, held_out_metrics

    folder = context.out / "provenance"
    folder.mkdir(exist_ok=True)
    figures = [ReportFigure(own.picture, own.picture_caption)]
    (folder / "comparison.png").write_bytes(own.picture)
    if own.tissues:
        png = tissue_figure(own.tissues, title="Median HU by tissue", phantom=held.phantom)
        (folder / "tissues.png").write_bytes(png)
        figures.append(ReportFigure(png, "Median HU of the translation in the tissues that the true CT defines."))
    losses = context.inputs["model"] / "provenance" / "losses.png"
    if losses.is_file():
        figures.append(ReportFigure(losses.read_bytes(), "Training losses."))
    others = dict(trivial)
    if champion[1]:
        others[champion[0]] = dict(champion[1])
    page = render_report(
        Report(
            title=f"{context.recipe.name}, {held.direction}",
            verdict=verdict,
            summaries=dict(summaries),
            others={k: dict(v) for k, v in others.items()},
            tissues=own.tissues,
            warnings=own.warnings,
            figures=tuple(figures),
            lineage={"recipe": context.recipe.name, "direction": held.direction.value},
            phantom=held.phantom,
        )
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    run_id = model_run(context.inputs["model"], context.home, context.recipe.name)
    tracking = Tracking(context.home)
    tracking.metrics(run_id, held_out_metrics({n: _means(s) for n, s in summaries.items()}))
    for who, protocols in trivial.items():
        for name, summary in protocols.items():
            label = who.replace(" ", "_")
            tracking.metrics(run_id, {f"trivial.{label}.{name}.{m}": v.mean for m, v in summary.metrics.items()})
    tracking.tag(
        run_id,
        {"verdict": "pass" if verdict.passed else "fail", "verdict_reason": "; ".join(verdict.reasons)[:4000],
         "fidelity_measured": str(verdict.fidelity_measured).lower(),
         "protocols": "; ".join(s.protocol.describe() for s in summaries.values())[:4000]},
    )  # fmt: skip
    tracking.artifact(run_id, context.out / "verdict.json", "evaluation")
    tracking.artifact(run_id, context.out / "cases.csv", "evaluation")
    for name in ("report.html", "comparison.png", "tissues.png"):
        if (folder / name).is_file():
            tracking.artifact(run_id, folder / name, "evaluation")
    if not verdict.passed:
        tracking.end(run_id, "FINISHED")
    return run_id


def model_run(model: Path, home: Home, recipe: str) -> str:
    """Return the MLflow run of a trained model; a new one where it is not in this store (trained elsewhere)."""
    from ctmr.tracking import Tracking

    record = model / RUN_RECORD
    tracking = Tracking(home)
    if record.is_file() and read_record(model):
        known = str(json.loads(record.read_text())["run_id"])
        if tracking.exists(known):
            return known
    digest = content_digest(model)
    found = tracking.run_of(digest)
    return found or tracking.start(recipe, tags={"stage": "evaluate", "recipe": recipe, "model_digest": digest})


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
    version=2,
)
