"""Evidence: everything that was measured for one verdict, as figures, words and one page show it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ctmr.evaluation.candidates import AS_TRAINED, reverse
from ctmr.evaluation.comparison import Exhibit
from ctmr.evaluation.direction import CHAMPION, DirectionResult
from ctmr.evaluation.gate import Verdict
from ctmr.evaluation.lesions import LesionTest
from ctmr.evaluation.robustness import RobustnessResult
from ctmr.evaluation.sections import UNIT_WORDS
from ctmr.evaluation.uncertainty import COVERAGES, UncertaintyResult
from ctmr.imaging.volume import Unit
from ctmr.metrics.protocol import Metric
from ctmr.metrics.stats import Summary, summarise
from ctmr.reports import charts, figures, sentences
from ctmr.reports.html import (
    LesionRow,
    LesionTable,
    OtherDirection,
    Report,
    ReportFigure,
    ReportSection,
    UncertaintyRow,
    render_report,
)

MOST_SHEETS = 4
"""Sample sheets of the training that a report shows."""


@dataclass(frozen=True)
class EvaluationEvidence:
    """Measurements that a verdict rests on, and those made besides.

    Attributes
    ----------
    side
        The gated direction.
    verdict
        From `ctmr.evaluation.gate.judge`.
    summaries
        Protocol → summary of the model, lesions among them.
    other
        The other direction, or a sentence why it was not measured.
    lesions
        One a direction.
    robustness, uncertainty
        ``None`` where the recipe asks for none.
    champion
        How to call it.
    lineage
        Name → value.
    """

    side: DirectionResult
    verdict: Verdict
    summaries: Mapping[str, Summary]
    other: DirectionResult | str
    lesions: tuple[LesionTest, ...]
    robustness: RobustnessResult | None
    uncertainty: UncertaintyResult | None
    champion: str
    lineage: Mapping[str, str]

    @property
    def others(self) -> dict[str, Mapping[str, Summary]]:
        """Rivals beside the model, by the name that tables use."""
        return _others(self.side, self.champion)

    def write(self, folder: Path, title: str) -> list[Path]:
        """Write the figures as PNG and ``report.html``, and return the files."""
        drawn = self._figures()
        files = []
        for name, figure in drawn.items():
            files.append(folder / f"{name}.png")
            files[-1].write_bytes(figure.png)
        page = folder / "report.html"
        page.write_text(render_report(self._report(title, drawn)), encoding="utf-8")
        return [page, *files]

    def _report(self, title: str, drawn: Mapping[str, ReportFigure]) -> Report:
        side = self.side
        return Report(
            title=title,
            verdict=self.verdict,
            summaries=dict(self.summaries),
            others=self.others,
            cases=dict(side.cases),
            words=self._words(),
            tissues=side.measured.tissues,
            tissue_unit=UNIT_WORDS[side.held.target_unit],
            warnings=side.warnings,
            lesions=[_lesion_table(t) for t in self.lesions],
            uncertainty=[
                UncertaintyRow(m.name, m.spearman, m.low, m.high, m.area)
                for m in (self.uncertainty.measures if self.uncertainty else ())
            ],
            random_area=self.uncertainty.random_area if self.uncertainty else float("nan"),
            other=self._other(),
            figures=tuple(drawn.values()),
            lineage=self.lineage,
            phantom=side.held.phantom,
        )

    def _other(self) -> OtherDirection:
        if isinstance(self.other, str):
            return OtherDirection(reverse(self.side.held.direction).value, note=self.other)
        other = self.other
        alarm = (other.alarm,) if other.alarm else ()
        return OtherDirection(
            other.held.direction.value,
            summaries=dict(other.own),
            others=_others(other, ""),
            tissues=other.measured.tissues,
            warnings=alarm + other.warnings,
        )

    def _words(self) -> list[str]:
        held = self.side.held
        said = sentences.fidelity_words(self.side.own, self.others, held.direction, phantom=held.phantom)
        if self.side.measured.tissues and not self.side.alarm and not self.side.warnings:
            said.append("The tissues are in their right order of brightness.")
        for test in self.lesions:
            said.append(sentences.lesion_words(_lesion_table(test)))
        if self.robustness and self.robustness.curves:
            curves = [(c.name, c.means) for c in self.robustness.curves]
            said.append(sentences.robustness_words(curves, self.robustness.metric))
        if self.uncertainty and self.uncertainty.measures:
            said.append(sentences.uncertainty_words({m.name: m.spearman for m in self.uncertainty.measures}))
        return said

    def _figures(self) -> dict[str, ReportFigure]:
        """Every figure by the name of its file."""
        return self._images() | self._tissues() | self._lesions() | self._sweeps() | self._training()

    def _images(self) -> dict[str, ReportFigure]:
        best, worst = self.side.measured.best, self.side.measured.worst
        if best is None or worst is None:
            return {}
        if worst.case == best.case:
            return {"comparison": self._comparison(worst, "")}
        return {
            "comparison": self._comparison(worst, "the largest error of all cases"),
            "comparison_best": self._comparison(best, "the smallest error of all cases"),
        }

    def _comparison(self, exhibit: Exhibit, which: str) -> ReportFigure:
        held = self.side.held
        error, truth = "", "; no truth exists"
        if exhibit.error is not None:
            error = f", MAE {exhibit.error:.4g} {UNIT_WORDS[held.target_unit]}"
            truth = ", truth and difference"
        title = f"{exhibit.subject or exhibit.case}, held out{error}"
        kind = "phantom head" if held.phantom else "image"
        said = f", {which}" if which else ""
        caption = f"Held-out {kind} {exhibit.case}{said}: source, synthetic {held.direction.target}{truth}."
        return ReportFigure(figures.comparison_figure(exhibit.compared, title=title, phantom=held.phantom), caption)

    def _tissues(self) -> dict[str, ReportFigure]:
        side, phantom = self.side, self.side.held.phantom
        table = side.measured.tissues
        if not table or side.held.target_unit is not Unit.HU:
            return {}
        medians = charts.tissue_chart(table, title="Median HU by tissue", phantom=phantom)
        agreement = charts.agreement_chart(
            side.measured.heads,
            list(side.measured.tables.values()),
            title="Agreement (Bland and Altman)",
            phantom=phantom,
        )
        return {
            "tissues": ReportFigure(
                medians.png,
                "Median HU of the translations in the tissues that the true CT defines.",
                medians.svg,
                ReportSection.TISSUES,
            ),
            "agreement": ReportFigure(
                agreement.png,
                "Synthetic minus true HU over their mean: of every head (left, with bias and limits of agreement), and "
                "the median of every tissue in it (right).",
                agreement.svg,
                ReportSection.TISSUES,
            ),
        }

    def _lesions(self) -> dict[str, ReportFigure]:
        drawn = {}
        for test in self.lesions:
            if not test.views:
                continue
            panels = [
                figures.LesionPanel(
                    f"{v.response.kind}, {v.response.radius_mm:g} mm: {'kept' if v.response.kept else 'lost'}\n"
                    f"CNR {v.response.cnr:.1f}",
                    v.response.kept,
                    v.ill,
                    v.answer_healthy,
                    v.answer_ill,
                    v.truth_ill,
                    v.outline,
                )
                for v in test.views
            ]
            png = figures.lesion_figure(
                panels,
                source_unit=test.source_unit,
                unit=test.unit,
                source_name=test.direction.source.value,
                target_name=test.direction.target.value,
                title=f"Lesions, {test.direction}",
                phantom=self.side.held.phantom,
            )
            caption = (
                f"{test.direction}, lesions {test.how}: the input, its translation without and with the lesion, and "
                f"their difference, around each lesion of {test.views[0].case}."
            )
            drawn[f"lesions_{test.direction}"] = ReportFigure(png, caption, place=ReportSection.LESIONS)
        return drawn

    def _sweeps(self) -> dict[str, ReportFigure]:
        drawn: dict[str, ReportFigure] = {}
        held = self.side.held
        unit = UNIT_WORDS[held.target_unit]
        if self.robustness and self.robustness.curves:
            sweep = self.robustness
            chart = charts.robustness_chart(
                [(c.name, c.strongest, c.strengths, c.means, c.lows, c.highs) for c in sweep.curves],
                label=f"{sweep.metric} ({unit})" if len(sweep.metric) < 24 else f"mean change ({unit})",
                title="Worse inputs",
                phantom=held.phantom,
            )
            images = f"{sweep.cases} image{'s' if sweep.cases > 1 else ''}"
            caption = (
                f"{sweep.metric[0].upper()}{sweep.metric[1:]} inside the head on the model's grid over the strength of "
                f"each disturbance; mean, smallest and largest of {images}. Strength 1 is named below each panel."
            )
            drawn["robustness"] = ReportFigure(chart.png, caption, chart.svg, ReportSection.ROBUSTNESS)
        if self.uncertainty:
            found, shown = self.uncertainty, self.uncertainty.shown
            png = figures.uncertainty_figure(
                shown.source,
                shown.made,
                shown.uncertainty,
                shown.error,
                unit=held.target_unit,
                source_name=held.direction.source.value,
                target_name=held.direction.target.value,
                title=f"Uncertainty, {shown.case}",
                phantom=held.phantom,
            )
            drawn["uncertainty"] = ReportFigure(
                png,
                f"Uncertainty of one slice of {shown.case}: half the difference from the mirrored translation of the "
                "mirrored input, plus the cycle error, each over its mean in the head.",
                place=ReportSection.UNCERTAINTY,
            )
            if found.measures:
                chart = charts.sparsification_chart(
                    COVERAGES,
                    {m.name: m.curve for m in found.measures},
                    found.perfect,
                    label=f"mean absolute error ({unit})",
                    title="Risk and coverage",
                    phantom=held.phantom,
                )
                caption = (
                    "Error of the voxels that remain when the least certain are left out first. The nearer a curve "
                    "comes to the dashed one, the better uncertainty tells where the errors are."
                )
                drawn["coverage"] = ReportFigure(chart.png, caption, chart.svg, ReportSection.UNCERTAINTY)
        return drawn

    def _training(self) -> dict[str, ReportFigure]:
        folder = self.side.model.folder
        drawn = {}
        if (folder / "curves.csv").is_file():
            history, steps = _curves(folder / "curves.csv")
            if steps:
                chart = charts.loss_chart(history, steps, title="Training losses")
                drawn["losses"] = ReportFigure(
                    chart.png, "Losses of the training that made this model.", chart.svg, ReportSection.TRAINING
                )
        sheets = sorted((folder / "provenance" / "samples").glob("*.png"))
        if sheets:
            last = len(sheets) - 1
            chosen = sorted({round(k * last / max(1, MOST_SHEETS - 1)) for k in range(MOST_SHEETS)})
            png = figures.sample_evolution([sheets[k].read_bytes() for k in chosen])
            drawn["samples"] = ReportFigure(
                png,
                "The same slices as the training went on: images, translations and reconstructions.",
                place=ReportSection.TRAINING,
            )
        return drawn


def _others(side: DirectionResult, champion: str) -> dict[str, Mapping[str, Summary]]:
    """The model with training-only steps, the champion, then translators that never learned."""
    named = {AS_TRAINED: AS_TRAINED, CHAMPION: champion, **{t: t for t in side.baselines}}
    return {said: side.summaries[who] for who, said in named.items() if side.summaries.get(who)}


def _lesion_table(test: LesionTest) -> LesionTable:
    rows = [
        LesionRow(c.case, r.kind, r.radius_mm, r.signal, r.expected, r.cnr, r.kept)
        for c in test.cases
        for r in c.findings.responses
    ]
    invented, false = (test.counts(m) for m in (Metric.INVENTED, Metric.FALSE_FINDINGS))
    return LesionTable(
        test.direction,
        test.how,
        test.unit,
        rows,
        *test.rate_interval(),
        invented=None if invented is None else invented[0],
        false_findings=None if false is None else false[0],
        summary=summarise(list(test.measured)),
    )


def _curves(path: Path) -> tuple[dict[str, list[float]], list[int]]:
    """Losses of a training by name; totals are left out, they only repeat their parts."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = [n for n in (rows[0] if rows else {}) if n not in ("step", "generator", "discriminator")]
    return {n: [float(r[n]) for r in rows] for n in names}, [int(r["step"]) for r in rows]
