"""Fidelity: MAE, RMSE, PSNR, SSIM, tissue errors and flicker of a prediction, taken under exactly one protocol."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctmr.imaging.volume import HOUNSFIELD_FLOOR_HU
from ctmr.metrics.protocol import PROTOCOLS, CaseMetrics, Mask, Metric, Pairing, Protocol, SsimWindow
from ctmr.metrics.ssim import masked_ssim, ms_ssim, ssim, ssim_map

__all__ = [
    "dice",
    "mae",
    "measure_cycle",
    "measure_paired",
    "measure_unpaired_pixels",
    "ms_ssim",
    "mse",
    "psnr",
    "rmse",
    "ssim",
    "ssim_map",
    "through_plane_flicker",
]

BONE_ABOVE_HU = 250.0
AIR_BELOW_HU = -200.0


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


def through_plane_flicker(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    mask: NDArray[np.bool_],
    *,
    axis: int,
    clip: tuple[float, float] | None = None,
) -> float | None:
    """Measure how much a prediction jumps from slice to slice, relative to the truth.

    The mean of ``|v[k] - (v[k-1] + v[k+1]) / 2|`` of the prediction over that of the truth, taken where a voxel and
    both neighbours lie in the mask. A steady change along the axis counts nothing; slices that were translated one by
    one and do not fit together count fully.

    Parameters
    ----------
    prediction, truth, mask
        ``[D, H, W]`` on one grid, one unit.
    axis
        Along which slices are stacked.
    clip
        Values are clipped to this range first.

    Returns
    -------
    float or None
        1: as smooth as the truth. Above: flicker, or noise. Below: smoother than the truth, as blur is. ``None``
        where the mask is less than three slices thick, or the truth does not change.
    """
    before, here, after = (
        tuple(slice(k, k - 2 or None) if a == axis else slice(None) for a in range(3)) for k in range(3)
    )
    where = mask[before] & mask[here] & mask[after]
    if not where.any():
        return None

    def jump(v: NDArray[Any]) -> float:
        first, middle, last = (v[k][where].astype(np.float64) for k in (before, here, after))
        if clip is not None:
            first, middle, last = (np.clip(a, *clip) for a in (first, middle, last))
        return float(np.abs(middle - 0.5 * (first + last)).mean())

    true = jump(truth)
    return jump(prediction) / true if true > 0 else None


def measure_paired(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    protocol: Protocol,
    *,
    case: str,
    subject: str,
    slice_axis: int | None = None,
) -> CaseMetrics:
    """Measure a prediction against the same patient's truth.

    Parameters
    ----------
    prediction, truth
        ``[D, H, W]`` on one grid in the protocol's unit (HU or 8-bit grey levels). Slice protocols take one slice,
        ``[1, H, W]``: the mean of slices' PSNRs has no RMSE.
    mask
        ``[D, H, W]`` bool, the mask that the protocol names, for SynthRAD the dataset's own; ignored where it names
        none.
    protocol
        One of the paired protocols of `ctmr.metrics.protocol.PROTOCOLS`.
    case, subject
        Identifiers of the case and its patient.
    slice_axis
        Axis along which the model's slices are stacked, for `through_plane_flicker`; ``None``: not measured.

    Returns
    -------
    CaseMetrics
        mae, mse, rmse, psnr; ssim or ms_ssim where the protocol has one; for HU mae_bone (truth above 250 HU),
        mae_soft, mae_air (truth below -200 HU), dice_bone and, with `slice_axis`, flicker. A tissue that the truth
        lacks gives no number. PSNR is infinite for equal images. Everything is computed in float64.

    Raises
    ------
    ValueError
        When the protocol is not paired, shapes differ, a value is not finite, the mask is missing or empty, or the
        SSIM window does not fit.
    """
    if protocol.pairing is not Pairing.PAIRED or protocol.data_range is None:
        raise ValueError(f"case {case}: protocol {protocol.name} does not compare a prediction with its truth")
    inside = _checked(prediction, truth, mask, protocol, case)
    raw_p, raw_t = (a[inside].astype(np.float64) for a in (prediction, truth))
    p, t = (_clipped(a, protocol) for a in (raw_p, raw_t))
    squared = float(np.square(p - t).mean())
    absolute = np.abs(p - t) if protocol.mae_clipped else np.abs(raw_p - raw_t)
    values = {
        Metric.MAE.value: float(absolute.mean()),
        Metric.MSE.value: squared,
        Metric.RMSE.value: math.sqrt(squared),
        Metric.PSNR.value: _decibel(math.sqrt(squared), protocol.data_range),
    }
    try:
        values |= _similarity(prediction, truth, inside, protocol)
    except ValueError as error:
        raise ValueError(f"case {case} under {protocol.name}: {error}") from None
    if protocol.unit == "HU":
        values |= _by_tissue(absolute, p, t)
    if protocol.unit == "HU" and slice_axis is not None:
        flicker = through_plane_flicker(prediction, truth, inside, axis=slice_axis, clip=protocol.clip)
        values |= {} if flicker is None else {Metric.FLICKER.value: flicker}
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
    assert protocol.data_range is not None
    y, x = (_clipped(a.astype(np.float64), protocol) for a in (reconstruction, image))
    try:
        similarity = masked_ssim(
            y + 1,
            x + 1,
            inside,
            data_range=protocol.data_range,
            window=protocol.ssim_window,
            border=protocol.ssim_border,
        )
    except ValueError as error:
        raise ValueError(f"case {case} under {protocol.name}: {error}") from None
    values = _plain(y, x, protocol.data_range) | {Metric.SSIM.value: similarity}
    return CaseMetrics(case, subject, protocol, values)


def measure_unpaired_pixels(
    translation: NDArray[Any], other: NDArray[Any], *, data_range: float, paper: str, case: str
) -> CaseMetrics:
    """Measure a translation against some *other* patient's image, only to rebuild a paper's table.

    Parameters
    ----------
    translation, other
        One shape, in the values that the paper measured.
    data_range
        MAX of the paper's PSNR.
    paper
        Whose table; the protocol's variant.
    case
        Name of the pair; it has no patient.

    Returns
    -------
    CaseMetrics
        mae, mse, rmse, psnr. They say nothing about fidelity and can never be in a gate.

    Raises
    ------
    ValueError
        When shapes differ or a value is not finite.
    """
    if translation.shape != other.shape:
        raise ValueError(f"case {case}: translation {translation.shape} and image {other.shape} must share one shape")
    if not (np.isfinite(translation).all() and np.isfinite(other).all()):
        raise ValueError(f"case {case}: translation or image holds values that are not finite; all must be numbers")
    how = replace(PROTOCOLS["unpaired_pixels"], data_range=data_range, variant=paper)
    return CaseMetrics(case, "", how, _plain(translation, other, data_range))


def _plain(x: NDArray[Any], y: NDArray[Any], data_range: float) -> dict[str, float]:
    squared = mse(x, y)
    return {
        Metric.MAE.value: mae(x, y),
        Metric.MSE.value: squared,
        Metric.RMSE.value: math.sqrt(squared),
        Metric.PSNR.value: _decibel(math.sqrt(squared), data_range),
    }


def _similarity(
    prediction: NDArray[Any], truth: NDArray[Any], inside: NDArray[np.bool_], protocol: Protocol
) -> dict[str, float]:
    data_range, window = protocol.data_range, protocol.ssim_window
    if window is SsimWindow.NONE or data_range is None:
        return {}

    def prepare(a: NDArray[np.float64], where: NDArray[np.bool_]) -> NDArray[np.float64]:
        a = _clipped(a, protocol)
        return np.where(where, a, HOUNSFIELD_FLOOR_HU) - HOUNSFIELD_FLOOR_HU if protocol.unit == "HU" else a

    border = protocol.ssim_border
    if window is SsimWindow.MS_SSIM_5:
        whole = [prepare(a.astype(np.float64), inside) for a in (prediction, truth)]
        x, y, m = (torch.from_numpy(np.ascontiguousarray(a)) for a in (*whole, inside))
        return {Metric.MS_SSIM.value: float(ms_ssim(x, y, m, data_range=data_range, border=border))}
    found = masked_ssim(prediction, truth, inside, data_range=data_range, window=window, border=border, prepare=prepare)
    return {Metric.SSIM.value: found}


def _by_tissue(absolute: NDArray[np.float64], p: NDArray[np.float64], t: NDArray[np.float64]) -> dict[str, float]:
    bone, air = t > BONE_ABOVE_HU, t < AIR_BELOW_HU
    classes = {Metric.MAE_BONE: bone, Metric.MAE_SOFT: ~bone & ~air, Metric.MAE_AIR: air}
    values = {name.value: float(absolute[where].mean()) for name, where in classes.items() if where.any()}
    overlap = dice(p > BONE_ABOVE_HU, bone)
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


def _clipped(a: NDArray[np.float64], protocol: Protocol) -> NDArray[np.float64]:
    return a if protocol.clip is None else np.clip(a, *protocol.clip)


def _errors(x: NDArray[Any], y: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    difference: NDArray[np.float64] = x.astype(np.float64) - y.astype(np.float64)
    return difference if mask is None else difference[mask]


def _decibel(error: float, data_range: float) -> float:
    return 20.0 * math.log10(data_range / error) if error > 0 else math.inf
