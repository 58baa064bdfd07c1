"""Kinds of series that are no anatomical images of a head, and what messages call them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from ctmr.errors import InputError


class Kind(StrEnum):
    """Kind of a series that is no anatomical image of a head."""

    LOCALIZER = "localizer"
    SYNTHETIC = "synthetic"
    MOSAIC = "mosaic"
    PHASE = "phase"
    MAP = "map"
    PROJECTION = "projection"
    DIFFUSION = "diffusion"
    PERFUSION = "perfusion"
    TIME_SERIES = "time_series"
    ECHO_PLANAR = "echo_planar"
    ANGIOGRAPHY = "angiography"
    FIELD_MAP = "field_map"
    CALIBRATION = "calibration"
    SUBTRACTION = "subtraction"
    INVERSION = "inversion"
    SCREEN = "screen"
    BODY_PART = "body_part"


REASONS: dict[Kind, str] = {
    Kind.LOCALIZER: "localizer",
    Kind.SYNTHETIC: "synthetic image, not acquired by a scanner",
    Kind.MOSAIC: "mosaic, the slices of a functional or diffusion volume as tiles of one image",
    Kind.PHASE: "phase, real or imaginary image, not magnitude",
    Kind.MAP: "computed map or segmentation, not an image",
    Kind.PROJECTION: "projection (MIP or rendering), not slices",
    Kind.DIFFUSION: "diffusion-weighted image or what is computed of it",
    Kind.PERFUSION: "perfusion image or what is computed of it",
    Kind.TIME_SERIES: "time point of a time series",
    Kind.ECHO_PLANAR: "echo-planar image (functional, diffusion or perfusion)",
    Kind.ANGIOGRAPHY: "angiography, vessels and not tissue",
    Kind.FIELD_MAP: "field map",
    Kind.CALIBRATION: "calibration or reference scan",
    Kind.SUBTRACTION: "difference of two images",
    Kind.INVERSION: "one inversion of an MP2RAGE, not its combined image",
    Kind.SCREEN: "screen shot or report",
    Kind.BODY_PART: "other body part than the head",
}
"""Kind → what findings and summaries call it; no word of a header is in it, for that may be a name."""
NEVER_KEPT = (Kind.SYNTHETIC,)
"""Kinds that nobody can ask for: what a model made is no truth."""


def kinds_of(names: Iterable[str]) -> frozenset[Kind]:
    """Return the kinds that a person asks to keep, by name.

    Raises
    ------
    InputError
        An unknown name, or one of `NEVER_KEPT`.
    """
    allowed = [k.value for k in Kind if k not in NEVER_KEPT]
    wanted = [n.strip().lower().replace("-", "_") for n in names if n.strip()]
    strange = next((n for n in wanted if n not in allowed), None)
    if strange is not None:
        raise InputError(f"{strange!r} is no kind of series that can be kept; allowed are {', '.join(allowed)}")
    return frozenset(Kind(n) for n in wanted)


def kind_of_reason(reason: str) -> Kind | None:
    """Return the kind that `REASONS` gives a reason of, ``None`` for any other reason."""
    return next((kind for kind, words in REASONS.items() if words == reason), None)
