"""Words: what a verdict's numbers mean, in sentences for people who know images better than metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ctmr.imaging.volume import Direction
from ctmr.metrics.registry import FALSE_FINDINGS, INVENTED, MAE
from ctmr.metrics.stats import FEW_PATIENTS, MetricSummary, Summary
from ctmr.reports.html import count_text
from ctmr.reports.numbers import interval_text, metric_text

if TYPE_CHECKING:
    from ctmr.evaluation.lesions import LesionTest
    from ctmr.evaluation.robustness import RobustnessResult
    from ctmr.evaluation.uncertainty import Measure

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


def lesion_words(test: LesionTest) -> str:
    """Say what became of the lesions of one direction."""
    target, total = test.direction.target, len(test.responses)
    if not total:
        return f"No lesion could be asked of the synthetic {target}."
    low, high = test.rate_interval()
    share = f"{percent(test.kept / total)}, 95 % interval {percent(low)} to {percent(high)}"
    said = f"Of {total} lesions put into the inputs the synthetic {target} shows {test.kept} ({share})"
    invented, false = test.counts(INVENTED), test.counts(FALSE_FINDINGS)
    if invented is not None:
        said += " and invents none" if invented[0] == 0 else f" and invents {count_text(invented[0])} an image"
    if false is not None:
        said += f"; without lesions it shows {count_text(false[0])} blobs an image that the truth does not"
    return f"{said} (lesions)."


def robustness_words(sweep: RobustnessResult) -> str:
    """Say which disturbance hurts most."""
    worst = max(sorted(sweep.curves, key=lambda c: c.name), key=lambda c: c.means[-1] - c.means[0])
    start, growth = worst.means[0], worst.means[-1] - worst.means[0]
    if growth <= 0:
        return "No disturbance of the inputs makes the translations worse."
    if start > 0:
        grown = percent(growth / start)
        return f"Of the disturbances {worst.name} hurts most: at its strongest the {sweep.metric} grows by {grown}."
    return f"Of the disturbances {worst.name} changes the translations most."


def uncertainty_words(measures: Sequence[Measure]) -> str:
    """Say whether uncertainty tells where the errors are."""
    best = max(sorted(measures, key=lambda m: m.name), key=lambda m: m.spearman)
    if best.spearman >= STRONG_CORRELATION:
        verb = "tells well"
    elif best.spearman >= WEAK_CORRELATION:
        verb = "tells in part"
    else:
        verb = "hardly tells"
    return f"Uncertainty ({best.name}) {verb} where the errors are: rank correlation {best.spearman:.2f}."


def percent(share: float) -> str:
    """A share as whole percent."""
    return f"{100 * share:.0f} %"


def _nearest(name: str, others: Mapping[str, Mapping[str, Summary]]) -> tuple[str, MetricSummary] | None:
    measured = {who: s[name].metrics.get(MAE.name) for who, s in others.items() if name in s}
    found = {who: m for who, m in measured.items() if m is not None and not math.isnan(m.mean)}
    return min(sorted(found.items()), key=lambda item: item[1].mean) if found else None
