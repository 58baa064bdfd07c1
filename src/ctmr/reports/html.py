"""HTML report: one self-contained page a verdict, readable in light and dark, on paper, and without a network."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ctmr.evaluation.sections import UNIT_WORDS
from ctmr.metrics.protocol import CaseMetrics, Metric, Pairing, Protocol, require_same_protocol
from ctmr.metrics.stats import Summary
from ctmr.metrics.tissue import TissueClass
from ctmr.reports.compare import digits, interval_text, number_text, value_text

if TYPE_CHECKING:
    from ctmr.evaluation.result import EvaluationResult
    from ctmr.reports.canvas import Chart

MOST_CASES = 200
_ARROWS = {True: "↑", False: "↓", None: ""}
_NO_CASE_TABLE = (Pairing.LESION, Pairing.UNPAIRED_DISTRIBUTION)
_HEADLINE = (Metric.MAE, Metric.PSNR, Metric.SSIM, Metric.MS_SSIM, Metric.NMI, Metric.KID, Metric.DICE_BONE)


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
class _Cell:
    value: str
    spread: str
    interval: str
    best: bool


@dataclass(frozen=True)
class _Table:
    name: str
    protocol: str
    metrics: list[tuple[str, str]]
    rows: list[tuple[str, list[_Cell], str]]


@dataclass(frozen=True)
class _CaseTable:
    protocol: str
    sorted_by: str
    metrics: list[str]
    rows: list[tuple[str, str, list[str]]]
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
        case_tables=[_case_table(name, rows) for name, rows in sorted(of_images.items()) if rows],
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
    entries = [("this model", own), *((n, s[name]) for n, s in others.items() if name in s)]
    protocol = require_same_protocol(s.protocol for _, s in entries)
    # The root says the same in a unit that people read, and the table fits the page.
    metrics = [m for m in Metric if m is not Metric.MSE and any(m in s.metrics for _, s in entries)]
    best = {m: _best(m, [s for _, s in entries]) for m in metrics}
    rows = []
    for who, summary in entries:
        cells = []
        for m in metrics:
            found = summary.metrics.get(m)
            interval = "" if found is None else interval_text(m, protocol, found.low, found.high)
            leads = found is not None and len(entries) > 1 and found.mean == best[m]
            value, sign, spread = value_text(m, protocol, found).partition(" ± ")
            cells.append(_Cell(value, f"± {spread}" if sign else "", interval, leads))
        # A distribution is of all images at once.
        whole = protocol.pairing is Pairing.UNPAIRED_DISTRIBUTION
        rows.append((who, cells, "–" if whole else f"{summary.subjects} / {summary.cases}"))
    return _Table(name, protocol.describe(), [(m.value, _ARROWS[m.higher_is_better]) for m in metrics], rows)


def _best(metric: Metric, summaries: Sequence[Summary]) -> float | None:
    found = [m for s in summaries if (m := s.mean(metric)) is not None and not math.isnan(m)]
    if not found or metric.higher_is_better is None:
        return None
    return max(found) if metric.higher_is_better else min(found)


def _case_table(name: str, cases: Sequence[CaseMetrics]) -> _CaseTable:
    """Cases of one protocol, the worst first."""
    protocol = cases[0].protocol
    metrics = [m for m in Metric if m is not Metric.MSE and any(m in c.values for c in cases)]
    by = next((m for m in metrics if m.higher_is_better is not None), metrics[0])
    sign = -1.0 if by.higher_is_better else 1.0

    def badness(case: CaseMetrics) -> tuple[float, str]:
        value = case.values.get(by)
        return (-math.inf if value is None else sign * value, case.case)

    ordered = sorted(cases, key=badness, reverse=True)
    rows = [(c.case, c.subject, [_cell(m, protocol, c) for m in metrics]) for c in ordered[:MOST_CASES]]
    return _CaseTable(
        protocol.describe(), by.value, [m.value for m in metrics], rows, max(0, len(ordered) - MOST_CASES)
    )


def _cell(metric: Metric, protocol: Protocol, case: CaseMetrics) -> str:
    return number_text(case.values.get(metric), digits(metric, protocol))


def _tiles(report: EvaluationResult) -> list[_Tile]:
    """The numbers that people look for first, each with its protocol and the best of what stands beside the model."""
    tiles: list[_Tile] = []
    for name in sorted(report.summaries):
        own = report.summaries[name]
        for metric in _HEADLINE:
            found = own.metrics.get(metric)
            if found is None or any(t.label == metric.value for t in tiles):
                continue
            # A cycle's error would be taken for fidelity; its similarity is what gates read.
            if own.protocol.pairing is Pairing.CYCLE and metric is not Metric.SSIM:
                continue
            rivals = {w: m for w, s in report.others.items() if name in s and (m := s[name].mean(metric)) is not None}
            beside = ""
            if rivals and metric.higher_is_better is not None:
                who = (max if metric.higher_is_better else min)(sorted(rivals), key=lambda w: rivals[w])
                beside = f"{who}: {_plain(metric, own.protocol, rivals[who])}"
            interval = interval_text(metric, own.protocol, found.low, found.high)
            unit = {Metric.MAE: f" {own.protocol.unit}", Metric.PSNR: " dB"}.get(metric, "")
            tiles.append(_Tile(metric.value, _plain(metric, own.protocol, found.mean) + unit, interval, beside, name))
    tiles = tiles[:5]
    test = report.lesions[0] if report.lesions else None
    if test and test.responses:
        counts = (
            (test.counts(Metric.INVENTED), "invented an image"),
            (test.counts(Metric.FALSE_FINDINGS), "false findings"),
        )
        said = ", ".join(f"{count_text(count[0])} {what}" for count, what in counts if count is not None)
        low, high = test.rate_interval()
        interval = f"{100 * low:.0f} to {100 * high:.0f} %"
        tiles.append(_Tile("lesions kept", f"{test.kept} of {len(test.responses)}", interval, said, "lesions"))
    return tiles


def _plain(metric: Metric, protocol: Protocol, value: float) -> str:
    return number_text(value, digits(metric, protocol))
