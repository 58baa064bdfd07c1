"""Evidence in the values of an image that it is not what it is taken for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.imaging.hounsfield import AIR_HU, BONE_ABOVE_HU
from ctmr.imaging.volume import Modality, Unit, Volume

AIR_WIDTH_HU = 100.0
"""Air lies within this of `AIR_HU`, noise and calibration included."""
WATER_WIDTH_HU = 150.0
"""Soft tissue lies within this of 0 HU."""
AIR_SHARE, SOFT_SHARE = 0.1, 0.05
"""Of a CT's voxels, the least that are air and soft tissue."""
BRAIN_ML = (600.0, 2300.0)
"""Volume of what a skull-stripped image shows, from an infant's brain to a large one with its mask's margin; a whole
adult head has twice as much."""
BACKGROUND_SHARE = 0.3
"""Least share of voxels of one and the same value around a stripped brain."""
SKULL_DIP = 0.75
"""Between scalp and brain the skull's shell is darker than this share of the darker of both."""
BONE_SHARE = 0.03
"""Least share of a head's voxels that are bone in CT."""
MOST_LABELS = 8
"""Different values that a mask or a segmentation of tissues has; an MR of a head has hundreds."""
_SMALLEST_IMAGE = 4096
_SAMPLE_VOXELS = 100_000
_COARSE_MM = 2.0
_SHELL_MM, _DEEPEST_MM = 2.0, 24.0


def modality_fault(volume: Volume) -> str:
    """Return why the values are not those of an MR image, empty when nothing speaks against it.

    A CT in Hounsfield units has its air near -1000 and its soft tissue near 0, which no MR has. A segmentation that was
    saved as MR has a few values in all.
    """
    if volume.modality is not Modality.MR or volume.unit is not Unit.ARBITRARY:
        return ""
    if labels := _few_values(volume.array):
        return f"it holds {labels} different values in all, as a mask or a segmentation does"
    low = float(volume.array.min())
    if low > AIR_HU + AIR_WIDTH_HU:
        return ""
    air = _share(volume.array, AIR_HU - AIR_WIDTH_HU, AIR_HU + AIR_WIDTH_HU)
    soft = _share(volume.array, -WATER_WIDTH_HU, WATER_WIDTH_HU)
    if air < AIR_SHARE or soft < SOFT_SHARE:
        return ""
    return f"{air:.0%} of its voxels lie near {AIR_HU:g} and {soft:.0%} near 0, as Hounsfield units of a CT do"


def _few_values(array: NDArray[Any]) -> int:
    """Return how many different values an image has, 0 where they are more than `MOST_LABELS`, or one."""
    if array.size < _SMALLEST_IMAGE:
        return 0
    some = array.reshape(-1)[:: max(1, array.size // _SAMPLE_VOXELS)]
    if np.unique(some).size > MOST_LABELS:
        return 0
    count = int(np.unique(array).size)
    return count if 1 < count <= MOST_LABELS else 0


def doubts(volume: Volume) -> tuple[str, ...]:
    """Return sentences on what a person should look at before the image is used."""
    return ("it looks skull-stripped: no scalp and no skull lie around the brain",) if skull_stripped(volume) else ()


def skull_stripped(volume: Volume) -> bool:
    """Return whether a head ends where its brain does.

    Around a stripped brain every voxel has one value, and no skull lies in between: in MR no dark shell beneath a
    brighter one, in CT no bone. A whole head whose background was set to one value has both.
    """
    if volume.affine is None or volume.unit is Unit.GREY8:
        return False
    array, spacing = _coarse(volume)
    lowest = array == array.min()
    if float(lowest.mean()) < BACKGROUND_SHARE:
        return False
    labels, count = ndimage.label(~lowest)
    if not count:
        return False
    sizes = np.bincount(labels.ravel())[1:]
    inside = ndimage.binary_fill_holes(labels == 1 + int(sizes.argmax()))
    millilitres = float(inside.sum()) * float(np.prod(spacing)) / 1000
    if not BRAIN_ML[0] <= millilitres <= BRAIN_ML[1]:
        return False
    if volume.unit is Unit.HU:
        return float((array[inside] > BONE_ABOVE_HU).mean()) < BONE_SHARE
    return not _has_dark_shell(array, inside, spacing)


def _has_dark_shell(array: NDArray[Any], inside: NDArray[np.bool_], spacing: tuple[float, ...]) -> bool:
    """Return whether the values fall and rise again on the way from the outside in."""
    # One voxel of background on every side, or a head that touches the edge would have no outside there.
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    shells = (depth / _SHELL_MM).astype(np.int64)
    values = array.astype(np.float64) - float(array.min())
    profile = np.array(
        [
            float(np.median(values[inside & (shells == k)]))
            for k in range(int(_DEEPEST_MM / _SHELL_MM))
            if (inside & (shells == k)).any()
        ]
    )
    return any(
        profile[k] < SKULL_DIP * min(profile[:k].max(), profile[k + 1 :].max()) for k in range(1, len(profile) - 1)
    )


def _coarse(volume: Volume) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Return every n-th voxel along each axis, about `_COARSE_MM` apart, and the spacing."""
    steps = [max(1, round(_COARSE_MM / s)) for s in volume.spacing_mm]
    d, h, w = steps
    spacing = tuple(n * s for n, s in zip(steps, volume.spacing_mm, strict=True))
    return volume.array[::d, ::h, ::w], spacing


def _share(array: NDArray[Any], low: float, high: float) -> float:
    return float(((array >= low) & (array <= high)).mean())
