"""Report of an evaluation: its figures, its words, and one page with both."""

from __future__ import annotations

import csv
from pathlib import Path

from ctmr.evaluation.comparison import ComparedCase
from ctmr.evaluation.direction import DirectionResult
from ctmr.evaluation.lesions import LesionTest
from ctmr.evaluation.result import EvaluationResult
from ctmr.evaluation.robustness import RobustnessResult
from ctmr.evaluation.sections import UNIT_WORDS
from ctmr.evaluation.uncertainty import COVERAGES, UncertaintyResult
from ctmr.imaging.volume import Unit
from ctmr.reports import charts, figures, sentences
from ctmr.reports.html import ReportFigure, ReportSection, render_report

MOST_SHEETS = 4
"""Sample sheets of the training that a report shows."""

Figures = dict[str, ReportFigure]
"""Name of the file, without its suffix → figure."""


def write_report(result: EvaluationResult, folder: Path, title: str, model: Path) -> list[Path]:
    """Write the figures as PNG and ``report.html``, and return the files.

    Parameters
    ----------
    result
        What was measured.
    folder
        Where to.
    title
        Of the page.
    model
        Folder of the model, for the figures of its training.
    """
    gated = result.gated
    drawn = _images(gated) | _tissues(gated)
    for test in result.lesions:
        drawn |= _lesions(test, gated.phantom)
    if result.robustness and result.robustness.curves:
        drawn |= _robustness(result.robustness, gated.phantom)
    if result.uncertainty:
        drawn |= _uncertainty(result.uncertainty, gated)
    drawn |= _training(model)
    files = []
    for name, figure in drawn.items():
        files.append(folder / f"{name}.png")
        files[-1].write_bytes(figure.png)
    page = folder / "report.html"
    page.write_text(render_report(result, title, words=_words(result), figures=list(drawn.values())), encoding="utf-8")
    return [page, *files]


def _words(result: EvaluationResult) -> list[str]:
    gated = result.gated
    said = sentences.fidelity_words(gated.own, result.others, gated.direction, phantom=gated.phantom)
    if gated.measured.tissues and not gated.alarm and not gated.warnings:
        said.append("The tissues are in their right order of brightness.")
    said += [sentences.lesion_words(test) for test in result.lesions]
    if result.robustness and result.robustness.curves:
        said.append(sentences.robustness_words(result.robustness))
    if result.uncertainty and result.uncertainty.measures:
        said.append(sentences.uncertainty_words(result.uncertainty.measures))
    if result.calibration and result.calibration.cases:
        said.append(result.calibration.words)
    return said


def _images(gated: DirectionResult) -> Figures:
    best, worst = gated.measured.best, gated.measured.worst
    if best is None or worst is None:
        return {}
    if worst.case == best.case:
        return {"comparison": _comparison(gated, worst, "")}
    return {
        "comparison": _comparison(gated, worst, "the largest error of all cases"),
        "comparison_best": _comparison(gated, best, "the smallest error of all cases"),
    }


def _comparison(gated: DirectionResult, shown: ComparedCase, which: str) -> ReportFigure:
    error, truth = "", "; no truth exists"
    if shown.error is not None:
        error = f", MAE {shown.error:.4g} {UNIT_WORDS[gated.unit]}"
        truth = ", truth and difference"
    title = f"{shown.subject or shown.case}, held out{error}"
    kind = "phantom head" if gated.phantom else "image"
    said = f", {which}" if which else ""
    caption = f"Held-out {kind} {shown.case}{said}: source, synthetic {gated.direction.target}{truth}."
    return ReportFigure(figures.comparison_figure(shown.compared, title=title, phantom=gated.phantom), caption)


def _tissues(gated: DirectionResult) -> Figures:
    measured, phantom = gated.measured, gated.phantom
    if not measured.tissues or gated.unit is not Unit.HU:
        return {}
    medians = charts.tissue_chart(measured.tissues, title="Median HU by tissue", phantom=phantom)
    agreement = charts.agreement_chart(
        measured.heads, list(measured.tables.values()), title="Agreement (Bland and Altman)", phantom=phantom
    )
    return {
        "tissues": ReportFigure.of_chart(
            medians, "Median HU of the translations in the tissues that the true CT defines.", ReportSection.TISSUES
        ),
        "agreement": ReportFigure.of_chart(
            agreement,
            "Synthetic minus true HU over their mean: of every head (left, with bias and limits of agreement), and "
            "the median of every tissue in it (right).",
            ReportSection.TISSUES,
        ),
    }


def _lesions(test: LesionTest, phantom: bool) -> Figures:
    if not test.views:
        return {}
    png = figures.lesion_figure(test, title=f"Lesions, {test.direction}", phantom=phantom)
    caption = (
        f"{test.direction}, lesions {test.how}: the input, its translation without and with the lesion, and "
        f"their difference, around each lesion of {test.views[0].case}."
    )
    return {f"lesions_{test.direction}": ReportFigure(png, caption, place=ReportSection.LESIONS)}


def _robustness(sweep: RobustnessResult, phantom: bool) -> Figures:
    unit = UNIT_WORDS[sweep.unit]
    chart = charts.robustness_chart(
        sweep.curves,
        label=f"{sweep.metric} ({unit})" if len(sweep.metric) < 24 else f"mean change ({unit})",
        title="Worse inputs",
        phantom=phantom,
    )
    images = f"{sweep.cases} image{'s' if sweep.cases > 1 else ''}"
    caption = (
        f"{sweep.metric[0].upper()}{sweep.metric[1:]} inside the head on the model's grid over the strength of "
        f"each disturbance; mean, smallest and largest of {images}. Strength 1 is named below each panel."
    )
    return {"robustness": ReportFigure.of_chart(chart, caption, ReportSection.ROBUSTNESS)}


def _uncertainty(found: UncertaintyResult, gated: DirectionResult) -> Figures:
    shown, phantom = found.shown, gated.phantom
    title = f"Uncertainty, {shown.case}"
    drawn = {
        "uncertainty": ReportFigure(
            figures.uncertainty_figure(shown, gated.direction, found.unit, title=title, phantom=phantom),
            f"Uncertainty of one slice of {shown.case}: half the difference from the mirrored translation of the "
            "mirrored input, plus the cycle error, each over its mean in the head.",
            place=ReportSection.UNCERTAINTY,
        )
    }
    if found.measures:
        label = f"mean absolute error ({UNIT_WORDS[found.unit]})"
        chart = charts.sparsification_chart(COVERAGES, found, label=label, title="Risk and coverage", phantom=phantom)
        caption = (
            "Error of the voxels that remain when the least certain are left out first. The nearer a curve "
            "comes to the dashed one, the better uncertainty tells where the errors are."
        )
        drawn["coverage"] = ReportFigure.of_chart(chart, caption, ReportSection.UNCERTAINTY)
    return drawn


def _training(model: Path) -> Figures:
    drawn: Figures = {}
    if (model / "curves.csv").is_file():
        history, steps = _curves(model / "curves.csv")
        if steps:
            chart = charts.loss_chart(history, steps, title="Training losses")
            caption = "Losses of the training that made this model."
            drawn["losses"] = ReportFigure.of_chart(chart, caption, ReportSection.TRAINING)
    sheets = sorted((model / "provenance" / "samples").glob("*.png"))
    if sheets:
        last = len(sheets) - 1
        chosen = sorted({round(k * last / max(1, MOST_SHEETS - 1)) for k in range(MOST_SHEETS)})
        drawn["samples"] = ReportFigure(
            figures.sample_evolution([sheets[k].read_bytes() for k in chosen]),
            "The same slices as the training went on: images, translations and reconstructions.",
            place=ReportSection.TRAINING,
        )
    return drawn


def _curves(path: Path) -> tuple[dict[str, list[float]], list[int]]:
    """Losses of a training by name; totals are left out, they only repeat their parts."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = [n for n in (rows[0] if rows else {}) if n not in ("step", "generator", "discriminator")]
    return {n: [float(r[n]) for r in rows] for n in names}, [int(r["step"]) for r in rows]
