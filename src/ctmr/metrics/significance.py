"""Paired tests: whether two models differ on the same patients, by Wilcoxon's signed ranks and by the paired t-test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ctmr.errors import InputError
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import require_same_protocol
from ctmr.metrics.registry import METRICS
from ctmr.metrics.stats import bootstrap_interval, finite_or_none, per_patient

SIGNIFICANCE = 0.05
EXACT_UP_TO = 500
"""Patients up to which the distribution of Wilcoxon's statistic is counted out; beyond, it is normal."""


@dataclass(frozen=True)
class PairedTest:
    """One metric of two models on the same patients, *a* less *b*.

    Attributes
    ----------
    metric
        Which.
    subjects
        Patients with the metric in both models.
    difference
        Mean over patients of a - b; ``None`` where a PSNR of equal images makes it infinite.
    low, high
        Bootstrap 95 % interval of `difference` over patients; ``None`` with fewer than 2 patients.
    wilcoxon_p
        Two-sided p of Wilcoxon's signed-rank test, exact up to `EXACT_UP_TO` patients, ties included; ``None`` with
        fewer than 2 patients.
    t_p
        Two-sided p of the paired t-test; ``None`` where it is not defined.
    wilcoxon_holm, t_holm
        The same after Holm's correction over all metrics that were tested together.
    note
        What a reader must know about this row: ties, equal models, too few patients. Empty when nothing.
    """

    metric: str
    subjects: int
    difference: float | None
    low: float | None
    high: float | None
    wilcoxon_p: float | None
    t_p: float | None
    wilcoxon_holm: float | None = None
    t_holm: float | None = None
    note: str = ""

    @property
    def significant(self) -> bool:
        """Wilcoxon's p after Holm's correction is below 0.05."""
        return self.wilcoxon_holm is not None and self.wilcoxon_holm < SIGNIFICANCE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"significant": self.significant}


def compare_cases(
    a: Sequence[CaseMetrics],
    b: Sequence[CaseMetrics],
    *,
    names: tuple[str, str] = ("a", "b"),
) -> list[PairedTest]:
    """Test every metric that both models have on the same cases, a patient's cases averaged first.

    Parameters
    ----------
    a, b
        All cases of the two models under one protocol.
    names
        What the models are called in messages.

    Returns
    -------
    list
        One row a metric, in the order of the registry, *not* yet corrected: `correct` does that over the family that
        the caller tests. What says nothing of its own is left out, see `Metric.tested`.

    Raises
    ------
    TypeError
        When protocols differ, or there is no case.
    InputError
        When the cases, or their patients, are not the same; the message names them.
    """
    require_same_protocol(c.protocol for c in (*a, *b))
    require_same_cases(a, b, names)
    shared = {k for c in a for k in c.values} & {k for c in b for k in c.values}
    tests = []
    for metric in (m.name for m in METRICS.values() if m.tested and m.name in shared):
        here, there = per_patient(a, metric), per_patient(b, metric)
        both = sorted(set(here) & set(there))
        test = _tested(metric, [here[p] for p in both], [there[p] for p in both])
        if len(both) < len({*here, *there}):
            missing = len({*here, *there}) - len(both)
            lacking = f"{_patients(missing)} {'have' if missing > 1 else 'has'} it in one model only"
            test = replace(test, note="; ".join(filter(None, (test.note, lacking))))
        tests.append(test)
    return tests


def require_same_cases(a: Sequence[CaseMetrics], b: Sequence[CaseMetrics], names: tuple[str, str]) -> None:
    """Raise InputError when two models were not measured on the same cases of the same patients."""
    mine, theirs = ({c.case: c.subject for c in cases} for cases in (a, b))
    for cases, known, name in ((a, mine, names[0]), (b, theirs, names[1])):
        if len(cases) != len(known):
            raise InputError(f"{name} lists {len(cases)} cases under {len(known)} names; a case is measured once")
    only = [(name, sorted(set(x) - set(y))) for name, x, y in ((names[0], mine, theirs), (names[1], theirs, mine))]
    if any(cases for _, cases in only):
        words = "; ".join(f"only {name} has {_some(cases)}" for name, cases in only if cases)
        raise InputError(f"{names[0]} and {names[1]} were not measured on the same cases: {words}")
    for case in sorted(mine):
        if mine[case] != theirs[case]:
            raise InputError(
                f"case {case} is of patient {mine[case]!r} in {names[0]} and of {theirs[case]!r} in {names[1]}; "
                "a paired test needs the same patients"
            )


def correct(families: Sequence[Sequence[PairedTest]]) -> list[list[PairedTest]]:
    """Return the tests with Holm's correction over all of them together; their order and grouping stay."""
    flat = [t for tests in families for t in tests]
    ranks, means = holm([t.wilcoxon_p for t in flat]), holm([t.t_p for t in flat])
    done = iter([replace(t, wilcoxon_holm=w, t_holm=m) for t, w, m in zip(flat, ranks, means, strict=True)])
    return [[next(done) for _ in tests] for tests in families]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment; ``None`` was not tested and stays.

    References
    ----------
    Holm: A simple sequentially rejective multiple test procedure, 1979.
    """
    order = sorted((p, k) for k, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, k) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[k] = largest
    return adjusted


def wilcoxon_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test.

    Parameters
    ----------
    differences
        ``[N]``, one a patient; may be infinite. Zeros are left out, as Wilcoxon did; equal sizes share their rank.

    Returns
    -------
    float
        1 where nothing is left. Up to `EXACT_UP_TO` patients exact, whether or not ranks are shared: all 2^N signs
        are counted. Beyond, the normal approximation with the variance of the shared ranks.

    References
    ----------
    Wilcoxon: Individual comparisons by ranking methods, 1945.
    """
    left = differences[differences != 0]
    if left.size == 0:
        return 1.0
    if left.size > EXACT_UP_TO:
        return float(stats.wilcoxon(left, correction=False, method="asymptotic").pvalue)
    # Twice the rank, so that shared ranks are whole numbers too: scipy's exact test is of distinct ranks alone.
    doubled = np.rint(2 * stats.rankdata(np.abs(left))).astype(np.int64)
    positive, total = int(doubled[left > 0].sum()), int(doubled.sum())
    extreme = min(positive, total - positive)
    chances = np.zeros(total + 1)
    chances[0] = 1.0
    for rank in doubled:
        chances[rank:] = (chances[rank:] + chances[: total + 1 - rank]) / 2
        chances[:rank] /= 2
    return float(min(1.0, 2 * chances[: extreme + 1].sum()))


def t_test_p(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p of the paired t-test, as Wolterink et al. used it; ``None`` where all differences are equal.

    Differences that are all zero give 1.
    """
    if not differences.any():
        return 1.0
    if differences.size < 2 or not np.isfinite(differences).all():
        return None
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    # What is left of equal differences is rounding, and would pass for the strongest of effects.
    if error <= 1e-12 * float(np.abs(differences).max()):
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _tested(metric: str, here: list[float], there: list[float]) -> PairedTest:
    # Two infinite PSNR are equal; their difference is no number.
    differences = np.array([0.0 if x == y else x - y for x, y in zip(here, there, strict=True)])
    count = differences.size
    if count < 2:
        mean = float(differences.mean()) if count else math.nan
        words = f"{_patients(count)}: nothing can be tested"
        return PairedTest(metric, count, finite_or_none(mean), None, None, None, None, note=words)
    low, high = bootstrap_interval(differences)
    return PairedTest(
        metric,
        count,
        finite_or_none(float(differences.mean())),
        finite_or_none(low),
        finite_or_none(high),
        wilcoxon_p(differences),
        t_test_p(differences),
        note="; ".join(_notes(differences)),
    )


def _notes(differences: NDArray[np.float64]) -> list[str]:
    left = differences[differences != 0]
    if left.size == 0:
        return ["both models are equal on every patient"]
    notes = []
    if left.size < differences.size:
        notes.append(f"the rank test leaves out {_patients(differences.size - left.size)} without a difference")
    if len(np.unique(np.abs(left))) < left.size:
        notes.append("differences of equal size share ranks")
    if not np.isfinite(differences).all():
        notes.append("a PSNR of equal images is infinite, so there is no mean and no t-test")
    elif t_test_p(differences) is None:
        notes.append("all differences are equal, so there is no t-test")
    smallest = 2.0 ** (1 - left.size)
    if smallest >= SIGNIFICANCE:
        notes.append(f"with {_patients(left.size)} that differ the rank test's p is at least {smallest:.3g}")
    return notes


def _patients(count: int) -> str:
    return f"{count} patient{'' if count == 1 else 's'}"


def _some(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - 3} more" if len(cases) > 3 else ""
    return ", ".join(cases[:3]) + more
