"""Words: what a verdict's numbers mean, in sentences for people who know images better than metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ctmr.imaging.volume import Direction
from ctmr.metrics.registry import MAE
from ctmr.metrics.stats import FEW_PATIENTS, MetricSummary, Summary
from ctmr.reports.html import LesionTable, count_text
from ctmr.reports.numbers import interval_text, metric_text

STRONG_CORRELATION, WEAK_CORRELATION = 0.5, 0.3


def fidelity_words(
    summaries: Mapping[str, Summary],
    others: Mapping[str, Mapping[str, Summary]],
    direction: Direction,
    *,
    phantom: bool,
) -> list[str]:
    """Say how far translations are from the truth, and from what never learned.

    Parameters
    ----------
    summaries
        Protocol name → summary of the model.
    others
        Name → protocol name → summary of what stands beside it.
    direction, phantom
        Of the test.
    """
    who = "phantom heads" if phantom else "patients"
    said = []
    for name in sorted(summaries):
        summary = summaries[name]
        found = summary.metrics.get(MAE.name)
        if not summary.protocol.measures_fidelity or found is None:
            continue
        unit = summary.protocol.unit
        mean = metric_text(MAE.name, summary.protocol, found.mean)
        interval = interval_text(MAE.name, summary.protocol, found.low, found.high)
        between = f", 95 % interval {interval}" if interval else ""
        said.append(
            f"The synthetic {direction.target} differs from the true one by {mean} {unit} on average "
            f"({summary.subjects} {who}{between}; {name})."
        )
        rival = _nearest(name, others)
        if rival is not None:
            theirs = metric_text(MAE.name, summary.protocol, rival[1].mean)
            better = "less" if found.mean < rival[1].mean else "no less"
            said.append(f"That is {better} than the best translator that never learned: {rival[0]}, {theirs} {unit}.")
        if summary.subjects < FEW_PATIENTS:
            said.append(f"{summary.subjects} {who} are few: the interval is narrower than it should be.")
        break
    if not said:
        said.append(
            "No image was compared with a true one of the same patient, so nothing here says that a synthetic image "
            "shows this patient's anatomy."
        )
    return said


def lesion_words(table: LesionTable) -> str:
    """Say what became of the lesions of one direction."""
    target, total = table.direction.target, len(table.rows)
    if not total:
        return f"No lesion could be asked of the synthetic {target}."
    share = f"{percent(table.kept / total)}, 95 % interval {percent(table.low)} to {percent(table.high)}"
    said = f"Of {total} lesions put into the inputs the synthetic {target} shows {table.kept} ({share})"
    if table.invented is not None:
        said += " and invents none" if table.invented == 0 else f" and invents {count_text(table.invented)} an image"
    if table.false_findings is not None:
        said += f"; without lesions it shows {count_text(table.false_findings)} blobs an image that the truth does not"
    return f"{said} (lesions)."


def robustness_words(curves: Sequence[tuple[str, Sequence[float]]], metric: str) -> str:
    """Say which disturbance hurts most, from (name, means from strength 0 on)."""
    growth = {name: means[-1] - means[0] for name, means in curves}
    worst = max(sorted(growth), key=lambda name: growth[name])
    start = next(means[0] for name, means in curves if name == worst)
    if growth[worst] <= 0:
        return "No disturbance of the inputs makes the translations worse."
    if start > 0:
        grown = percent(growth[worst] / start)
        return f"Of the disturbances {worst} hurts most: at its strongest the {metric} grows by {grown}."
    return f"Of the disturbances {worst} changes the translations most."


def uncertainty_words(correlations: Mapping[str, float]) -> str:
    """Say whether uncertainty tells where the errors are, from kind → rank correlation."""
    best = max(sorted(correlations), key=lambda name: correlations[name])
    value = correlations[best]
    if value >= STRONG_CORRELATION:
        verb = "tells well"
    elif value >= WEAK_CORRELATION:
        verb = "tells in part"
    else:
        verb = "hardly tells"
    return f"Uncertainty ({best}) {verb} where the errors are: rank correlation {value:.2f}."


def percent(share: float) -> str:
    """A share as whole percent."""
    return f"{100 * share:.0f} %"


def _nearest(name: str, others: Mapping[str, Mapping[str, Summary]]) -> tuple[str, MetricSummary] | None:
    measured = {who: s[name].metrics.get(MAE.name) for who, s in others.items() if name in s}
    found = {who: m for who, m in measured.items() if m is not None and not math.isnan(m.mean)}
    return min(sorted(found.items()), key=lambda item: item[1].mean) if found else None
