"""Voxel types: the smallest exact type for values that were read, and int16 for Hounsfield units that are written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import FLOOR_HU, THINNEST_HU

_KEPT = tuple(np.dtype(t) for t in (np.int16, np.uint16, np.uint8))


def compact(array: NDArray[Any]) -> NDArray[Any]:
    """Return the values as int16 or uint16 when that is exact, else as float32 (float64 never leaves a reader)."""
    if array.dtype in _KEPT:
        return array
    low, high = float(array.min()), float(array.max())
    # One slice at a time: the first that is not whole ends the search, and no copy of the whole image is made.
    whole = array.dtype.kind in "iub" or all(bool((part == np.rint(part)).all()) for part in array)
    return array.astype(_holding(low, high) if whole else np.float32)


def rescaled(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Return ``slope · stored + intercept``, in integers when both are whole numbers, else in float64."""
    if slope == 1 and intercept == 0:
        return stored
    if float(slope).is_integer() and float(intercept).is_integer():
        reach = (abs(slope) * 2.0 ** (8 * stored.dtype.itemsize)) + abs(intercept)
        if reach < 2**62:
            whole: NDArray[Any] = stored.astype(np.int32 if reach < 2**31 else np.int64)
            if slope != 1:
                whole *= int(slope)
            whole += int(intercept)
            return whole
    scaled: NDArray[np.float64] = stored * np.float64(slope) + np.float64(intercept)
    return scaled


def without_padding(array: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Make air of padding that no header names.

    Parameters
    ----------
    array
        ``[D, H, W]`` in Hounsfield units.

    Returns
    -------
    array
        The same, or a copy with -1024 in place of the padding.
    notes
        One sentence when something was replaced.

    Notes
    -----
    A CT is reconstructed in a circle, and scanners fill the rest of the square. So padding is one value at or below
    `THINNEST_HU` that all eight corners of the volume hold and beside which there is no other such value. Anything
    else that low stays as it is: it is not understood, and validation refuses it.
    """
    low = float(array.min())
    ends = (0, -1)
    if low > THINNEST_HU or bool((array[np.ix_(ends, ends, ends)] != low).any()):
        return array, ()
    padded = array <= THINNEST_HU
    if bool((array[padded] != low).any()):
        return array, ()
    air = array.dtype.type(FLOOR_HU)
    note = f"{padded.mean():.0%} of its voxels hold {low:g} HU, which nothing has: padding, which became {air:g}"
    return np.where(padded, air, array), (note,)


class Collector:
    """An image that is filled slice by slice, in the smallest type that holds what it was given so far exactly.

    Parameters
    ----------
    shape
        ``[D, H, W]``.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._array: NDArray[Any] | None = None
        self._low, self._high = np.inf, -np.inf

    def put(self, index: int, values: NDArray[Any]) -> None:
        """Set one slice."""
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        if self._array is None:
            self._array = np.empty(self._shape, values.dtype if values.dtype in _KEPT else np.int16)
        limits = np.iinfo(self._array.dtype) if self._array.dtype.kind in "iu" else None
        if limits is not None and (
            values.dtype.kind == "f" or not (limits.min <= self._low and self._high <= limits.max)
        ):
            self._array = self._array.astype(
                np.float32 if values.dtype.kind == "f" else _holding(self._low, self._high)
            )
        self._array[index] = values

    def array(self, name: str) -> NDArray[Any]:
        """Return the image; InputError, which names it, when a value is not finite."""
        assert self._array is not None
        require_finite(self._array, name)
        return self._array


def _holding(low: float, high: float) -> type[np.generic]:
    """Return the type for whole numbers in a range."""
    for dtype in (np.int16, np.uint16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return np.float32


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
