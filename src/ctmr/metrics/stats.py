"""Statistics over patients: mean, standard deviation and a bootstrap interval of per-case metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import Protocol, require_same_protocol

CONFIDENCE = 0.95
FEW_PATIENTS = 12
"""Below, the 95 % interval holds the true mean in fewer than nine of ten samples (normal values)."""
_CHUNK = 256


@dataclass(frozen=True)
class MetricSummary:
    """One metric over patients.

    Attributes
    ----------
    mean, sd
        Of the patients' means; `sd` with n - 1, NaN for one patient.
    low, high
        Bootstrap 95 % interval of the mean over patients (percentiles); NaN for one patient.
    subjects, cases
        How many had the metric.
    """

    mean: float
    sd: float
    low: float
    high: float
    subjects: int
    cases: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite (a PSNR of equal images, the sd of one patient) becomes ``null``."""
        numbers = {"mean": self.mean, "sd": self.sd, "low": self.low, "high": self.high}
        return {k: finite_or_none(v) for k, v in numbers.items()} | {"subjects": self.subjects, "cases": self.cases}


@dataclass(frozen=True)
class Summary:
    """All metrics of one protocol over patients.

    Attributes
    ----------
    protocol
        How every number was measured.
    metrics
        Metric name → summary.
    subjects, cases
        Patients and cases that were measured.
    """

    protocol: Protocol
    metrics: dict[str, MetricSummary]
    subjects: int
    cases: int

    def mean(self, metric: str) -> float | None:
        """Mean of a metric, ``None`` when no case has it."""
        found = self.metrics.get(metric)
        return None if found is None else found.mean

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, keys sorted."""
        return {
            "protocol": self.protocol.describe(),
            "subjects": self.subjects,
            "cases": self.cases,
            "metrics": {k: self.metrics[k].to_dict() for k in sorted(self.metrics)},
        }


def summarise(cases: Sequence[CaseMetrics], *, resamples: int = 2000, seed: int = 0) -> Summary:
    """Summarise cases of one protocol: a mean per patient first, then over patients.

    Parameters
    ----------
    cases
        At least one. Cases of one subject are averaged; a case without subject counts as its own patient.
    resamples
        Bootstrap resamples over patients.
    seed
        Of the resamples.

    Raises
    ------
    TypeError
        When protocols are mixed, or there is no case.

    Notes
    -----
    A mean PSNR is the mean of the cases' PSNRs, that is, of a geometric mean of RMSE; so the bound MAE ≤ RMSE holds
    per case and not for the means.
    """
    protocol = require_same_protocol(c.protocol for c in cases)
    metrics = {}
    for name in sorted({k for c in cases for k in c.values}):
        means = np.array(list(per_patient(cases, name).values()))
        low, high = bootstrap_interval(means, resamples=resamples, seed=seed)
        total = sum(name in c.values for c in cases)
        metrics[name] = MetricSummary(float(means.mean()), _sd(means), low, high, len(means), total)
    return Summary(protocol, metrics, len({_patient(c) for c in cases}), len(cases))


def per_patient(cases: Sequence[CaseMetrics], metric: str) -> dict[str, float]:
    """Return the mean of a metric over each patient's cases, patients sorted; the order of `cases` changes nothing."""
    by_patient: dict[str, list[float]] = {}
    for c in cases:
        if metric in c.values:
            by_patient.setdefault(_patient(c), []).append(c.values[metric])
    return {patient: float(np.mean(sorted(by_patient[patient]))) for patient in sorted(by_patient)}


def bootstrap_interval(values: NDArray[np.float64], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the mean, 95 %.

    Parameters
    ----------
    values
        ``[N]``, one number a patient. Fewer than 2 give (NaN, NaN): one patient has no spread.
    resamples, seed
        Of the draws with replacement.

    Notes
    -----
    Of few patients the interval is too narrow: see `FEW_PATIENTS`.

    References
    ----------
    Efron, Tibshirani: An introduction to the bootstrap, 1993, chapter 13.
    """
    if len(values) < 2 or np.isnan(values).any():
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    chunks = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    means = np.concatenate([values[rng.integers(0, len(values), (n, len(values)))].mean(axis=1) for n in chunks])
    tail = (1.0 - CONFIDENCE) / 2
    # scipy.stats.bootstrap draws the same resamples, but interpolates between them, and between two infinities that
    # is NaN; these methods pick a resample that occurred.
    low = np.quantile(means, tail, method="lower")
    high = np.quantile(means, 1.0 - tail, method="higher")
    return float(low), float(high)


def finite_or_none(value: float | None) -> float | None:
    """Return the value, or ``None`` for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


def _sd(means: NDArray[np.float64]) -> float:
    return float(means.std(ddof=1)) if len(means) > 1 and np.isfinite(means).all() else math.nan


def _patient(case: CaseMetrics) -> str:
    return f"subject {case.subject}" if case.subject else f"case {case.case}"
