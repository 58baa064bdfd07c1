"""HTML report: one self-contained page a verdict, readable in light and dark, on paper, and without a network."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ctmr.evaluation.gate import Verdict
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import Pairing, Protocol, require_same_protocol
from ctmr.metrics.registry import SSIM, Metric, Shown, shown_metrics
from ctmr.metrics.stats import Summary
from ctmr.metrics.tissue import TissueClass, TissueRow
from ctmr.reports.numbers import interval_text, metric_text, number_text

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


@dataclass(frozen=True)
class LesionRow:
    """One lesion of the hallucination test; numbers in the target's unit."""

    case: str
    kind: str
    radius_mm: float
    signal: float
    expected: float | None
    cnr: float
    kept: bool

    @property
    def recovered(self) -> float | None:
        """Share of the true contrast that the translation shows."""
        return None if not self.expected else self.signal / self.expected


@dataclass(frozen=True)
class LesionTable:
    """The hallucination test of one direction.

    Attributes
    ----------
    how
        Where the lesions come from, in a few words.
    unit
        Of signals.
    rows
        Lesions that were asked for.
    low, high
        95 % interval of the share that was kept.
    invented, false_findings
        An image; ``None`` where not measured.
    summary
        Under protocol ``lesions``.
    """

    direction: Direction
    how: str
    unit: Unit
    rows: Sequence[LesionRow]
    low: float
    high: float
    invented: float | None
    false_findings: float | None
    summary: Summary

    @property
    def kept(self) -> int:
        """Lesions that the translations show."""
        return sum(r.kept for r in self.rows)


@dataclass(frozen=True)
class UncertaintyRow:
    """One kind of uncertainty against the true error."""

    name: str
    spearman: float
    low: float
    high: float
    area: float


@dataclass(frozen=True)
class OtherDirection:
    """The direction that is not gated; `note` says why it was not measured, where it was not."""

    direction: str
    note: str = ""
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Summary]] = field(default_factory=dict)
    tissues: Mapping[TissueClass, TissueRow] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    Attributes
    ----------
    title
        Recipe, direction and data in a few words.
    verdict
        From `ctmr.evaluation.gate.judge`.
    summaries
        Protocol name → the model's summary.
    others
        Name → protocol name → summary of what stands beside the model: baselines, champion.
    cases
        Protocol name → the model's cases.
    words
        The result in plain words, a sentence each.
    tissues
        Pooled tissue table; empty without HU.
    tissue_unit
        Of its medians.
    warnings
        Sentences that fail nothing.
    lesions
        One a direction.
    uncertainty, random_area
        Kinds of uncertainty, and the area of one that says nothing.
    other
        The direction that is not gated.
    figures
        In order.
    lineage
        Name → value: dataset revision and md5, recipe digest, seeds, versions.
    phantom
        The data are phantoms; the page says so on top.
    """

    title: str
    verdict: Verdict
    summaries: Mapping[str, Summary]
    others: Mapping[str, Mapping[str, Summary]] = field(default_factory=dict)
    cases: Mapping[str, Sequence[CaseMetrics]] = field(default_factory=dict)
    words: Sequence[str] = ()
    tissues: Mapping[TissueClass, TissueRow] = field(default_factory=dict)
    tissue_unit: str = "HU"
    warnings: Sequence[str] = ()
    lesions: Sequence[LesionTable] = ()
    uncertainty: Sequence[UncertaintyRow] = ()
    random_area: float = math.nan
    other: OtherDirection | None = None
    figures: Sequence[ReportFigure] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    phantom: bool = False


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


def render_report(report: Report) -> str:
    """Return the page as HTML; text is escaped, images are embedded, nothing is loaded."""
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
    of_images = {k: v for k, v in report.cases.items() if report.summaries[k].protocol.pairing not in _NO_CASE_TABLE}
    shown = {place.value: [f for f in report.figures if f.place is place] for place in ReportSection}
    return environment.get_template("report.html.j2").render(
        report=report,
        verdict=report.verdict,
        tiles=_tiles(report),
        case_tables=[_case_table(rows) for _, rows in sorted(of_images.items()) if rows],
        figures=shown,
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


def _tiles(report: Report) -> list[_Tile]:
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
    if report.lesions and report.lesions[0].rows:
        test = report.lesions[0]
        counts = ((test.invented, "invented an image"), (test.false_findings, "false findings"))
        said = ", ".join(f"{count_text(count)} {what}" for count, what in counts if count is not None)
        interval = f"{100 * test.low:.0f} to {100 * test.high:.0f} %"
        tiles.append(_Tile("lesions kept", f"{test.kept} of {len(test.rows)}", interval, said, "lesions"))
    return tiles
