"""Numbers for people: decimals of the metric's row, intervals, p values, a dash for what was not measured."""

from __future__ import annotations

import math

from ctmr.metrics.protocol import Protocol
from ctmr.metrics.registry import METRICS
from ctmr.metrics.stats import MetricSummary

ABSENT = "–"


def metric_text(metric: str, protocol: Protocol, value: float | None, *, sign: bool = False, unit: bool = False) -> str:
    """A value of a metric with the decimals of its row and, on request, its unit."""
    row = METRICS[metric]
    text = number_text(value, row.decimals(protocol), sign=sign)
    return f"{text} {row.unit_under(protocol)}".rstrip() if unit and text != ABSENT else text


def value_text(metric: str, protocol: Protocol, found: MetricSummary | None) -> str:
    """Mean ± standard deviation over patients."""
    if found is None:
        return ABSENT
    spread = "" if math.isnan(found.sd) else f" ± {metric_text(metric, protocol, found.sd)}"
    return f"{metric_text(metric, protocol, found.mean)}{spread}"


def interval_text(metric: str, protocol: Protocol, low: float | None, high: float | None) -> str:
    """Both ends of an interval; empty where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"{metric_text(metric, protocol, low)} to {metric_text(metric, protocol, high)}"


def number_text(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A number with fixed decimals, ∞ for a PSNR of equal images, a dash for none."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞"
    # Adding zero takes the sign off what rounds to none.
    return f"{round(value, decimals) + 0.0:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def p_text(p: float | None) -> str:
    """A p value with three decimals, never rounded to zero."""
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
