"""Protocol: what a PSNR, SSIM or MAE means; CaseMetrics: one case's numbers under exactly one protocol."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ctmr.errors import InputError

_ROUNDING = 1e-9
"""Absolute rounding of float64 sums that a bound must forgive."""


class Pairing(StrEnum):
    """Pair of images that a number compares."""

    PAIRED = "paired"
    CYCLE = "cycle"
    INPUT = "input"
    LESION = "with and without lesions"
    UNPAIRED_PIXELS = "unpaired_pixels"
    UNPAIRED_DISTRIBUTION = "unpaired_distribution"


class Mask(StrEnum):
    """Region where a number is taken."""

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
    FLICKER = "flicker"
    KID = "kid"
    KID_SD = "kid_sd"
    FID = "fid"
    DETECTION_RATE = "detection_rate"
    INVENTED = "invented"
    FALSE_FINDINGS = "false_findings"

    @property
    def higher_is_better(self) -> bool | None:
        """Direction that is good; ``None`` where neither is: best in between, or a spread."""
        return None if self in _NO_DIRECTION else self in _HIGHER_IS_BETTER

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that any images can give."""
        return _BOUNDS.get(self, (-math.inf, math.inf))


_NO_DIRECTION = frozenset({Metric.FLICKER, Metric.KID_SD})
_HIGHER_IS_BETTER = frozenset(
    {
        Metric.PSNR,
        Metric.SSIM,
        Metric.MS_SSIM,
        Metric.DICE_BONE,
        Metric.NMI,
        Metric.GRADIENT_CORRELATION,
        Metric.EDGE_OVERLAP,
        Metric.DETECTION_RATE,
    }
)
_ERRORS = (Metric.MAE, Metric.MSE, Metric.RMSE, Metric.MAE_BONE, Metric.MAE_SOFT, Metric.MAE_AIR)
_BOUNDS: dict[Metric, tuple[float, float]] = {
    **dict.fromkeys(
        (*_ERRORS, Metric.FLICKER, Metric.KID_SD, Metric.FID, Metric.INVENTED, Metric.FALSE_FINDINGS), (0.0, math.inf)
    ),
    **dict.fromkeys((Metric.SSIM, Metric.GRADIENT_CORRELATION), (-1.0, 1.0)),
    **dict.fromkeys(
        (Metric.MS_SSIM, Metric.DICE_BONE, Metric.NMI, Metric.EDGE_OVERLAP, Metric.DETECTION_RATE), (0.0, 1.0)
    ),
}


@dataclass(frozen=True)
class Protocol:
    """Definition of how a number is measured. Two numbers of different protocols are never compared.

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
    ssim_border
        Voxels at each side of the image that the mean of SSIM leaves out.
    mae_clipped
        False: MAE is taken before clipping, so it may exceed RMSE, which is taken after.
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
    ssim_border: int = 0
    mae_clipped: bool = True
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
        """One line for tables and reports; two protocols that differ anywhere describe themselves differently."""
        clip = "not clipped" if self.clip is None else f"clipped to [{self.clip[0]:g}, {self.clip[1]:g}]"
        parts = [f"{self.name}: {self.pairing}, mask {self.mask}", clip + ("" if self.mae_clipped else " but the MAE")]
        if self.data_range is not None:
            parts.append(f"range {self.data_range:g}")
        parts.append(self.unit)
        if self.ssim_window is not SsimWindow.NONE:
            border = f" without {self.ssim_border} voxels of border" if self.ssim_border else ""
            parts.append(f"SSIM {self.ssim_window}{border}")
        parts.append(f"per {'volume' if self.volume else 'slice'}, {self.grid} grid")
        return ", ".join([*parts, self.variant] if self.variant else parts)


_G11 = SsimWindow.GAUSSIAN_11_2D
_CLIP_2023, _CLIP_2025 = (-1024.0, 3000.0), (-1024.0, 3071.0)
PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "paired_volume_hu",
            Pairing.PAIRED,
            Mask.HEAD_FROM_CT,
            _CLIP_2023,
            4024.0,
            "HU",
            SsimWindow.UNIFORM_7_3D,
            volume=True,
        ),
        Protocol(
            "synthrad2023",
            Pairing.PAIRED,
            Mask.GIVEN,
            _CLIP_2023,
            4024.0,
            "HU",
            SsimWindow.UNIFORM_7_3D,
            volume=True,
            ssim_border=3,
            mae_clipped=False,
        ),
        Protocol(
            "synthrad2025",
            Pairing.PAIRED,
            Mask.GIVEN,
            _CLIP_2025,
            4095.0,
            "HU",
            SsimWindow.MS_SSIM_5,
            volume=True,
            ssim_border=3,
            mae_clipped=False,
            variant="evaluation code",
        ),
        Protocol(
            "synthrad2025_metrics",
            Pairing.PAIRED,
            Mask.GIVEN,
            _CLIP_2023,
            4024.0,
            "HU",
            SsimWindow.MS_SSIM_5,
            volume=True,
            ssim_border=3,
            mae_clipped=False,
            variant="metrics repository",
        ),
        Protocol(
            "wolterink", Pairing.PAIRED, Mask.HEAD_FROM_CT_AND_MR, None, 4095.0, "HU", SsimWindow.NONE, volume=True
        ),
        Protocol(
            "paired_slice_grey8",
            Pairing.PAIRED,
            Mask.HEAD_FROM_GREY,
            (0.0, 255.0),
            255.0,
            "grey levels",
            _G11,
            volume=False,
        ),
        Protocol(
            "paired_slice_grey8_full",
            Pairing.PAIRED,
            Mask.NONE,
            (0.0, 255.0),
            255.0,
            "grey levels",
            _G11,
            volume=False,
            ssim_border=5,
        ),
        Protocol(
            "cycle_slice",
            Pairing.CYCLE,
            Mask.NONE,
            (-1.0, 1.0),
            2.0,
            "as trained",
            _G11,
            volume=False,
            grid=GridKind.MODEL,
            ssim_border=5,
        ),
        Protocol(
            "unpaired_pixels",
            Pairing.UNPAIRED_PIXELS,
            Mask.NONE,
            None,
            None,
            "as the paper",
            SsimWindow.NONE,
            volume=False,
            grid=GridKind.MODEL,
        ),
        Protocol(
            "unpaired_distribution",
            Pairing.UNPAIRED_DISTRIBUTION,
            Mask.NONE,
            None,
            None,
            "feature distance",
            SsimWindow.NONE,
            volume=False,
            grid=GridKind.MODEL,
        ),
        Protocol(
            "structure",
            Pairing.INPUT,
            Mask.HEAD_FROM_GREY,
            None,
            None,
            "dimensionless",
            SsimWindow.NONE,
            volume=False,
            grid=GridKind.MODEL,
        ),
        Protocol(
            "lesions",
            Pairing.LESION,
            Mask.HEAD_FROM_GREY,
            None,
            None,
            "share or count of lesions",
            SsimWindow.NONE,
            volume=True,
            grid=GridKind.MODEL,
        ),
    )
}
"""Every protocol by name; docs/precision.md states each with formulas and sources."""


def protocol(name: str) -> Protocol:
    """Return the protocol of that name, or raise InputError naming the allowed ones."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise InputError(f"there is no protocol {name!r}; the protocols are {', '.join(sorted(PROTOCOLS))}") from None


def read_description(text: str) -> Protocol:
    """Return the protocol whose `Protocol.describe` gave this text.

    Raises
    ------
    InputError
        When no protocol of this version describes itself so: the numbers beside the text mean something else.
    """
    stated = re.search(r", range (\S+),", text)
    for known in PROTOCOLS.values():
        if known.data_range is None and stated is not None:
            known = replace(known, data_range=float(stated[1]))
        plain = known.describe()
        if text == plain:
            return known
        if not known.variant and text.startswith(f"{plain}, "):
            return replace(known, variant=text.removeprefix(f"{plain}, "))
    known_now = PROTOCOLS.get(text.partition(":")[0])
    now = "unknown to this version" if known_now is None else f"not this version's {known_now.describe()!r}"
    raise InputError(f"the protocol {text!r} is {now}; evaluate again with this version to compare the numbers")


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
        unknown = sorted(set(self.values) - {m.value for m in Metric})
        if unknown:
            raise ValueError(f"case {self.case}: no metric is called {unknown}; the metrics are {sorted(Metric)}")
        where = f"case {self.case} under {self.protocol.name}"
        for name, value in self.values.items():
            low, high = Metric(name).bounds
            if not low - _ROUNDING <= value <= high + _ROUNDING:
                raise ValueError(f"{where}: {name} is {value:g}; it lies between {low:g} and {high:g} for any images")
        check_consistent(
            self.values,
            self.protocol.data_range,
            where=where,
            mae_clipped=self.protocol.mae_clipped,
            bounded=self.protocol.clip is not None,
        )

    def difference(self, other: CaseMetrics) -> dict[str, float]:
        """Return ``self - other`` for every shared metric; TypeError when the protocols differ."""
        require_same_protocol((self.protocol, other.protocol))
        return {k: v - other.values[k] for k, v in self.values.items() if k in other.values}


class UnlikeProtocolsError(TypeError):
    """Numbers of different protocols were to be compared, or none at all."""


def require_same_protocol(protocols: Iterable[Protocol]) -> Protocol:
    """Return the one protocol that all share; UnlikeProtocolsError, a TypeError, naming two that differ."""
    seen = list(dict.fromkeys(protocols))
    if not seen:
        raise UnlikeProtocolsError("there is nothing to compare: no protocol was given")
    if len(seen) > 1:
        raise UnlikeProtocolsError(
            f"numbers of different protocols cannot be compared: {seen[0].describe()} against {seen[1].describe()}"
        )
    return seen[0]


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
    mae, mse, rmse, psnr = (values.get(k) for k in (Metric.MAE, Metric.MSE, Metric.RMSE, Metric.PSNR))

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
    tissues = [values[k] for k in (Metric.MAE_BONE, Metric.MAE_SOFT, Metric.MAE_AIR) if k in values]
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
