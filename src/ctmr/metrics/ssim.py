"""Structural similarity: the one SSIM of the project (torch, differentiable) and the MS-SSIM of SynthRAD2025."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ctmr.metrics.protocol import SsimWindow

K1 = 0.01
K2 = 0.03
GAUSSIAN_SIGMA_PX = 1.5
GAUSSIAN_RADIUS_PX = 5
UNIFORM_RADIUS_PX = 3

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIDE = 97

_SLAB_VOXELS = 1 << 16
"""Voxels computed at a time: the twenty intermediate arrays of an SSIM then stay in the processor's cache."""
_THINNEST_SLAB = 8
"""A slab carries the window's margin of six slices; thinner ones would do most of their work twice and more."""

Prepare = Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]
Products = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""What is averaged beside both images: the formula's second moments."""
Formula = Callable[["Moments"], Tensor]


@dataclass(frozen=True)
class Moments:
    """Local moments of two images.

    Attributes
    ----------
    x, y
        Means of the images less `level`.
    products
        Means of the products that were asked for, of the images less `level`.
    norm
        n / (n - 1) where the covariance is the sample's, else 1.
    level
        What was taken from both images.
    """

    x: Tensor
    y: Tensor
    products: tuple[Tensor, ...]
    norm: float
    level: float


def ssim_map(x: Tensor, y: Tensor, *, data_range: float, window: SsimWindow) -> Tensor:
    """Return the local structural similarity at every pixel or voxel.

    Parameters
    ----------
    x, y
        ``[..., H, W]`` for the 2-D Gaussian window, ``[..., D, H, W]`` for the 3-D uniform one; floating point,
        one shape. Leading axes are a batch. Values should be non-negative: the luminance term means nothing else.
    data_range
        L, the span of possible values.
    window
        ``GAUSSIAN_11_2D``: 11 × 11, σ 1.5, population covariance (Wang et al. 2004; scikit-image with
        ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``).
        ``UNIFORM_7_3D``: 7³, sample covariance, n / (n - 1) (scikit-image's default, SynthRAD's).

    Returns
    -------
    Tensor
        Same shape, in [-1, 1]; 1 where equal. At the border the image is mirrored, edge included, as scipy's
        ``reflect``. Differentiable in both arguments.

    Raises
    ------
    ValueError
        When shapes differ or the window does not fit into the image.

    References
    ----------
    Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity, 2004.
    """
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2

    def formula(at: Moments) -> Tensor:
        # Only the sum of both variances is needed, so one average does for both.
        squares, cross = at.products
        variances = at.norm * (squares - at.x * at.x - at.y * at.y)
        covariance = at.norm * (cross - at.x * at.y)
        return _luminance(at, c1) * (2 * covariance + c2) / (variances + c2)

    return _local(x, y, window, lambda a, b: (a * a + b * b, a * b), formula)


def ssim(x: Tensor, y: Tensor, *, data_range: float, window: SsimWindow) -> Tensor:
    """Mean of `ssim_map` without the border where the window leaves the image: scikit-image's number.

    See `ssim_map` for the parameters. Returns ``[...]``, one number an image of the batch.
    """
    local = ssim_map(x, y, data_range=data_range, window=window)
    return _without_border(local, radius(window), window).mean(dim=_axes(window))


def masked_ssim(
    x: NDArray[Any],
    y: NDArray[Any],
    inside: NDArray[np.bool_],
    *,
    data_range: float,
    window: SsimWindow,
    border: int = 0,
    prepare: Prepare | None = None,
) -> float:
    """Mean of `ssim_map` over a mask, in float64.

    Only the mask's bounding box and the window's radius around it are computed, which changes no number: a window
    never reaches further.

    Parameters
    ----------
    x, y
        ``[D, H, W]``, non-negative once prepared; for a 2-D window D is a batch of slices.
    inside
        ``[D, H, W]`` bool.
    data_range, window
        See `ssim_map`.
    border
        Voxels at each side of the image, along the window's axes, that are not counted.
    prepare
        Applied to the cropped image, float64, and the cropped mask; works voxel by voxel.

    Raises
    ------
    ValueError
        When the window does not fit into the image, or the mask is empty without the border.
    """
    _check_fits(x.shape, window)
    counted = np.zeros_like(inside, dtype=bool)
    inner = tuple(
        slice(border, n - border) if a - x.ndim in _axes(window) else slice(None) for a, n in enumerate(x.shape)
    )
    counted[inner] = inside[inner]
    if not counted.any():
        raise ValueError(f"the mask is empty without the border of {border} voxels that SSIM leaves out")
    box = _box(counted, window)
    cropped = [v[box].astype(np.float64) for v in (x, y)]
    if prepare is not None:
        cropped = [prepare(v, inside[box]) for v in cropped]
    a, b = (torch.from_numpy(np.ascontiguousarray(v)) for v in cropped)
    local = ssim_map(a, b, data_range=data_range, window=window)
    return float(local.numpy()[counted[box]].mean())


def ms_ssim(x: Tensor, y: Tensor, mask: Tensor, *, data_range: float, border: int = UNIFORM_RADIUS_PX) -> Tensor:
    """Multi-scale SSIM of volumes, masked at each of five scales, as SynthRAD2025's public code computes it.

    Parameters
    ----------
    x, y
        ``[D, H, W]`` non-negative.
    mask
        ``[D, H, W]`` bool.
    data_range
        L.
    border
        Voxels at each side that are not counted, at each scale.

    Returns
    -------
    Tensor
        Scalar: the product over scales of the mean over the mask of (l·c·s) to the power of the scale's weight.

    Notes
    -----
    Differs from Wang, Simoncelli, Bovik (2003) in ways kept on purpose: luminance enters at every scale, not only
    at the coarsest; powers are taken before the mean; volumes are padded with their edge to 97 voxels a side;
    downsampling averages voxels 2k - 1 and 2k with zero outside.

    Raises
    ------
    ValueError
        When the mask is empty at a scale.
    """
    pads = [max(0, MS_SSIM_MIN_SIDE - n) for n in x.shape]
    margins = [m for p in reversed(pads) for m in (p // 2, p - p // 2)]
    x, y, inside = (F.pad(t[None, None], margins, mode="replicate")[0, 0] for t in (x, y, mask.to(x.dtype)))
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    c3 = c2 / 2

    def formula(at: Moments) -> Tensor:
        xx, yy, xy = at.products
        var_x, var_y = at.norm * (xx - at.x * at.x), at.norm * (yy - at.y * at.y)
        covariance = at.norm * (xy - at.x * at.y)
        deviations = var_x.clamp(min=0).sqrt() * var_y.clamp(min=0).sqrt()
        contrast = (2 * deviations + c2) / (var_x + var_y + c2)
        structure = (covariance + c3) / (deviations + c3)
        return _luminance(at, c1).clamp(min=0) * contrast.clamp(min=0) * structure.clamp(min=0)

    window = SsimWindow.UNIFORM_7_3D
    result = torch.ones((), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        local = _local(x, y, window, lambda a, b: (a * a, b * b, a * b), formula)
        chosen = _without_border(local, border, window)[_without_border(inside, border, window) > 0.5]
        if chosen.numel() == 0:
            raise ValueError(f"the mask is empty at scale {scale + 1} of MS-SSIM; it needs voxels away from the border")
        result = result * (chosen**weight).mean().clamp(0, 1)
        x, y = (F.avg_pool3d(F.pad(t[None, None], (1, 0, 1, 0, 1, 0)), 2)[0, 0] for t in (x, y))
        inside = inside[::2, ::2, ::2]
    return result


def radius(window: SsimWindow) -> int:
    """Pixels or voxels that the window reaches to each side."""
    return GAUSSIAN_RADIUS_PX if window is SsimWindow.GAUSSIAN_11_2D else UNIFORM_RADIUS_PX


def _axes(window: SsimWindow) -> tuple[int, ...]:
    return (-2, -1) if window is SsimWindow.GAUSSIAN_11_2D else (-3, -2, -1)


def _check_fits(shape: tuple[int, ...], window: SsimWindow) -> None:
    if window not in (SsimWindow.GAUSSIAN_11_2D, SsimWindow.UNIFORM_7_3D):
        raise ValueError(f"window {window} has no map; use {SsimWindow.GAUSSIAN_11_2D} or {SsimWindow.UNIFORM_7_3D}")
    side, axes = 2 * radius(window) + 1, _axes(window)
    if len(shape) < len(axes):
        raise ValueError(f"an image of shape {tuple(shape)} must have {len(axes)} axes or more")
    size = tuple(shape[a] for a in axes)
    if min(size) < side:
        raise ValueError(f"an image of {size} is smaller than the SSIM window, which needs {side} along each axis")


def _box(counted: NDArray[np.bool_], window: SsimWindow) -> tuple[slice, ...]:
    """Bounding box of a mask, grown by the window's radius and to at least the window's side, within the image."""
    reach, side = radius(window), 2 * radius(window) + 1
    box = []
    for axis, n in enumerate(counted.shape):
        others = tuple(k for k in range(counted.ndim) if k != axis)
        found = np.flatnonzero(counted.any(axis=others))
        low, high = int(found[0]), int(found[-1]) + 1
        if axis - counted.ndim in _axes(window):
            low, high = max(0, low - reach), min(n, high + reach)
            # At the image's edge the box can be narrower than a window, which ssim_map refuses.
            low, high = max(0, min(low, high - side)), min(n, max(high, low + side))
        box.append(slice(low, high))
    return tuple(box)


def _local(x: Tensor, y: Tensor, window: SsimWindow, products: Products, formula: Formula) -> Tensor:
    """Apply a formula to the local moments; a volume on the CPU slab by slab where no gradient is asked for."""
    if x.shape != y.shape:
        raise ValueError(f"images {tuple(x.shape)} and {tuple(y.shape)} must share one shape")
    _check_fits(tuple(x.shape), window)
    # In float32 the difference E[x²] - E[x]² of values far from zero is noise; about their own level it is not.
    level = 0.0 if x.dtype == torch.float64 else float((x.detach().mean() + y.detach().mean()) / 2)
    mirrored_x, mirrored_y = (_mirrored(t - level if level else t, window) for t in (x, y))
    differentiable = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if len(_axes(window)) < 3 or differentiable or x.device.type != "cpu":
        return formula(_moments(mirrored_x, mirrored_y, level, window, products))
    depth = x.shape[-3]
    step = max(_THINNEST_SLAB, _SLAB_VOXELS * depth // x.numel())
    slabs = []
    for first in range(0, depth, step):
        count = min(step, depth - first) + 2 * radius(window)
        slab_x, slab_y = (t.narrow(-3, first, count) for t in (mirrored_x, mirrored_y))
        slabs.append(formula(_moments(slab_x, slab_y, level, window, products)))
    return torch.cat(slabs, dim=-3)


def _moments(x: Tensor, y: Tensor, level: float, window: SsimWindow, products: Products) -> Moments:
    """Local moments of images less `level` that hold a margin of the window's radius."""
    count = (2 * radius(window) + 1) ** len(_axes(window))
    norm = count / (count - 1) if window is SsimWindow.UNIFORM_7_3D else 1.0
    averaged = tuple(_average(t, window) for t in products(x, y))
    return Moments(_average(x, window), _average(y, window), averaged, norm, level)


def _luminance(at: Moments, c1: float) -> Tensor:
    x, y = (at.x + at.level, at.y + at.level) if at.level else (at.x, at.y)
    return (2 * x * y + c1) / (x * x + y * y + c1)


def _average(x: Tensor, window: SsimWindow) -> Tensor:
    """Weighted mean over the window, axis by axis. Sums of shifted views beat a convolution in float64."""
    if window is SsimWindow.UNIFORM_7_3D:
        for axis in _axes(window):
            x = _sum_of_seven(x, axis)
        return x / float((2 * UNIFORM_RADIUS_PX + 1) ** len(_axes(window)))
    reach = GAUSSIAN_RADIUS_PX
    taps = [math.exp(-0.5 * (k / GAUSSIAN_SIGMA_PX) ** 2) for k in range(reach + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    for axis in _axes(window):
        n = x.shape[axis] - 2 * reach
        mean = x.narrow(axis, reach, n) * (taps[0] / total)
        for k in range(1, reach + 1):
            pair = x.narrow(axis, reach - k, n) + x.narrow(axis, reach + k, n)
            mean = torch.add(mean, pair, alpha=taps[k] / total)
        x = mean
    return x


def _sum_of_seven(x: Tensor, axis: int) -> Tensor:
    """Sum of seven neighbours in four additions: pairs, pairs of pairs, then 4 + 2 + 1."""
    n = x.shape[axis] - 2 * UNIFORM_RADIUS_PX
    two = x.narrow(axis, 0, n + 5) + x.narrow(axis, 1, n + 5)
    seven = two.narrow(axis, 0, n) + two.narrow(axis, 2, n)
    seven += two.narrow(axis, 4, n)
    seven += x.narrow(axis, 6, n)
    return seven


def _mirrored(x: Tensor, window: SsimWindow) -> Tensor:
    """Grow an image by the window's radius, mirrored with its edge."""
    reach = radius(window)
    for axis in _axes(window):
        before, after = x.narrow(axis, 0, reach), x.narrow(axis, x.shape[axis] - reach, reach)
        x = torch.cat([before.flip(axis), x, after.flip(axis)], dim=axis)
    return x


def _without_border(x: Tensor, border: int, window: SsimWindow) -> Tensor:
    for axis in _axes(window):
        x = x.narrow(axis, border, x.shape[axis] - 2 * border)
    return x
