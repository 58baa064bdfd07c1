"""HTML report: one self-contained page a verdict, readable in light and dark, on paper, and without a network."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ctmr.evaluation.sections import UNIT_WORDS
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import Pairing, Protocol, require_same_protocol
from ctmr.metrics.registry import FALSE_FINDINGS, INVENTED, SSIM, Metric, Shown, shown_metrics
from ctmr.metrics.stats import Summary
from ctmr.metrics.tissue import TissueClass
from ctmr.reports.numbers import interval_text, metric_text, number_text

if TYPE_CHECKING:
    from ctmr.evaluation.result import EvaluationResult
    from ctmr.reports.canvas import Chart

MOST_CASES = 200
_ARROWS = {True: "↑", False: "↓", None: ""}
_NO_CASE_TABLE = (Pairing.LESION, Pairing.UNPAIRED_DISTRIBUTION)


class ReportSection(StrEnum):
    """Section of the page that a figure belongs to."""

    IMAGES = "images"
    TISSUES = "tissues"
    LESIONS = "lesions"
    ROBUSTNESS = "robustness"
    UNCERTAINTY = "uncertainty"
    TRAINING = "training"


@dataclass(frozen=True)
class ReportFigure:
    """A picture of the report.

    Attributes
    ----------
    png
        PNG bytes.
    caption
        Below it; also its alternative text.
    svg
        Shown instead where given: markup made by `ctmr.reports.canvas`, which follows the page's theme.
    place
        Where it stands.
    """

    png: bytes
    caption: str
    svg: str = ""
    place: ReportSection = ReportSection.IMAGES

    @classmethod
    def of_chart(cls, chart: Chart, caption: str, place: ReportSection) -> ReportFigure:
        """Return a chart in a section, as SVG."""
        return cls(chart.png, caption, chart.svg, place)


@dataclass(frozen=True)
class _Table:
    protocol: Protocol
    metrics: list[Metric]
    rows: list[tuple[str, Summary]]
    best: dict[str, float | None]


@dataclass(frozen=True)
class _CaseTable:
    protocol: Protocol
    sorted_by: Metric
    metrics: list[Metric]
    cases: list[CaseMetrics]
    left_out: int


@dataclass(frozen=True)
class _Tile:
    label: str
    value: str
    interval: str
    beside: str
    protocol: str


def render_report(
    result: EvaluationResult, title: str, *, words: Sequence[str] = (), figures: Sequence[ReportFigure] = ()
) -> str:
    """Return the page as HTML; text is escaped, images are embedded, nothing is loaded.

    Parameters
    ----------
    result
        What was measured.
    title
        Recipe, direction and data in a few words.
    words
        The result in plain words, a sentence each.
    figures
        In order.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("ctmr.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["known"] = _known
    environment.globals |= {
        "number": number_text,
        "known": _known,
        "base64": lambda png: base64.b64encode(png).decode("ascii"),
        "svg": Markup,
        "tables": _tables,
        "arrows": _ARROWS,
        "value": metric_text,
        "interval": interval_text,
        "tissue_rows": lambda table: [(t.value, table[t]) for t in TissueClass if t in table],
    }
    cases = result.gated.cases
    of_images = {k: v for k, v in cases.items() if result.summaries[k].protocol.pairing not in _NO_CASE_TABLE}
    return environment.get_template("report.html.j2").render(
        title=title,
        words=words,
        result=result,
        gated=result.gated,
        verdict=result.verdict,
        unit=UNIT_WORDS[result.gated.unit],
        tiles=_tiles(result),
        case_tables=[_case_table(rows) for _, rows in sorted(of_images.items()) if rows],
        figures={place.value: [f for f in figures if f.place is place] for place in ReportSection},
    )


def count_text(mean: float) -> str:
    """A mean of counts: decimals only where they say something."""
    return f"{mean:.0f}" if mean >= 10 or mean == round(mean) else f"{mean:.1f}"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _tables(summaries: Mapping[str, Summary], others: Mapping[str, Mapping[str, Summary]]) -> list[_Table]:
    """One a protocol, fidelity first. The hallucination test has a section of its own."""
    names = [n for n in sorted(summaries) if summaries[n].protocol.pairing is not Pairing.LESION]
    names.sort(key=lambda n: not summaries[n].protocol.measures_fidelity)
    return [_table(name, summaries[name], others) for name in names]


def _table(name: str, own: Summary, others: Mapping[str, Mapping[str, Summary]]) -> _Table:
    rows = [("this model", own), *((n, s[name]) for n, s in others.items() if name in s)]
    summaries = [s for _, s in rows]
    metrics = shown_metrics(Shown.TABLE, [s.metrics for s in summaries])
    best = {m.name: _best(m, summaries) for m in metrics} if len(rows) > 1 else {}
    return _Table(require_same_protocol(s.protocol for s in summaries), metrics, rows, best)


def _best(metric: Metric, summaries: Sequence[Summary]) -> float | None:
    found = [m for s in summaries if (m := s.mean(metric.name)) is not None and not math.isnan(m)]
    if not found or metric.higher_is_better is None:
        return None
    return max(found) if metric.higher_is_better else min(found)


def _case_table(cases: Sequence[CaseMetrics]) -> _CaseTable:
    """Cases of one protocol, the worst first."""
    metrics = shown_metrics(Shown.TABLE, [c.values for c in cases])
    by = next((m for m in metrics if m.higher_is_better is not None), metrics[0])
    sign = -1.0 if by.higher_is_better else 1.0

    def badness(case: CaseMetrics) -> tuple[float, str]:
        value = case.values.get(by.name)
        return (-math.inf if value is None else sign * value, case.case)

    ordered = sorted(cases, key=badness, reverse=True)
    return _CaseTable(cases[0].protocol, by, metrics, ordered[:MOST_CASES], max(0, len(ordered) - MOST_CASES))


def _tiles(report: EvaluationResult) -> list[_Tile]:
    """The numbers that people look for first, each with its protocol and the best of what stands beside the model."""
    tiles: list[_Tile] = []
    for name in sorted(report.summaries):
        own = report.summaries[name]
        for metric in shown_metrics(Shown.HEADLINE, [own.metrics]):
            # A cycle's error would be taken for fidelity; its similarity is what gates read.
            hidden = own.protocol.pairing is Pairing.CYCLE and metric is not SSIM
            m, found = metric.name, own.metrics[metric.name]
            if hidden or any(t.label == m for t in tiles):
                continue
            rivals = {w: mean for w, s in report.others.items() if name in s and (mean := s[name].mean(m)) is not None}
            beside = ""
            if rivals and metric.higher_is_better is not None:
                who = (max if metric.higher_is_better else min)(sorted(rivals), key=lambda w: rivals[w])
                beside = f"{who}: {metric_text(m, own.protocol, rivals[who])}"
            interval = interval_text(m, own.protocol, found.low, found.high)
            tiles.append(_Tile(m, metric_text(m, own.protocol, found.mean, unit=True), interval, beside, name))
    tiles = tiles[:5]
    test = report.lesions[0] if report.lesions else None
    if test and test.responses:
        counts = (
            (test.counts(INVENTED), "invented an image"),
            (test.counts(FALSE_FINDINGS), "false findings"),
        )
        said = ", ".join(f"{count_text(count[0])} {what}" for count, what in counts if count is not None)
        low, high = test.rate_interval()
        interval = f"{100 * low:.0f} to {100 * high:.0f} %"
        tiles.append(_Tile("lesions kept", f"{test.kept} of {len(test.responses)}", interval, said, "lesions"))
    return tiles
