"""Detection: does a translation keep a lesion of known place, and does it show findings that are not there?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from ctmr.imaging.volume import Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import PROTOCOLS, Protocol
from ctmr.metrics.registry import DETECTION_RATE, FALSE_FINDINGS, INVENTED

ROSE = 5.0
"""Contrast-to-noise ratio from which a disc of known size is seen reliably (Rose 1948)."""
VISIBLE: dict[Unit, float] = {Unit.HU: 5.0, Unit.GREY8: 5.0, Unit.ARBITRARY: 0.02}
"""Smallest contrast that counts, whatever the noise: HU, grey levels, or a share of the image's bright end."""
BRIGHT_PERCENTILE = 99.0
MIN_REST_VOXELS = 64
WILSON_Z = 1.959963984540054
_MAD_TO_SD = 1.482602218505602
_SMALLEST_SHARE = 0.05
_TRUNCATE = 3.0

Spacing = tuple[float, float, float]
Mask = NDArray[np.bool_]
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Site:
    """Place where a lesion was put.

    Attributes
    ----------
    mask
        ``[D, H, W]`` bool.
    radius_mm
        Of the ball (of the disc, where D is 1).
    kind
        In a word: ``bright``, ``dark``, ``tumour``.
    """

    mask: Mask
    radius_mm: float
    kind: str


@dataclass(frozen=True)
class Response:
    """Effect of one lesion on the translation.

    Attributes
    ----------
    site, kind, radius_mm
        Which of the sites that were given, and of what.
    signal
        Mean over the lesion of translation with it minus translation without, less the median of the rest.
    expected
        The same of the truth, ``None`` where there is none.
    cnr
        \\|signal\\| over the noise: the robust standard deviation of means over the lesion's own size in the rest, at
        least a fifth of the visible contrast.
    kept
        `cnr` is 5 or more, with the sign of the truth where there is one.
    """

    site: int
    kind: str
    radius_mm: float
    signal: float
    expected: float | None
    cnr: float
    kept: bool

    @property
    def recovered(self) -> float | None:
        """Share of the true contrast that the translation shows."""
        return None if not self.expected else self.signal / self.expected


@dataclass(frozen=True)
class Findings:
    """Findings in one pair of translations, with lesions and without.

    Attributes
    ----------
    responses
        One a lesion, in the order of the sites. Lesions that input or truth do not show are left out.
    invented
        Blobs away from every lesion that only the translation with lesions shows.
    """

    responses: tuple[Response, ...]
    invented: int


def visible_contrast(unit: Unit, image: NDArray[Any], head: Mask) -> float:
    """Return the smallest contrast that counts in an image, in its unit."""
    if unit is not Unit.ARBITRARY:
        return VISIBLE[unit]
    inside = image[head]
    bright = float(np.percentile(inside, BRIGHT_PERCENTILE)) if inside.size else 0.0
    return max(VISIBLE[unit] * abs(bright), float(np.finfo(np.float32).tiny))


def matched_means(image: NDArray[Any], inside: Mask, *, radius_mm: float, spacing_mm: Spacing) -> Image:
    """Return local means over a ball of a radius, taken inside a mask only.

    A Gaussian of the ball's second moment stands for the ball (σ = r / √(n + 2) in n dimensions), because it is
    separable.

    Parameters
    ----------
    image
        ``[D, H, W]``; D = 1 for a picture, where the ball is a disc.
    inside
        Same shape; voxels outside count for nothing.
    radius_mm, spacing_mm
        Of the ball, and of the voxels along D, H and W.

    Returns
    -------
    numpy.ndarray
        float32, same shape; 0 where the ball hardly meets the mask, and outside the mask's bounding box.
    """
    dimensions = 2 if image.shape[0] == 1 else 3
    spread_mm = radius_mm / math.sqrt(dimensions + 2)
    sigma = [0.0 if n == 1 else spread_mm / mm for n, mm in zip(image.shape, spacing_mm, strict=True)]
    means: Image = np.zeros(image.shape, dtype=np.float32)
    bounds = ndimage.find_objects(inside.astype(np.int8))
    if not bounds:
        return means
    # What lies outside the mask is 0 in both sums, so its bounding box gives the same numbers.
    box = bounds[0]
    within = inside[box]
    share, total = (
        ndimage.gaussian_filter(values.astype(np.float32), sigma, mode="constant", truncate=_TRUNCATE)
        for values in (within, np.where(within, image[box], 0))
    )
    np.divide(total, share, out=means[box], where=share > _SMALLEST_SHARE)
    return means


def respond(
    difference: NDArray[Any],
    sites: Sequence[Site],
    inside: Mask,
    *,
    visible: float,
    finding: float,
    spacing_mm: Spacing,
    where: Mask | None = None,
    truth: NDArray[Any] | None = None,
    truth_visible: float = 0.0,
    asked: Sequence[bool] | None = None,
) -> Findings:
    """Say which lesions a translation keeps and what it invents.

    Parameters
    ----------
    difference
        ``[D, H, W]``, translation of the input with lesions minus translation of the same input without.
    sites
        The lesions.
    inside
        ``[D, H, W]`` bool: the head, in the slices that the lesions touch. Slices that no lesion touched differ by
        nothing and would make every noise 0.
    visible
        Smallest contrast of a kept lesion, in the unit of `difference`.
    finding
        Smallest contrast of an invented one.
    spacing_mm
        Of the voxels along D, H and W.
    where
        ``[D, H, W]`` bool: where a blob would be taken for a lesion; ``None``: everywhere inside.
    truth
        The same difference of the true images, where it exists.
    truth_visible
        Smallest contrast that counts in `truth`. A lesion below it cannot be asked of a translation.
    asked
        False for a lesion that its own input hides; ``None``: all are asked for.

    Returns
    -------
    Findings
        Kept and lost lesions, and the number of invented ones: connected places at least a lesion's radius away from
        every lesion, whose `blob_contrast` of the smallest lesion's size reaches both `finding` and 5 standard
        deviations.

    References
    ----------
    A. Rose, The sensitivity performance of the human eye on an absolute scale, 1948.
    """
    if not sites:
        raise ValueError("no lesion was given; a response needs at least one")
    rest = inside & ~_near(sites, spacing_mm)
    noise = {r: _noise(difference, rest, r, spacing_mm, visible) for r in sorted({site.radius_mm for site in sites})}
    responses = []
    level = float(np.median(difference[rest])) if int(rest.sum()) >= MIN_REST_VOXELS else 0.0
    for k, (site, wanted) in enumerate(zip(sites, asked or [True] * len(sites), strict=True)):
        expected = None if truth is None else float(truth[site.mask].mean())
        if not wanted or (expected is not None and abs(expected) < truth_visible):
            continue
        signal = float(difference[site.mask].mean()) - level
        cnr = abs(signal) / noise[site.radius_mm]
        kept = cnr >= ROSE and (expected is None or expected * signal > 0)
        responses.append(Response(k, site.kind, site.radius_mm, signal, expected, cnr, kept))
    smallest = min(noise)
    contrast = blob_contrast(difference - level, rest, radius_mm=smallest, spacing_mm=spacing_mm)
    least = max(finding, ROSE * noise[smallest])
    rest = rest if where is None else rest & where
    return Findings(tuple(responses), _count(rest & (contrast >= least)) + _count(rest & (contrast <= -least)))


def blob_contrast(image: NDArray[Any], inside: Mask, *, radius_mm: float, spacing_mm: Spacing) -> Image:
    """Return at every voxel the contrast of a ball of a radius centred there: centre minus surround.

    The surround is twice as wide. Scaled so that a ball of that radius and contrast c answers c at its centre.

    See `matched_means` for the parameters.
    """
    centre, surround = (
        matched_means(image, inside, radius_mm=k * radius_mm, spacing_mm=spacing_mm) for k in (1.0, 2.0)
    )
    n = 2 if image.shape[0] == 1 else 3
    reach = (n + 2) / 2
    # Share of a Gaussian inside the ball: the chi-square distribution of n degrees of freedom.
    gain = float(special.gammainc(n / 2, reach) - special.gammainc(n / 2, reach / 4))
    contrast: Image = (centre - surround) / np.float32(gain)
    return contrast


def false_findings(
    translation: NDArray[Any],
    truth: NDArray[Any],
    region: Mask,
    *,
    contrast: float,
    radius_mm: float,
    spacing_mm: Spacing,
) -> int:
    """Count bright and dark blobs that a translation shows and the truth does not.

    Parameters
    ----------
    translation, truth
        ``[D, H, W]`` in one unit, without any lesion put in.
    region
        ``[D, H, W]`` bool: where a blob would be taken for a lesion, such as the brain.
    contrast
        Smallest contrast of a blob, in the unit.
    radius_mm, spacing_mm
        Of the blobs, and of the voxels.

    Returns
    -------
    int
        Connected places whose blob contrast reaches `contrast` in the translation and in its difference from the
        truth, with one sign.
    """
    shown = blob_contrast(translation, region, radius_mm=radius_mm, spacing_mm=spacing_mm)
    real = blob_contrast(truth, region, radius_mm=radius_mm, spacing_mm=spacing_mm)
    excess = shown - real
    bright = region & (shown >= contrast) & (excess >= contrast)
    dark = region & (shown <= -contrast) & (excess <= -contrast)
    return _count(bright) + _count(dark)


def lesion_metrics(
    findings: Findings, *, case: str, subject: str, variant: str, false_blobs: int | None = None
) -> CaseMetrics:
    """Return one case's numbers under protocol ``lesions``.

    Parameters
    ----------
    findings
        From `respond`.
    case, subject
        Identifiers.
    variant
        Sizes and kinds of the lesions: numbers of other lesions cannot be compared.
    false_blobs
        From `false_findings`, where truth exists.
    """
    values = {INVENTED.name: float(findings.invented)}
    if findings.responses:
        values[DETECTION_RATE.name] = sum(r.kept for r in findings.responses) / len(findings.responses)
    if false_blobs is not None:
        values[FALSE_FINDINGS.name] = float(false_blobs)
    return CaseMetrics(case, subject, lesion_protocol(variant), values)


def lesion_protocol(variant: str) -> Protocol:
    """Return protocol ``lesions`` for lesions of certain sizes and kinds."""
    from dataclasses import replace

    return replace(PROTOCOLS["lesions"], variant=variant)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion; (NaN, NaN) without trials.

    References
    ----------
    E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if trials < 1:
        return math.nan, math.nan
    p, z2 = successes / trials, WILSON_Z**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = WILSON_Z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _near(sites: Sequence[Site], spacing_mm: Spacing) -> Mask:
    """Lesions and what lies within a lesion's radius around them: an edge there is the lesion's own."""
    near = np.zeros(sites[0].mask.shape, dtype=bool)
    for site in sites:
        reach = [math.ceil(site.radius_mm / mm) + 1 for mm in spacing_mm]
        bounds = ndimage.find_objects(site.mask.astype(np.int8))
        if not bounds:
            continue
        box = tuple(slice(max(0, b.start - r), b.stop + r) for b, r in zip(bounds[0], reach, strict=True))
        near[box] |= ndimage.distance_transform_edt(~site.mask[box], sampling=spacing_mm) <= site.radius_mm
    return near


def _noise(difference: NDArray[Any], rest: Mask, radius_mm: float, spacing_mm: Spacing, visible: float) -> float:
    floor = visible / ROSE
    if int(rest.sum()) < MIN_REST_VOXELS:
        return floor
    means = matched_means(difference, rest, radius_mm=radius_mm, spacing_mm=spacing_mm)[rest]
    return max(floor, _MAD_TO_SD * float(np.median(np.abs(means - np.median(means)))))


def _count(where: Mask) -> int:
    return int(ndimage.label(where, structure=np.ones((3, 3, 3)))[1])
