"""Straightening a stack of slices: a gantry tilt and uneven gaps onto a right-angled, evenly spaced grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.io.dicom.geometry import ROUNDING_MM, Stack, Vector, plane_affine


def straighten(array: NDArray[Any], stack: Stack, outside: float) -> tuple[NDArray[Any], Vector, tuple[str, ...]]:
    """Resample slices onto a right-angled grid of even steps.

    Parameters
    ----------
    array
        ``[N, rows, columns]``, slices as in `stack`.
    stack
        Tilted, uneven, or both.
    outside
        Value beyond the slices' edges.

    Returns
    -------
    array
        Same dtype, integers rounded; rows and columns grow by the largest shift, so nothing is cut off.
    affine
        RAS mm; the slices keep the orientation they were acquired in.
    notes
        One sentence for each thing that was done.

    Notes
    -----
    A tilt moves slices within their planes only, relative to the middle one, linearly interpolated; a slice whose
    shift is a whole number of pixels (the middle one's is 0) keeps its values exactly. Uneven gaps are interpolated
    linearly between the two neighbouring slices; a new slice that falls on an old one is that slice. Linear, because
    it invents no values beyond those of the neighbours.
    """
    spacing = np.array(stack.planes[0].spacing)
    middle = len(stack.planes) // 2
    offsets = (stack.sideways - stack.sideways[middle]) if stack.tilted else np.zeros_like(stack.sideways)
    shifts = _snap(offsets / spacing, ROUNDING_MM / spacing)
    lowest, highest = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int)
    shape = tuple(int(n) for n in np.array(array.shape[1:]) + highest - lowest)
    count, step = len(stack.planes), float(stack.along[-1]) / (len(stack.planes) - 1)
    if not stack.even:
        count = round(float(stack.along[-1] / np.median(np.diff(stack.along)))) + 1
        step = float(stack.along[-1]) / (count - 1)
    out = np.empty((count, *shape), array.dtype)
    shifted: dict[int, NDArray[np.float32]] = {}
    for j in range(count):
        lower, weight = (j, 0.0) if stack.even else _between(stack.along, j * step)
        needed = [lower] if weight == 0 else [lower, lower + 1]
        shifted = {
            k: shifted[k] if k in shifted else _shift(array[k], shifts[k] - lowest, shape, outside) for k in needed
        }
        values = shifted[lower]
        if weight:
            values = values + np.float32(weight) * (shifted[lower + 1] - values)
        out[j] = np.rint(values) if out.dtype.kind in "iu" else values
    first = stack.planes[0]
    corner = lowest * spacing + (stack.sideways[middle] if stack.tilted else 0.0)
    origin = first.position + corner @ np.stack([first.down, first.across])
    return out, plane_affine(first, first.normal * step, origin), _notes(stack, offsets, step)


def _notes(stack: Stack, offsets: Vector, step: float) -> tuple[str, ...]:
    notes = []
    if stack.tilted:
        most = float(np.linalg.norm(offsets, axis=1).max())
        notes.append(
            f"a gantry tilt of {stack.tilt_deg:.1f}° was straightened: slices moved by up to {most:.1f} mm in their "
            "planes, linearly interpolated"
        )
    if not stack.even:
        gaps = np.diff(stack.along)
        notes.append(
            f"uneven gaps of {gaps.min():.2f} to {gaps.max():.2f} mm were resampled to {step:.2f} mm, linearly "
            "interpolated"
        )
    return tuple(notes)


def _snap(values: Vector, tolerance: Vector) -> Vector:
    """Return values with those that are whole but for rounding made whole."""
    whole = np.rint(values)
    return np.where(np.abs(values - whole) <= tolerance, whole, values)


def _between(along: Vector, at: float) -> tuple[int, float]:
    """Return the slice below a position and the weight of the one above, 0 where the position is a slice's own."""
    nearest = int(np.abs(along - at).argmin())
    if abs(along[nearest] - at) <= ROUNDING_MM:
        return nearest, 0.0
    lower = int(np.searchsorted(along, at, side="right")) - 1
    return lower, float((at - along[lower]) / (along[lower + 1] - along[lower]))


def _shift(image: NDArray[Any], by: Vector, shape: tuple[int, ...], outside: float) -> NDArray[np.float32]:
    """Return the image moved by (down, across) pixels, both at least 0, on a larger plane."""
    whole = np.floor(by).astype(int)
    out = np.full(shape, outside, np.float32)
    out[whole[0] : whole[0] + image.shape[0], whole[1] : whole[1] + image.shape[1]] = image
    for axis, fraction in enumerate(by - whole):
        if fraction > 0:
            before = np.full_like(out, outside)
            source, target = [slice(None)] * 2, [slice(None)] * 2
            source[axis], target[axis] = slice(None, -1), slice(1, None)
            before[tuple(target)] = out[tuple(source)]
            out += np.float32(fraction) * (before - out)
    return out
