"""Structural similarity: the one SSIM of the project (torch, differentiable) and the MS-SSIM of SynthRAD2025."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ctmr.metrics.protocol import VOLUME_WINDOW_SIDE, SsimWindow, Unmeasurable

K1 = 0.01
K2 = 0.03
GAUSSIAN_SIGMA_PX = 1.5
GAUSSIAN_RADIUS_PX = 5
UNIFORM_RADIUS_PX = VOLUME_WINDOW_SIDE // 2

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIDE = 97

_SLAB_VOXELS = 1 << 16
"""Voxels computed at a time: the twenty intermediate arrays of an SSIM then stay in the processor's cache."""
_THINNEST_SLAB = 8
"""A slab carries the window's margin of six slices; thinner ones would do most of their work twice and more."""

Prepare = Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]
Local = Callable[[Tensor, Tensor], Tensor]
"""Two images with a margin of the window's radius → a number for every place where the window fits."""


def ssim_map(x: Tensor, y: Tensor, *, data_range: float, window: SsimWindow) -> Tensor:
    """Return the local structural similarity at every pixel or voxel.

    Parameters
    ----------
    x, y
        ``[..., H, W]`` for the 2-D Gaussian window, ``[..., D, H, W]`` for the 3-D uniform one; floating point,
        one shape. Leading axes are a batch. The luminance term means what it says for non-negative values alone.
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
        ``reflect``.

    Raises
    ------
    ValueError
        When shapes differ or the window does not fit into the image.

    References
    ----------
    Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity, 2004.
    """

    def local(a: Tensor, b: Tensor) -> Tensor:
        # Only the sum of both variances is needed, so one average does for both.
        squares, cross = _average(a * a + b * b, window), _average(a * b, window)
        return _similarity(_average(a, window), _average(b, window), squares, cross, data_range, window)

    return _mapped(x, y, window, local)


def ssim(x: Tensor, y: Tensor, *, data_range: float, window: SsimWindow) -> Tensor:
    """Return the mean similarity over all windows that lie inside the images: scikit-image's number, and the loss's.

    See `ssim_map` for the parameters. Of a batch it is the mean over its images, a scalar. Differentiable.
    """
    _require_window(x, y, window)
    mean_x, mean_y = _average(x, window), _average(y, window)
    squares = _average(x * x, window) + _average(y * y, window)
    return _similarity(mean_x, mean_y, squares, _average(x * y, window), data_range, window).mean()


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
        raise Unmeasurable(f"the mask is empty without the border of {border} voxels that SSIM leaves out")
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
    c1, c2 = _constants(data_range)
    c3 = c2 / 2
    window = SsimWindow.UNIFORM_7_3D

    def local(a: Tensor, b: Tensor) -> Tensor:
        mean_a, mean_b, aa, bb, ab = (_average(t, window) for t in (a, b, a * a, b * b, a * b))
        norm = _sample_norm(window)
        var_a, var_b = norm * (aa - mean_a.square()), norm * (bb - mean_b.square())
        covariance = norm * (ab - mean_a * mean_b)
        deviations = var_a.clamp(min=0).sqrt() * var_b.clamp(min=0).sqrt()
        contrast = (2 * deviations + c2) / (var_a + var_b + c2)
        structure = (covariance + c3) / (deviations + c3)
        return _luminance(mean_a, mean_b, c1).clamp(min=0) * contrast.clamp(min=0) * structure.clamp(min=0)

    result = torch.ones((), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        similar = _mapped(x, y, window, local)
        chosen = _without_border(similar, border, window)[_without_border(inside, border, window) > 0.5]
        if chosen.numel() == 0:
            raise Unmeasurable(
                f"the mask is empty at scale {scale + 1} of MS-SSIM; it needs voxels away from the border"
            )
        result = result * (chosen**weight).mean().clamp(0, 1)
        x, y = (F.avg_pool3d(F.pad(t[None, None], (1, 0, 1, 0, 1, 0)), 2)[0, 0] for t in (x, y))
        inside = inside[::2, ::2, ::2]
    return result


def radius(window: SsimWindow) -> int:
    """Pixels or voxels that the window reaches to each side."""
    return GAUSSIAN_RADIUS_PX if window is SsimWindow.GAUSSIAN_11_2D else UNIFORM_RADIUS_PX


def _axes(window: SsimWindow) -> tuple[int, ...]:
    return (-2, -1) if window is SsimWindow.GAUSSIAN_11_2D else (-3, -2, -1)


def _require_window(x: Tensor, y: Tensor, window: SsimWindow) -> None:
    if x.shape != y.shape:
        raise ValueError(f"images {tuple(x.shape)} and {tuple(y.shape)} must share one shape")
    _check_fits(tuple(x.shape), window)


def _check_fits(shape: tuple[int, ...], window: SsimWindow) -> None:
    if window not in (SsimWindow.GAUSSIAN_11_2D, SsimWindow.UNIFORM_7_3D):
        raise ValueError(f"window {window} has no map; use {SsimWindow.GAUSSIAN_11_2D} or {SsimWindow.UNIFORM_7_3D}")
    side, axes = 2 * radius(window) + 1, _axes(window)
    if len(shape) < len(axes):
        raise ValueError(f"an image of shape {tuple(shape)} must have {len(axes)} axes or more")
    size = tuple(shape[a] for a in axes)
    if min(size) < side:
        raise Unmeasurable(f"an image of {size} is smaller than the SSIM window, which needs {side} along each axis")


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


def _mapped(x: Tensor, y: Tensor, window: SsimWindow, local: Local) -> Tensor:
    """Compute a number at every place of two images, which are mirrored at their border; a volume slab by slab."""
    _require_window(x, y, window)
    mirrored_x, mirrored_y = _mirrored(x, window), _mirrored(y, window)
    if len(_axes(window)) < 3:
        return local(mirrored_x, mirrored_y)
    depth = x.shape[-3]
    step = max(_THINNEST_SLAB, _SLAB_VOXELS * depth // x.numel())
    slabs = []
    for first in range(0, depth, step):
        count = min(step, depth - first) + 2 * radius(window)
        slabs.append(local(*(t.narrow(-3, first, count) for t in (mirrored_x, mirrored_y))))
    return torch.cat(slabs, dim=-3)


def _similarity(
    mean_x: Tensor, mean_y: Tensor, squares: Tensor, cross: Tensor, data_range: float, window: SsimWindow
) -> Tensor:
    """SSIM of local moments: means of x and of y, of x² + y², and of x y (Wang et al. 2004, eq. 13)."""
    c1, c2 = _constants(data_range)
    norm = _sample_norm(window)
    variances = norm * (squares - mean_x.square() - mean_y.square())
    covariance = norm * (cross - mean_x * mean_y)
    return _luminance(mean_x, mean_y, c1) * (2 * covariance + c2) / (variances + c2)


def _luminance(mean_x: Tensor, mean_y: Tensor, c1: float) -> Tensor:
    return (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)


def _constants(data_range: float) -> tuple[float, float]:
    return (K1 * data_range) ** 2, (K2 * data_range) ** 2


def _sample_norm(window: SsimWindow) -> float:
    """n / (n - 1) where variances are the sample's, else 1."""
    count = (2 * radius(window) + 1) ** len(_axes(window))
    return count / (count - 1) if window is SsimWindow.UNIFORM_7_3D else 1.0


def _average(x: Tensor, window: SsimWindow) -> Tensor:
    """Weighted mean over every window inside an image, axis by axis."""
    if window is SsimWindow.UNIFORM_7_3D:
        for axis in _axes(window):
            x = _sum_of_seven(x, axis)
        return x / float((2 * UNIFORM_RADIUS_PX + 1) ** len(_axes(window)))
    return _gaussian_exact(x) if x.dtype == torch.float64 else _gaussian(x)


def _gaussian(x: Tensor) -> Tensor:
    """Gaussian mean by two convolutions, which suit a GPU and gradients."""
    side, (height, width) = 2 * GAUSSIAN_RADIUS_PX + 1, x.shape[-2:]
    offsets = torch.arange(-GAUSSIAN_RADIUS_PX, GAUSSIAN_RADIUS_PX + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (offsets / GAUSSIAN_SIGMA_PX).square())
    weights = weights / weights.sum()
    rows = F.conv2d(x.reshape(-1, 1, height, width), weights.view(1, 1, side, 1))
    found = F.conv2d(rows, weights.view(1, 1, 1, side))
    return found.reshape(*x.shape[:-2], *found.shape[-2:])


def _gaussian_exact(x: Tensor) -> Tensor:
    """Gaussian mean in float64, where sums of shifted views beat a convolution."""
    reach = GAUSSIAN_RADIUS_PX
    taps = [math.exp(-0.5 * (k / GAUSSIAN_SIGMA_PX) ** 2) for k in range(reach + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    for axis in (-2, -1):
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
