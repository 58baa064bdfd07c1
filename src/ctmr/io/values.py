"""Voxel types: the smallest exact type for values that were read, and int16 for Hounsfield units that are written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError


def compact(array: NDArray[Any]) -> NDArray[Any]:
    """Return the values as int16 or uint16 when that is exact, else as float32 (float64 never leaves a reader)."""
    if array.dtype in (np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.uint8)):
        return array
    low, high = float(array.min()), float(array.max())
    whole = array.dtype.kind in "iub" or bool((array == np.rint(array)).all())
    for dtype in (np.int16, np.uint16):
        if whole and np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    return array.astype(np.float32)


def hounsfield_int16(array: NDArray[Any], name: str) -> NDArray[np.int16]:
    """Return Hounsfield units rounded to int16; InputError when a value is not finite or beyond int16."""
    if array.dtype == np.int16:
        return array
    if array.dtype.kind == "f":
        require_finite(array, name)
        array = np.rint(array)
    if array.min() < -32768 or array.max() > 32767:
        raise InputError(
            f"{name} holds values from {array.min():g} to {array.max():g} HU; 16 bits hold "
            "-32768 to 32767, so check the unit"
        )
    return array.astype(np.int16)


def require_finite(array: NDArray[Any], name: str) -> None:
    """Raise InputError when a value is NaN or infinite."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise InputError(f"{name} holds {count} values that are NaN or infinite; every voxel must be a number")
