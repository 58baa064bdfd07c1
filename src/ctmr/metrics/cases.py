"""Numbers of one case under exactly one protocol; numbers that no images can give are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ctmr.metrics.protocol import Protocol
from ctmr.metrics.registry import MAE, MAE_AIR, MAE_BONE, MAE_SOFT, METRICS, MSE, PSNR, RMSE

_ROUNDING = 1e-9
"""Absolute rounding of float64 sums that a bound must forgive."""


@dataclass(frozen=True)
class CaseMetrics:
    """The metrics of one case under one protocol.

    Raises ``ValueError`` when a number cannot come from any images, or the numbers contradict each other; see
    `check_consistent`.

    Attributes
    ----------
    case
        Identifier of the case (subject, slice).
    subject
        Patient the case belongs to; summaries are over patients.
    protocol
        How every value was measured.
    values
        Metric → number.
    """

    case: str
    subject: str
    protocol: Protocol
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.values) - set(METRICS))
        if unknown:
            raise ValueError(f"case {self.case}: no metric is called {unknown}; the metrics are {sorted(METRICS)}")
        where = f"case {self.case} under {self.protocol.name}"
        for name, value in self.values.items():
            low, high = METRICS[name].bounds
            if not low - _ROUNDING <= value <= high + _ROUNDING:
                raise ValueError(f"{where}: {name} is {value:g}; it lies between {low:g} and {high:g} for any images")
        check_consistent(
            self.values,
            self.protocol.data_range,
            where=where,
            mae_clipped=self.protocol.mae_clipped,
            bounded=self.protocol.clip is not None,
        )


def check_consistent(
    values: Mapping[str, float],
    data_range: float | None,
    *,
    where: str,
    tolerance: float = 1e-4,
    mae_clipped: bool = True,
    bounded: bool = False,
) -> None:
    """Raise ``ValueError`` when MAE, MSE, RMSE and PSNR cannot come from one pair of images.

    Parameters
    ----------
    values
        Any of ``mae``, ``mse``, ``rmse``, ``psnr`` and the tissues' ``mae_*``.
    data_range
        MAX of the PSNR; ``None`` skips what needs it.
    where
        Named in the message.
    tolerance
        Relative tolerance; printed numbers are rounded.
    mae_clipped
        False: the MAE is not of the clipped values that MSE and PSNR are of, so it has no bound from them.
    bounded
        The values lie in an interval of length `data_range`, so no single error is larger.

    Notes
    -----
    With errors e on one mask and clip: ``mean |e| ≤ (mean e²)^½`` by Jensen's inequality, and
    ``mean e² ≤ MAX · mean |e|`` where ``|e| ≤ MAX``. ``RMSE = MAX / 10^(PSNR/20)`` defines the PSNR. The MAE is an
    average of those of bone, soft tissue and air, which divide the mask.
    """
    mae, mse, rmse, psnr = (values.get(m.name) for m in (MAE, MSE, RMSE, PSNR))

    def above(a: float, b: float) -> bool:
        return a > b + tolerance * abs(b) + _ROUNDING

    if mse is not None:
        if rmse is not None and (above(rmse**2, mse) or above(mse, rmse**2)):
            raise ValueError(f"{where}: RMSE {rmse:g} is not the root of MSE {mse:g}")
        rmse = math.sqrt(mse)
    if psnr is not None and data_range is not None:
        implied = data_range * 10 ** (-psnr / 20)
        if rmse is not None and (above(implied, rmse) or above(rmse, implied)):
            raise ValueError(
                f"{where}: PSNR {psnr:g} dB over range {data_range:g} implies RMSE {implied:g}, but RMSE is {rmse:g}"
            )
        rmse = implied if rmse is None else rmse
    tissues = [values[m.name] for m in (MAE_BONE, MAE_SOFT, MAE_AIR) if m.name in values]
    if mae is not None and len(tissues) == 3 and (above(mae, max(tissues)) or above(min(tissues), mae)):
        raise ValueError(f"{where}: MAE {mae:g} is no average of the MAE of bone, soft tissue and air, {tissues}")
    if mae is None or rmse is None or not mae_clipped:
        return
    if above(mae, rmse):
        raise ValueError(f"{where}: MAE {mae:g} is above RMSE {rmse:g}, which no pair of images can give")
    if bounded and data_range is not None and above(rmse**2, mae * data_range):
        raise ValueError(
            f"{where}: with no error above {data_range:g} and MAE {mae:g}, RMSE {rmse:g} is above its largest possible "
            f"value {math.sqrt(mae * data_range):g}"
        )
