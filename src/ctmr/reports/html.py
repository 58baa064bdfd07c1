"""HTML report: one self-contained page a verdict, readable in light and dark, on paper, and without a network."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ctmr.metrics.stats import MetricSummary, Summary
from ctmr.metrics.tissue import TissueClass, TissueRow
from ctmr.metrics.verdict import Verdict
from ctmr.protocol import Metric

_DIGITS = {Metric.MAE: 1, Metric.RMSE: 1, Metric.PSNR: 2, Metric.FID: 1,
           Metric.MAE_BONE: 1, Metric.MAE_SOFT: 1, Metric.MAE_AIR: 1}  # fmt: skip


@dataclass(frozen=True)
class ReportFigure:
    """A picture of the report.

    Attributes
    ----------
    png
        PNG bytes.
    caption
        Below it; also its alternative text.
    """

    png: bytes
    caption: str


@dataclass(frozen=True)
class Report:
    """Everything the page shows.

    Attributes
    ----------
    title
        Recipe, direction and data in a few words.
    verdict
        From `ctmr.metrics.verdict.judge`.
    summaries
        Protocol name → the model's summary.
    others
        Name → protocol name → summary of what stands beside the model: trivial translators, warm-up alone, champion.
    tissues
        Pooled tissue table; empty without HU truth.
    warnings
        Sentences that fail nothing.
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
    tissues: Mapping[TissueClass, TissueRow] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    figures: Sequence[ReportFigure] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    phantom: bool = False


@dataclass(frozen=True)
class _Table:
    protocol: str
    metrics: list[str]
    rows: list[tuple[str, list[str], list[str], str]]


def render_report(report: Report) -> str:
    """Return the page as HTML; text is escaped, images are embedded, nothing is loaded."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ctmr.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = _number
    return environment.get_template("report.html.j2").render(
        report=report,
        verdict=report.verdict,
        tables=[_table(name, report) for name in sorted(report.summaries)],
        tissues=[(t.value, report.tissues[t]) for t in TissueClass if t in report.tissues],
        figures=[(base64.b64encode(f.png).decode("ascii"), f.caption) for f in report.figures],
    )


def _table(name: str, report: Report) -> _Table:
    own = report.summaries[name]
    entries = [("this model", own), *((n, s[name]) for n, s in report.others.items() if name in s)]
    # The root says the same in a unit that people read, and the table fits the page.
    shown = [m.value for m in Metric if m is not Metric.MSE]
    metrics = [m for m in shown if any(m in s.metrics for _, s in entries)]
    rows = []
    for who, summary in entries:
        found = [summary.metrics.get(m) for m in metrics]
        values = [_value(m, f) for m, f in zip(metrics, found, strict=True)]
        intervals = [_interval(m, f) for m, f in zip(metrics, found, strict=True)]
        count = f"{summary.subjects} / {summary.cases}"
        rows.append((who, values, intervals, count))
    return _Table(own.protocol.describe(), metrics, rows)


def _value(metric: str, found: MetricSummary | None) -> str:
    if found is None:
        return "–"
    digits = _DIGITS.get(Metric(metric), 3)
    spread = "" if math.isnan(found.sd) else f" ± {_number(found.sd, digits)}"
    return f"{_number(found.mean, digits)}{spread}"


def _interval(metric: str, found: MetricSummary | None) -> str:
    if found is None or math.isnan(found.low):
        return ""
    digits = _DIGITS.get(Metric(metric), 3)
    return f"{_number(found.low, digits)} to {_number(found.high, digits)}"


def _number(value: float | None, digits: int = 3) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:,.{digits}f}".replace(",", " ")
