"""Registry of metrics: one row says all that code, gates, tables and pages know of a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Flag, auto

from ctmr.metrics import fidelity, structure
from ctmr.metrics.pair import ImagePair
from ctmr.metrics.protocol import PROTOCOLS, Protocol, SsimWindow

OF_IMAGES = "of the images"
"""Unit of a metric that is in the unit of the images: HU, grey levels, as trained."""

HIGHER, LOWER, NEITHER = True, False, None
"""Which way is better."""
_WIDE_RANGE = 100.0
"""Errors of images with a wider range, as HU and grey levels have, are shown with one decimal."""


class Shown(Flag):
    """Places where people see a metric; the JSON documents and ``cases.csv`` have all."""

    TABLE = auto()
    """Tables and plots of the report and of ``ctmr compare``."""
    TERMINAL = auto()
    """The summary of a run in the terminal."""
    BASELINES = auto()
    """The lines of baselines that ``ctmr compare`` prints."""
    HEADLINE = auto()
    """The first numbers of the report."""
    USUAL = TABLE | TERMINAL | BASELINES


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    Attributes
    ----------
    name
        The same in code, gates, tables, files and MLflow.
    title
        What it is, in words.
    higher_is_better
        Which way is good; ``None`` where neither is: best in between, or a spread.
    bounds
        Smallest and largest value that any images can give.
    protocols
        Names of the protocols that carry it.
    measure
        Computes it from an image pair, or returns ``None`` where the pair gives no number; ``None``: it is no number
        of one pair, and the function of its protocol computes it.
    unit
        `OF_IMAGES`, another unit, or empty where it has none.
    digits
        Decimals in tables; see `decimals`.
    shown
        Where.
    tested
        False: `ctmr.metrics.significance` leaves it out, because another metric says the same or it is a spread.
    note
        What its value means, in a few words, where no direction says it.
    """

    name: str
    title: str
    higher_is_better: bool | None
    bounds: tuple[float, float]
    protocols: frozenset[str]
    measure: Callable[[ImagePair], float | None] | None = None
    unit: str = ""
    digits: int = 3
    shown: Shown = Shown.USUAL
    tested: bool = True
    note: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def label(self) -> str:
        """The name for people in a terminal."""
        return self.name.replace("_", " ")

    def unit_under(self, protocol: Protocol) -> str:
        """Return the unit of its values under a protocol; empty where it has none."""
        return protocol.unit if self.unit == OF_IMAGES else self.unit

    def decimals(self, protocol: Protocol) -> int:
        """Return the decimals that a table shows: errors in HU or grey levels need fewer than those as trained."""
        if self.unit != OF_IMAGES:
            return self.digits
        return 1 if protocol.data_range is not None and protocol.data_range > _WIDE_RANGE else 4


METRICS: dict[str, Metric] = {}
"""Every metric by name, in the order in which tables show them."""


def register(metric: Metric) -> Metric:
    """Add a row and return it.

    Raises
    ------
    ValueError
        When the name is taken, or a protocol is unknown.
    """
    if metric.name in METRICS:
        raise ValueError(f"metric {metric.name!r} is registered already")
    unknown = sorted(metric.protocols - set(PROTOCOLS))
    if unknown:
        raise ValueError(f"metric {metric.name!r} names unknown protocols {unknown}; there are {sorted(PROTOCOLS)}")
    METRICS[metric.name] = metric
    return metric


@contextmanager
def registered(metric: Metric) -> Iterator[Metric]:
    """Add a row for the length of a ``with`` block."""
    register(metric)
    try:
        yield metric
    finally:
        del METRICS[metric.name]


def shown_metrics(where: Shown, measured: Sequence[Container[str]]) -> list[Metric]:
    """Return the rows to show in a place: those of which any measurement holds the name."""
    return [m for m in METRICS.values() if where in m.shown and any(m.name in values for values in measured)]


def _under(holds: Callable[[Protocol], bool]) -> frozenset[str]:
    return frozenset(name for name, protocol in PROTOCOLS.items() if holds(protocol))


_PIXELS = _under(lambda p: p.measures_fidelity) | {"cycle_slice", "unpaired_pixels"}
_HU = _under(lambda p: p.measures_fidelity and p.unit == "HU")
_SSIM = _under(lambda p: p.ssim_window in (SsimWindow.UNIFORM_7_3D, SsimWindow.GAUSSIAN_11_2D))
_MS_SSIM = _under(lambda p: p.ssim_window is SsimWindow.MS_SSIM_5)
_STRUCTURE, _DISTRIBUTION, _LESIONS = (frozenset({n}) for n in ("structure", "unpaired_distribution", "lesions"))

_ANY, _POSITIVE, _SIGNED, _SHARE = (-math.inf, math.inf), (0.0, math.inf), (-1.0, 1.0), (0.0, 1.0)
_TOP, _TABLE, _BESIDE = Shown.USUAL | Shown.HEADLINE, Shown.TABLE, Shown.TABLE | Shown.BASELINES

# name, title, what is better, bounds, protocols, function
MAE = register(
    Metric("mae", "mean absolute error", LOWER, _POSITIVE, _PIXELS, fidelity.mae, unit=OF_IMAGES, shown=_TOP)
)
MSE = register(
    Metric(
        "mse",
        "mean squared error",
        LOWER,
        _POSITIVE,
        _PIXELS,
        fidelity.mse,
        unit=f"{OF_IMAGES}²",
        shown=Shown(0),
        tested=False,
    )
)
RMSE = register(
    Metric(
        "rmse", "root of the MSE", LOWER, _POSITIVE, _PIXELS, fidelity.rmse, unit=OF_IMAGES, shown=_TABLE, tested=False
    )
)
PSNR = register(
    Metric("psnr", "peak signal-to-noise ratio", HIGHER, _ANY, _PIXELS, fidelity.psnr, unit="dB", digits=2, shown=_TOP)
)
SSIM = register(Metric("ssim", "structural similarity", HIGHER, _SIGNED, _SSIM, fidelity.ssim, shown=_TOP))
MS_SSIM = register(Metric("ms_ssim", "multi-scale SSIM", HIGHER, _SHARE, _MS_SSIM, fidelity.ms_ssim, shown=_TOP))
MAE_BONE = register(
    Metric("mae_bone", "MAE of bone", LOWER, _POSITIVE, _HU, fidelity.mae_bone, unit=OF_IMAGES, shown=_TABLE)
)
MAE_SOFT = register(
    Metric("mae_soft", "MAE of soft tissue", LOWER, _POSITIVE, _HU, fidelity.mae_soft, unit=OF_IMAGES, shown=_TABLE)
)
MAE_AIR = register(
    Metric("mae_air", "MAE of air", LOWER, _POSITIVE, _HU, fidelity.mae_air, unit=OF_IMAGES, shown=_TABLE)
)
DICE_BONE = register(Metric("dice_bone", "Dice of bone", HIGHER, _SHARE, _HU, fidelity.dice_bone, shown=_TOP))
NMI = register(
    Metric(
        "nmi",
        "normalised mutual information",
        HIGHER,
        _SHARE,
        _STRUCTURE,
        structure.normalised_mutual_information,
        shown=_TOP,
    )
)
GRADIENT_CORRELATION = register(
    Metric(
        "gradient_correlation",
        "correlation of gradient magnitudes",
        HIGHER,
        _SIGNED,
        _STRUCTURE,
        structure.gradient_correlation,
        shown=_TABLE,
    )
)
EDGE_OVERLAP = register(
    Metric("edge_overlap", "share of edges that meet", HIGHER, _SHARE, _STRUCTURE, structure.edge_overlap)
)
FLICKER = register(
    Metric(
        "flicker",
        "jumps from slice to slice",
        NEITHER,
        _POSITIVE,
        _HU,
        fidelity.flicker,
        digits=2,
        shown=_BESIDE,
        note="1 is as smooth as the truth",
    )
)
KID = register(Metric("kid", "kernel inception distance", LOWER, _ANY, _DISTRIBUTION, digits=4, shown=_TOP))
KID_SD = register(
    Metric("kid_sd", "spread of KID", NEITHER, _POSITIVE, _DISTRIBUTION, digits=4, shown=_TABLE, tested=False)
)
FID = register(Metric("fid", "Fréchet inception distance", LOWER, _POSITIVE, _DISTRIBUTION, digits=1, shown=_BESIDE))
DETECTION_RATE = register(Metric("detection_rate", "share of lesions that is kept", HIGHER, _SHARE, _LESIONS))
INVENTED = register(Metric("invented", "invented lesions", LOWER, _POSITIVE, _LESIONS, unit="an image", digits=1))
FALSE_FINDINGS = register(
    Metric("false_findings", "false findings", LOWER, _POSITIVE, _LESIONS, unit="an image", digits=1)
)
