"""Background of an MR: 0 in every path, whatever offset, marks or normalisation a file came with."""

from __future__ import annotations

import numpy as np

from ctmr.imaging.hounsfield import MISSING_MARKS
from ctmr.imaging.volume import Unit, Volume

FAR_BELOW = 4.0
"""A lowest value so many times larger than the largest of all others is a mark too, such as one in a z-scored image."""

FINE = 6000.0
"""Range of fractions above which rounding to whole numbers, as they are stored, loses nothing that can be seen."""
SCALED_TO = 60000.0
"""Largest value of fractions of a smaller range, which are scaled: an MR's scale means nothing."""


def on_background(volume: Volume) -> tuple[Volume, tuple[str, ...]]:
    """Return an MR moved so that its background is 0: what stands outside an image then continues it.

    Parameters
    ----------
    volume
        Finite values. Units other than arbitrary have a zero of their own and stay as they are.

    Returns
    -------
    volume
        A mark in place of missing data became 0, or the lowest other value where some are negative; then the lowest
        value became 0. The scale stays, unless rounding would lose something. Equal where nothing had to change.
    notes
        One sentence when a mark was found.
    """
    if volume.unit is not Unit.ARBITRARY:
        return volume, ()
    array, notes = volume.array, tuple[str, ...]()
    low, high = float(array.min()), float(array.max())
    if low == high:
        return volume, ()
    if low < 0:
        above = array > low
        beyond = float(array.min(where=above, initial=high))
        far = high > beyond and -low > FAR_BELOW * max(abs(beyond), abs(high))
        if far or (low in MISSING_MARKS and beyond >= 0):
            background = min(beyond, 0.0)
            share = 1 - float(above.mean())
            notes = (f"{share:.0%} of its voxels hold {low:g}, a mark for missing data, which became background",)
            array, low = np.where(above, array, array.dtype.type(background)), background
    if array.dtype.kind == "f":
        array = array - array.dtype.type(low) if low else array
        if high - low < FINE and bool((array != np.rint(array)).any()):
            array = array * array.dtype.type(SCALED_TO / (high - low))
    elif low:
        moved = array.astype(np.int64) - int(low)
        array = moved.astype(np.uint16 if moved.max() <= np.iinfo(np.uint16).max else np.float32)
    return (volume, ()) if array is volume.array else (volume.with_array(array), notes)
