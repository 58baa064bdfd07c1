"""Protocol: what a PSNR, SSIM or MAE means, and which numbers may be compared."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import CLIP_HU, SCANNER_RANGE_HU


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


VOLUME_WINDOW_SIDE = 7
"""Voxels of `SsimWindow.UNIFORM_7_3D` along each axis; a thinner volume has no SSIM."""


class Unmeasurable(InputError, ValueError):
    """Images too small for a metric, or a mask without a voxel: nobody's program can measure them."""


class GridKind(StrEnum):
    """On whose voxels a number is taken."""

    NATIVE = "native"
    MODEL = "model"


@dataclass(frozen=True)
class Protocol:
    """Definition of how a number is measured. Two numbers of different protocols are never compared.

    Attributes
    ----------
    name
        One of `PROTOCOLS`.
    pairing, mask, ssim_window, grid
        See the enums.
    unit
        Unit of MAE and RMSE (``HU``, ``grey levels``, ``as trained``).
    clip
        Values are clipped to this range first; ``None``: not clipped.
    data_range
        MAX of PSNR and L of SSIM; ``None`` where neither is defined.
    volume
        True: one number a volume; False: one number a slice.
    ssim_border
        Voxels at each side of the image that the mean of SSIM leaves out.
    mae_clipped
        False: MAE is taken before clipping, so it may exceed RMSE, which is taken after.
    variant
        Distinguishes otherwise equal protocols (an extractor's name, a challenge's variant).

    Examples
    --------
    >>> ours, challenge = PROTOCOLS["paired_volume_hu"], PROTOCOLS["synthrad2023"]
    >>> ours.clip, ours.data_range, ours.measures_fidelity
    ((-1024.0, 3000.0), 4024.0, True)
    >>> require_same_protocol([ours, challenge])
    Traceback (most recent call last):
    ctmr.metrics.protocol.UnlikeProtocolsError: numbers of different protocols cannot be compared: ...
    """

    name: str
    pairing: Pairing
    mask: Mask
    unit: str
    clip: tuple[float, float] | None = None
    data_range: float | None = None
    ssim_window: SsimWindow = SsimWindow.NONE
    volume: bool = False
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


_GREY_255 = (0.0, 255.0)
_U7, _G11, _MS = SsimWindow.UNIFORM_7_3D, SsimWindow.GAUSSIAN_11_2D, SsimWindow.MS_SSIM_5
_MODEL = GridKind.MODEL
_SYNTHRAD = Protocol(
    "synthrad2023",
    Pairing.PAIRED,
    Mask.GIVEN,
    "HU",
    CLIP_HU,
    4024.0,
    _U7,
    volume=True,
    ssim_border=3,
    mae_clipped=False,
)
_GREY = Protocol("paired_slice_grey8", Pairing.PAIRED, Mask.HEAD_FROM_GREY, "grey levels", _GREY_255, 255.0, _G11)
PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("paired_volume_hu", Pairing.PAIRED, Mask.HEAD_FROM_CT, "HU", CLIP_HU, 4024.0, _U7, volume=True),
        _SYNTHRAD,
        replace(
            _SYNTHRAD,
            name="synthrad2025",
            clip=SCANNER_RANGE_HU,
            data_range=4095.0,
            ssim_window=_MS,
            variant="evaluation code",
        ),
        replace(_SYNTHRAD, name="synthrad2025_metrics", ssim_window=_MS, variant="metrics repository"),
        Protocol("wolterink", Pairing.PAIRED, Mask.HEAD_FROM_CT_AND_MR, "HU", data_range=4095.0, volume=True),
        _GREY,
        replace(_GREY, name="paired_slice_grey8_full", mask=Mask.NONE, ssim_border=5),
        Protocol(
            "cycle_slice", Pairing.CYCLE, Mask.NONE, "as trained", (-1.0, 1.0), 2.0, _G11, grid=_MODEL, ssim_border=5
        ),
        Protocol("unpaired_pixels", Pairing.UNPAIRED_PIXELS, Mask.NONE, "as the paper", grid=_MODEL),
        Protocol("unpaired_distribution", Pairing.UNPAIRED_DISTRIBUTION, Mask.NONE, "feature distance", grid=_MODEL),
        Protocol("structure", Pairing.INPUT, Mask.HEAD_FROM_GREY, "dimensionless", grid=_MODEL),
        Protocol("lesions", Pairing.LESION, Mask.HEAD_FROM_GREY, "share or count of lesions", volume=True, grid=_MODEL),
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
