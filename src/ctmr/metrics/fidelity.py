"""Fidelity: MAE, RMSE, PSNR, SSIM, tissue errors and flicker of an image pair, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.imaging.hounsfield import AIR_BELOW_HU, BONE_ABOVE_HU
from ctmr.metrics.pair import ImagePair


def mae(pair: ImagePair) -> float:
    """Mean absolute error."""
    return float(pair.absolute.mean())


def mse(pair: ImagePair) -> float:
    """Mean squared error."""
    return pair.squared_error


def rmse(pair: ImagePair) -> float:
    """Root of the mean squared error."""
    return math.sqrt(pair.squared_error)


def psnr(pair: ImagePair) -> float:
    """Peak signal-to-noise ratio in dB, ``20·log10(MAX / RMSE)``; infinite for equal images."""
    error = rmse(pair)
    return 20.0 * math.log10(_data_range(pair) / error) if error > 0 else math.inf


def ssim(pair: ImagePair) -> float:
    """Mean over the mask of the local structural similarity, see `ctmr.metrics.ssim.masked_ssim`."""
    from ctmr.metrics.ssim import masked_ssim

    return masked_ssim(
        pair.prediction,
        pair.reference,
        pair.inside,
        data_range=_data_range(pair),
        window=pair.protocol.ssim_window,
        border=pair.protocol.ssim_border,
        prepare=lambda image, inside: _non_negative(pair, image, inside),
    )


def ms_ssim(pair: ImagePair) -> float:
    """Multi-scale structural similarity of the SynthRAD2025 challenge, see `ctmr.metrics.ssim.ms_ssim`."""
    import torch

    from ctmr.metrics import ssim as similarity

    images = (_non_negative(pair, a.astype(np.float64), pair.inside) for a in (pair.prediction, pair.reference))
    x, y, inside = (torch.from_numpy(np.ascontiguousarray(a)) for a in (*images, pair.inside))
    border = pair.protocol.ssim_border
    return float(similarity.ms_ssim(x, y, inside, data_range=_data_range(pair), border=border))


def mae_bone(pair: ImagePair) -> float | None:
    """MAE where the truth is above 250 HU; ``None`` where it has no bone."""
    return _mean_where(pair, _bone(pair.values[1]))


def mae_soft(pair: ImagePair) -> float | None:
    """MAE where the truth is neither bone nor air; ``None`` where it has nothing between."""
    truth = pair.values[1]
    return _mean_where(pair, ~_bone(truth) & ~_air(truth))


def mae_air(pair: ImagePair) -> float | None:
    """MAE where the truth is below -200 HU; ``None`` where it has no air."""
    return _mean_where(pair, _air(pair.values[1]))


def dice_bone(pair: ImagePair) -> float | None:
    """Dice coefficient of the voxels above 250 HU; ``None`` where neither image has bone."""
    made, true = (_bone(a) for a in pair.values)
    total = int(made.sum()) + int(true.sum())
    return 2.0 * int((made & true).sum()) / total if total else None


def flicker(pair: ImagePair) -> float | None:
    """Jumps of a prediction from slice to slice, relative to those of the truth.

    The mean of ``|v[k] - (v[k-1] + v[k+1]) / 2|`` of the prediction over that of the truth, taken where a voxel and
    both neighbours lie in the mask. A steady change along the axis counts nothing; slices that were translated one by
    one and do not fit together count fully.

    Returns
    -------
    float or None
        1: as smooth as the truth. Above: flicker, or noise. Below: smoother than the truth, as blur is. ``None``
        where the pair has no slice axis, the mask is less than three slices thick, or the truth does not change.
    """
    if pair.slice_axis is None:
        return None
    before, here, after = (
        tuple(slice(k, k - 2 or None) if a == pair.slice_axis else slice(None) for a in range(3)) for k in range(3)
    )
    where = pair.inside[before] & pair.inside[here] & pair.inside[after]
    if not where.any():
        return None

    def jump(v: NDArray[Any]) -> float:
        first, middle, last = (pair.clipped(v[k][where].astype(np.float64)) for k in (before, here, after))
        return float(np.abs(middle - 0.5 * (first + last)).mean())

    true = jump(pair.reference)
    return jump(pair.prediction) / true if true > 0 else None


def _non_negative(pair: ImagePair, image: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Clip, and shift to 0 what SSIM's luminance takes as dark; Hounsfield units are air outside the mask first."""
    floor = 0.0 if pair.protocol.clip is None else pair.protocol.clip[0]
    clipped = pair.clipped(image)
    return (np.where(inside, clipped, floor) if pair.protocol.unit == "HU" else clipped) - floor


def _mean_where(pair: ImagePair, where: NDArray[np.bool_]) -> float | None:
    return float(pair.absolute[where].mean()) if where.any() else None


def _bone(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return values > BONE_ABOVE_HU


def _air(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return values < AIR_BELOW_HU


def _data_range(pair: ImagePair) -> float:
    if pair.protocol.data_range is None:
        raise ValueError(f"protocol {pair.protocol.name} has no range, which this metric needs")
    return pair.protocol.data_range
