"""Protocol: what a PSNR, SSIM or MAE means; CaseMetrics: one case's numbers under exactly one protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ctmr.errors import InputError


class Pairing(StrEnum):
    """Which two images a number compares."""

    PAIRED = "paired"
    CYCLE = "cycle"
    INPUT = "input"
    UNPAIRED_PIXELS = "unpaired_pixels"
    UNPAIRED_DISTRIBUTION = "unpaired_distribution"


class Mask(StrEnum):
    """Where a number is taken."""

    NONE = "none"
    HEAD_FROM_CT = "head_from_ct"
    HEAD_FROM_CT_AND_MR = "head_from_ct_and_mr"
    HEAD_FROM_GREY = "head_from_grey"
    GIVEN = "given"


class SsimWindow(StrEnum):
    """Window of the structural similarity."""

    NONE = "none"
    UNIFORM_7_3D = "uniform_7_3d"
    GAUSSIAN_11_2D = "gaussian_11_sigma_1.5_2d"
    MS_SSIM_5 = "ms_ssim_5_scales"


class GridKind(StrEnum):
    """On whose voxels a number is taken."""

    NATIVE = "native"
    MODEL = "model"


class Metric(StrEnum):
    """Names of metrics, the same in code, gates, tables and MLflow."""

    MAE = "mae"
    MSE = "mse"
    RMSE = "rmse"
    PSNR = "psnr"
    SSIM = "ssim"
    MS_SSIM = "ms_ssim"
    MAE_BONE = "mae_bone"
    MAE_SOFT = "mae_soft"
    MAE_AIR = "mae_air"
    DICE_BONE = "dice_bone"
    NMI = "nmi"
    GRADIENT_CORRELATION = "gradient_correlation"
    EDGE_OVERLAP = "edge_overlap"
    KID = "kid"
    KID_SD = "kid_sd"
    FID = "fid"


@dataclass(frozen=True)
class Protocol:
    """How a number was measured. Two numbers of different protocols are never compared.

    Attributes
    ----------
    name
        One of `PROTOCOLS`.
    pairing, mask, ssim_window, grid
        See the enums.
    clip
        Values are clipped to this range first; ``None``: not clipped.
    data_range
        MAX of PSNR and L of SSIM; ``None`` where neither is defined.
    unit
        Unit of MAE and RMSE (``HU``, ``grey levels``, ``as trained``).
    volume
        True: one number a volume; False: one number a slice.
    variant
        Distinguishes otherwise equal protocols (an extractor's name, a challenge's variant).
    """

    name: str
    pairing: Pairing
    mask: Mask
    clip: tuple[float, float] | None
    data_range: float | None
    unit: str
    ssim_window: SsimWindow
    volume: bool
    grid: GridKind = GridKind.NATIVE
    variant: str = ""

    @property
    def measures_fidelity(self) -> bool:
        """True when the truth of the same patient is compared."""
        return self.pairing is Pairing.PAIRED

    @property
    def may_gate(self) -> bool:
        """Unpaired pixel differences only rebuild papers' tables; they can never be in a gate."""
        return self.pairing is not Pairing.UNPAIRED_PIXELS

    def describe(self) -> str:
        """One line for tables and reports."""
        clip = "not clipped" if self.clip is None else f"clipped to [{self.clip[0]:g}, {self.clip[1]:g}]"
        rng = "" if self.data_range is None else f", range {self.data_range:g}"
        variant = f", {self.variant}" if self.variant else ""
        what = "volume" if self.volume else "slice"
        return (
            f"{self.name}: {self.pairing}, mask {self.mask}, {clip}{rng}, {self.unit}, "
            f"per {what}, {self.grid} grid{variant}"
        )


_G11 = SsimWindow.GAUSSIAN_11_2D
PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("paired_volume_hu", Pairing.PAIRED, Mask.HEAD_FROM_CT, (-1024.0, 3000.0), 4024.0, "HU",
                 SsimWindow.UNIFORM_7_3D, volume=True),
        Protocol("synthrad2023", Pairing.PAIRED, Mask.GIVEN, (-1024.0, 3000.0), 4024.0, "HU",
                 SsimWindow.UNIFORM_7_3D, volume=True),
        Protocol("synthrad2025", Pairing.PAIRED, Mask.GIVEN, (-1024.0, 3071.0), 4095.0, "HU",
                 SsimWindow.MS_SSIM_5, volume=True, variant="evaluation code"),
        Protocol("synthrad2025_metrics", Pairing.PAIRED, Mask.GIVEN, (-1024.0, 3000.0), 4024.0, "HU",
                 SsimWindow.MS_SSIM_5, volume=True, variant="metrics repository"),
        Protocol("wolterink", Pairing.PAIRED, Mask.HEAD_FROM_CT_AND_MR, None, 4095.0, "HU",
                 SsimWindow.NONE, volume=True),
        Protocol("paired_slice_grey8", Pairing.PAIRED, Mask.HEAD_FROM_GREY, (0.0, 255.0), 255.0, "grey levels", _G11,
                 volume=False),
        Protocol("paired_slice_grey8_full", Pairing.PAIRED, Mask.NONE, (0.0, 255.0), 255.0, "grey levels", _G11,
                 volume=False),
        Protocol("cycle_slice", Pairing.CYCLE, Mask.NONE, (-1.0, 1.0), 2.0, "as trained", _G11, volume=False,
                 grid=GridKind.MODEL),
        Protocol("unpaired_pixels", Pairing.UNPAIRED_PIXELS, Mask.NONE, None, None, "as the paper", SsimWindow.NONE,
                 volume=False, grid=GridKind.MODEL),
        Protocol("unpaired_distribution", Pairing.UNPAIRED_DISTRIBUTION, Mask.NONE, None, None, "feature distance",
                 SsimWindow.NONE, volume=False, grid=GridKind.MODEL),
        Protocol("structure", Pairing.INPUT, Mask.HEAD_FROM_GREY, None, None, "dimensionless", SsimWindow.NONE,
                 volume=False, grid=GridKind.MODEL),
    )
}  # fmt: skip
"""Every protocol by name; docs/precision.md states each with formulas and sources."""


def protocol(name: str) -> Protocol:
    """Return the protocol of that name, or raise InputError naming the allowed ones."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise InputError(f"there is no protocol {name!r}; the protocols are {', '.join(sorted(PROTOCOLS))}") from None


@dataclass(frozen=True)
class CaseMetrics:
    """The metrics of one case under one protocol.

    Raises ``ValueError`` when the numbers contradict each other: on one mask and clip,
    ``MAE ≤ RMSE = MAX / 10^(PSNR/20)``.

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
        unknown = sorted(set(self.values) - {m.value for m in Metric})
        if unknown:
            raise ValueError(f"case {self.case}: no metric is called {unknown}; the metrics are {sorted(Metric)}")
        check_consistent(self.values, self.protocol.data_range, where=f"case {self.case} under {self.protocol.name}")

    def difference(self, other: CaseMetrics) -> dict[str, float]:
        """Return ``self - other`` for every shared metric; TypeError when the protocols differ."""
        require_same_protocol((self.protocol, other.protocol))
        return {k: v - other.values[k] for k, v in self.values.items() if k in other.values}


def require_same_protocol(protocols: Iterable[Protocol]) -> Protocol:
    """Return the one protocol that all share; TypeError naming two that differ."""
    seen = list(dict.fromkeys(protocols))
    if not seen:
        raise TypeError("there is nothing to compare: no protocol was given")
    if len(seen) > 1:
        raise TypeError(
            f"numbers of different protocols cannot be compared: {seen[0].describe()} against {seen[1].describe()}"
        )
    return seen[0]


def check_consistent(
    values: Mapping[str, float], data_range: float | None, *, where: str, tolerance: float = 1e-4
) -> None:
    """Raise ``ValueError`` when MAE, MSE, RMSE and PSNR cannot come from one pair of images.

    Parameters
    ----------
    values
        Any of ``mae``, ``mse``, ``rmse``, ``psnr``.
    data_range
        MAX of the PSNR; ``None`` skips what needs it.
    where
        Named in the message.
    tolerance
        Relative tolerance; printed numbers are rounded.

    Notes
    -----
    By Jensen's inequality the mean absolute error is at most the root of the mean squared error.
    """
    mae, mse, rmse, psnr = (values.get(k) for k in (Metric.MAE, Metric.MSE, Metric.RMSE, Metric.PSNR))
    if rmse is None and mse is not None:
        rmse = math.sqrt(mse)
    if psnr is not None and data_range is not None and math.isfinite(psnr):
        implied = data_range / 10 ** (psnr / 20)
        if rmse is None:
            rmse = implied
        elif abs(implied - rmse) > tolerance * max(implied, rmse):
            raise ValueError(
                f"{where}: PSNR {psnr:g} dB over range {data_range:g} implies RMSE {implied:g}, but RMSE is {rmse:g}"
            )
    if mae is not None and rmse is not None and mae > rmse * (1 + tolerance) + 1e-12:
        raise ValueError(f"{where}: MAE {mae:g} is above RMSE {rmse:g}, which no pair of images can give")
