"""Physical values as they are stored: the integer types of shards and served volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.volume import Unit

STORAGE_DTYPE: dict[Unit, np.dtype[Any]] = {
    Unit.HU: np.dtype(np.int16),
    Unit.ARBITRARY: np.dtype(np.uint16),
    Unit.GREY8: np.dtype(np.uint8),
}
"""What shards and served volumes hold, by unit."""

_RESCALED_MAXIMUM = 60000.0


def to_storage(array: NDArray[Any], unit: Unit) -> NDArray[Any]:
    """Round and clip physical values to the integer type that shards and served volumes hold.

    Parameters
    ----------
    array
        ``[D, H, W]`` of one whole volume.
    unit
        HU → int16, grey8 → uint8, arbitrary → uint16. Arbitrary values that are negative, above 65535 or of a
        range below 256 are first mapped linearly (minimum 0, maximum 60000), because an MR scale means nothing.

    Raises
    ------
    InputError
        When a value is not finite.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"the volume holds {int((~np.isfinite(array)).sum())} values that are not finite; all must be numbers"
        )
    dtype = STORAGE_DTYPE[unit]
    if array.dtype == dtype:
        return array
    if unit is Unit.ARBITRARY:
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > np.iinfo(np.uint16).max or (high < 256 and array.dtype.kind == "f"):
            offset = min(low, 0.0)
            scale = _RESCALED_MAXIMUM / (high - offset) if high > offset else 1.0
            array = (array.astype(np.float64) - offset) * scale
    info = np.iinfo(dtype)
    if array.dtype.kind == "f":
        array = np.rint(array)
    clipped: NDArray[Any] = np.clip(array, info.min, info.max).astype(dtype)
    return clipped
