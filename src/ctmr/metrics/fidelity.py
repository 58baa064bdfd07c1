"""Fidelity: MAE, RMSE, PSNR and the one SSIM of the project (torch, differentiable), taken under a protocol."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ctmr.protocol import PROTOCOLS, CaseMetrics, Mask, Metric, Pairing, Protocol, SsimWindow
from ctmr.volume import HOUNSFIELD_FLOOR_HU

K1 = 0.01
K2 = 0.03
GAUSSIAN_SIGMA_PX = 1.5
GAUSSIAN_RADIUS_PX = 5
UNIFORM_RADIUS_PX = 3
SYNTHRAD_BORDER_VOXELS = 3

BONE_ABOVE_HU = 250.0
AIR_BELOW_HU = -200.0

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_MIN_SIDE = 97

_MAE_IS_NOT_CLIPPED = frozenset({"synthrad2023", "synthrad2025", "synthrad2025_metrics"})


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
    mean_x, mean_y, var_x, var_y, covariance = _moments(x, y, window)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def ssim(x: Tensor, y: Tensor, *, data_range: float, window: SsimWindow) -> Tensor:
    """Mean of `ssim_map` without the border where the window leaves the image: scikit-image's number.

    See `ssim_map` for the parameters. Returns ``[...]``, one number an image of the batch.
    """
    radius, axes = _radius(window), _axes(window)
    inner = ssim_map(x, y, data_range=data_range, window=window)
    for axis in axes:
        inner = inner.narrow(axis, radius, inner.shape[axis] - 2 * radius)
    return inner.mean(dim=axes)


def ms_ssim(x: Tensor, y: Tensor, mask: Tensor, *, data_range: float) -> Tensor:
    """Multi-scale SSIM of volumes, masked at each of five scales, as SynthRAD2025's public code computes it.

    Parameters
    ----------
    x, y
        ``[D, H, W]`` non-negative.
    mask
        ``[D, H, W]`` bool.
    data_range
        L.

    Returns
    -------
    Tensor
        Scalar: the product over scales of the mean over the mask of (l·c·s) to the power of the scale's weight.

    Notes
    -----
    Differs from Wang, Simoncelli, Bovik (2003) in ways kept on purpose: luminance enters at every scale, not only
    at the coarsest; powers are taken before the mean; volumes are padded with their edge to 97 voxels a side;
    downsampling averages voxels 2k - 1 and 2k with zero outside; a 3-voxel border is left out at each scale.

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
    result = torch.ones((), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        mean_x, mean_y, var_x, var_y, covariance = _moments(x, y, SsimWindow.UNIFORM_7_3D)
        deviations = var_x.clamp(min=0).sqrt() * var_y.clamp(min=0).sqrt()
        luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
        contrast = (2 * deviations + c2) / (var_x + var_y + c2)
        structure = (covariance + c3) / (deviations + c3)
        powers = [t.clamp(min=0) ** weight for t in (luminance, contrast, structure)]
        local = _without_border(powers[0] * powers[1] * powers[2])
        chosen = local[_without_border(inside) > 0.5]
        if chosen.numel() == 0:
            raise ValueError(f"the mask is empty at scale {scale + 1} of MS-SSIM; it needs voxels away from the border")
        result = result * chosen.mean().clamp(0, 1)
        x, y = (F.avg_pool3d(F.pad(t[None, None], (1, 0, 1, 0, 1, 0)), 2)[0, 0] for t in (x, y))
        inside = inside[::2, ::2, ::2]
    return result


def mae(x: NDArray[Any], y: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> float:
    """Mean absolute error over the mask (or everywhere), float64."""
    return float(np.abs(_errors(x, y, mask)).mean())


def mse(x: NDArray[Any], y: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> float:
    """Mean squared error over the mask (or everywhere), float64."""
    return float(np.square(_errors(x, y, mask)).mean())


def rmse(x: NDArray[Any], y: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> float:
    """Root of the mean squared error over the mask (or everywhere)."""
    return math.sqrt(mse(x, y, mask))


def psnr(x: NDArray[Any], y: NDArray[Any], mask: NDArray[np.bool_] | None = None, *, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, ``20·log10(MAX / RMSE)``; infinite for equal images."""
    return _decibel(rmse(x, y, mask), data_range)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks; NaN when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else math.nan


def measure_paired(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    protocol: Protocol,
    *,
    case: str,
    subject: str,
) -> CaseMetrics:
    """Measure a prediction against the same patient's truth.

    Parameters
    ----------
    prediction, truth
        ``[D, H, W]`` on one grid in the protocol's unit (HU or 8-bit grey levels). Slice protocols take one slice,
        ``[1, H, W]``: the mean of slices' PSNRs has no RMSE.
    mask
        ``[D, H, W]`` bool, the mask that the protocol names; ignored where it names none.
    protocol
        One of the paired protocols of `ctmr.protocol.PROTOCOLS`.
    case, subject
        Identifiers of the case and its patient.

    Returns
    -------
    CaseMetrics
        mae, mse, rmse, psnr; ssim or ms_ssim where the protocol has one; for HU mae_bone (truth above 250 HU),
        mae_soft, mae_air (truth below -200 HU) and dice_bone. A tissue that the truth lacks gives no number.
        PSNR is infinite for equal images.

    Raises
    ------
    ValueError
        When the protocol is not paired, shapes differ, a value is not finite, the mask is missing or empty, or the
        SSIM window does not fit.
    """
    if protocol.pairing is not Pairing.PAIRED or protocol.data_range is None:
        raise ValueError(f"case {case}: protocol {protocol.name} does not compare a prediction with its truth")
    inside = _checked(prediction, truth, mask, protocol, case)
    raw_p, raw_t = prediction.astype(np.float64), truth.astype(np.float64)
    p, t = raw_p, raw_t
    if protocol.clip is not None:
        p, t = np.clip(raw_p, *protocol.clip), np.clip(raw_t, *protocol.clip)
    error = (p - t)[inside]
    squared = float(np.square(error).mean())
    absolute = np.abs((raw_p - raw_t) if protocol.name in _MAE_IS_NOT_CLIPPED else (p - t))
    values = {
        Metric.MAE.value: float(absolute[inside].mean()),
        Metric.MSE.value: squared,
        Metric.RMSE.value: math.sqrt(squared),
        Metric.PSNR.value: _decibel(math.sqrt(squared), protocol.data_range),
    }
    try:
        values |= _similarity(p, t, inside, protocol)
    except ValueError as error_:
        raise ValueError(f"case {case} under {protocol.name}: {error_}") from None
    if protocol.unit == "HU":
        values |= _by_tissue(absolute, p, t, inside)
    return CaseMetrics(case, subject, protocol, values)


def measure_cycle(image: NDArray[Any], reconstruction: NDArray[Any], *, case: str, subject: str) -> CaseMetrics:
    """Measure an image against its own reconstruction, in [-1, 1] as trained: never fidelity, the identity scores 1.

    Parameters
    ----------
    image, reconstruction
        ``[H, W]`` or ``[C, H, W]``, clipped to [-1, 1]. SSIM (Gaussian, range 2, on x + 1) is the mean over channels.
    case, subject
        Identifiers.

    Raises
    ------
    ValueError
        When shapes differ, a value is not finite or the slice is smaller than the window.
    """
    protocol = PROTOCOLS["cycle_slice"]
    image, reconstruction = np.atleast_3d(image.T).T, np.atleast_3d(reconstruction.T).T
    inside = _checked(reconstruction, image, None, protocol, case, slices=image.shape[0])
    y, x = (np.clip(a.astype(np.float64), -1.0, 1.0) for a in (reconstruction, image))
    assert protocol.data_range is not None
    squared = mse(y, x, inside)
    try:
        similarity = ssim(_tensor(x + 1), _tensor(y + 1), data_range=2.0, window=protocol.ssim_window).mean()
    except ValueError as error:
        raise ValueError(f"case {case} under {protocol.name}: {error}") from None
    values = {
        Metric.MAE.value: mae(y, x, inside),
        Metric.MSE.value: squared,
        Metric.RMSE.value: math.sqrt(squared),
        Metric.PSNR.value: _decibel(math.sqrt(squared), protocol.data_range),
        Metric.SSIM.value: float(similarity),
    }
    return CaseMetrics(case, subject, protocol, values)


def _similarity(
    p: NDArray[np.float64], t: NDArray[np.float64], inside: NDArray[np.bool_], protocol: Protocol
) -> dict[str, float]:
    data_range, window = protocol.data_range, protocol.ssim_window
    if window is SsimWindow.NONE or data_range is None:
        return {}
    if protocol.unit == "HU":
        floor = HOUNSFIELD_FLOOR_HU
        p, t = (np.where(inside, a, floor) - floor for a in (p, t))
    x, y, m = _tensor(p), _tensor(t), torch.from_numpy(np.ascontiguousarray(inside))
    if window is SsimWindow.MS_SSIM_5:
        return {Metric.MS_SSIM.value: float(ms_ssim(x, y, m, data_range=data_range))}
    if protocol.mask is Mask.NONE:
        return {Metric.SSIM.value: float(ssim(x, y, data_range=data_range, window=window).mean())}
    local = ssim_map(x, y, data_range=data_range, window=window)
    if protocol.name == "synthrad2023":
        local, m = _without_border(local), _without_border(m)
        if not bool(m.any()):
            raise ValueError("the mask is empty without the 3-voxel border that SSIM leaves out")
    return {Metric.SSIM.value: float(local[m].mean())}


def _by_tissue(
    absolute: NDArray[np.float64], p: NDArray[np.float64], t: NDArray[np.float64], inside: NDArray[np.bool_]
) -> dict[str, float]:
    bone, air = inside & (t > BONE_ABOVE_HU), inside & (t < AIR_BELOW_HU)
    classes = {Metric.MAE_BONE: bone, Metric.MAE_SOFT: inside & ~bone & ~air, Metric.MAE_AIR: air}
    values = {name.value: float(absolute[where].mean()) for name, where in classes.items() if where.any()}
    overlap = dice(inside & (p > BONE_ABOVE_HU), bone)
    return values | ({} if math.isnan(overlap) else {Metric.DICE_BONE.value: overlap})


def _checked(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    protocol: Protocol,
    case: str,
    slices: int = 1,
) -> NDArray[np.bool_]:
    where = f"case {case} under {protocol.name}"
    if prediction.ndim != 3 or prediction.shape != truth.shape:
        raise ValueError(
            f"{where}: prediction {prediction.shape} and truth {truth.shape} must share one shape [D, H, W]"
        )
    if not protocol.volume and prediction.shape[0] != slices:
        raise ValueError(f"{where}: takes one slice [1, H, W], found {prediction.shape}; measure slice by slice")
    if not (np.isfinite(prediction).all() and np.isfinite(truth).all()):
        raise ValueError(f"{where}: prediction or truth holds values that are not finite; all must be numbers")
    if protocol.mask is Mask.NONE:
        return np.ones(truth.shape, dtype=bool)
    if mask is None or mask.shape != truth.shape:
        found = "none" if mask is None else str(mask.shape)
        raise ValueError(f"{where}: needs mask {protocol.mask} of shape {truth.shape}, found {found}")
    inside = mask.astype(bool)
    if not inside.any():
        raise ValueError(f"{where}: mask {protocol.mask} is empty; it must hold at least one voxel")
    return inside


def _errors(x: NDArray[Any], y: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    difference: NDArray[np.float64] = x.astype(np.float64) - y.astype(np.float64)
    return difference if mask is None else difference[mask]


def _decibel(error: float, data_range: float) -> float:
    return 20.0 * math.log10(data_range / error) if error > 0 else math.inf


def _tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _axes(window: SsimWindow) -> tuple[int, ...]:
    return (-2, -1) if window is SsimWindow.GAUSSIAN_11_2D else (-3, -2, -1)


def _radius(window: SsimWindow) -> int:
    return GAUSSIAN_RADIUS_PX if window is SsimWindow.GAUSSIAN_11_2D else UNIFORM_RADIUS_PX


def _taps(window: SsimWindow) -> list[float]:
    radius = _radius(window)
    if window is SsimWindow.UNIFORM_7_3D:
        return [1.0 / (2 * radius + 1)] * (2 * radius + 1)
    taps = [math.exp(-0.5 * (i / GAUSSIAN_SIGMA_PX) ** 2) for i in range(-radius, radius + 1)]
    return [t / sum(taps) for t in taps]


def _moments(x: Tensor, y: Tensor, window: SsimWindow) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Local means, variances and covariance."""
    if window not in (SsimWindow.GAUSSIAN_11_2D, SsimWindow.UNIFORM_7_3D):
        raise ValueError(f"window {window} has no map; use {SsimWindow.GAUSSIAN_11_2D} or {SsimWindow.UNIFORM_7_3D}")
    axes, taps = _axes(window), _taps(window)
    if x.shape != y.shape or x.ndim < len(axes):
        raise ValueError(f"images {tuple(x.shape)} and {tuple(y.shape)} must share a shape of {len(axes)} axes or more")
    if min(x.shape[a] for a in axes) < len(taps):
        size = tuple(x.shape[a] for a in axes)
        raise ValueError(f"an image of {size} is smaller than the SSIM window, which needs {len(taps)} along each axis")
    mean_x, mean_y, xx, yy, xy = (_filter(t, taps, axes) for t in (x, y, x * x, y * y, x * y))
    count = len(taps) ** len(axes)
    norm = count / (count - 1) if window is SsimWindow.UNIFORM_7_3D else 1.0
    return mean_x, mean_y, norm * (xx - mean_x**2), norm * (yy - mean_y**2), norm * (xy - mean_x * mean_y)


def _filter(x: Tensor, taps: list[float], axes: tuple[int, ...]) -> Tensor:
    """Separable symmetric filter, mirrored at the border. Sums of shifted views beat a convolution in float64."""
    radius = len(taps) // 2
    for axis in axes:
        n = x.shape[axis]
        index = torch.arange(-radius, n + radius, device=x.device)
        index = torch.where(index < 0, -1 - index, torch.where(index >= n, 2 * n - 1 - index, index))
        padded = x.index_select(axis, index)
        x = sum((t * padded.narrow(axis, k, n) for k, t in enumerate(taps)), start=torch.zeros_like(x))
    return x


def _without_border(t: Tensor) -> Tensor:
    b = SYNTHRAD_BORDER_VOXELS
    return t[b:-b, b:-b, b:-b]
