"""Bringing an image onto a model's grid and back: reorient, resample, resize, crop or pad as one index map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from ctmr.errors import InputError
from ctmr.imaging.grid import Grid, ServeStep
from ctmr.imaging.hounsfield import OUTSIDE_VALUE
from ctmr.imaging.plan import INDEX_TOLERANCE, Affine, Plan, Shape, three
from ctmr.imaging.volume import Volume

ANTI_ALIAS_ABOVE = 1.5
"""A volume is smoothed before it is sampled more coarsely than by this factor; a picture by any factor above 1."""


@dataclass(frozen=True)
class Placement:
    """Placement of an image on a grid: everything `from_grid` needs.

    Attributes
    ----------
    native_shape, grid_shape
        ``[D, H, W]`` before and after.
    matrix
        4×4; maps an index ``(d, h, w, 1)`` on the grid to the native index. Rows are tuples, so a placement can be
        compared, hashed and written as JSON.
    """

    native_shape: Shape
    grid_shape: Shape
    matrix: tuple[tuple[float, ...], ...]

    @property
    def is_identity(self) -> bool:
        """True when the image already lay on the grid."""
        return self.native_shape == self.grid_shape and np.array_equal(np.asarray(self.matrix), np.eye(4))


def to_grid(volume: Volume, grid: Grid, centre_mm: NDArray[np.float64] | None = None) -> tuple[Volume, Placement]:
    """Bring a volume onto a model's grid.

    Parameters
    ----------
    volume
        Any orientation, oblique included: axes are permuted and flipped to the nearest ones and the affine is kept.
    grid
        Its geometry is applied in order. The steps are composed first, so voxels are interpolated once, as the grid
        says, and only along axes whose spacing changes.
    centre_mm
        Point, RAS mm, that lies in the middle of every slice, to whole voxels; ``None``, and for pictures: the centre
        of the field of view. Where the spacing changes, voxels and slices then lie at whole multiples of it from the
        origin, so that neither the field of view nor another image in the same place moves them.

    Returns
    -------
    tuple of Volume and Placement
        The volume keeps its dtype (integers are rounded) and every voxel its place in millimetres; beyond the field of
        view stands `OUTSIDE_VALUE`. An image that lies on the grid already comes back with the same array.

    Raises
    ------
    InputError
        A picture for a volume grid, or a sheared volume.
    """
    plan = Plan(volume.array.shape, volume.affine, None if volume.affine is None else centre_mm)
    anti_alias_above = ANTI_ALIAS_ABOVE
    for step in grid.geometry:
        match step:
            case ServeStep.REORIENT:
                plan.reorient(grid.orientation, volume)
            case ServeStep.RESAMPLE:
                plan.resample(grid, volume)
            case ServeStep.RESIZE:
                plan.resize(grid.size)
                anti_alias_above = 1.0
            case ServeStep.CROP_OR_PAD:
                plan.crop_or_pad(grid.size)
    rows = tuple(tuple(float(x) for x in row) for row in plan.matrix)
    placement = Placement(three(volume.array.shape), plan.shape, rows)
    if placement.is_identity:
        return volume, placement
    order = grid.interpolation.order
    # The outermost of coarser slices may lie beyond the field of view, though half of it reaches in.
    slab = float(np.abs(plan.matrix[:3, 0]).max())
    array = _sample(
        volume.array, plan.matrix, plan.shape, order, OUTSIDE_VALUE[volume.unit], anti_alias_above, slab=slab
    )
    affine = None if volume.affine is None else volume.affine @ plan.matrix
    return volume.with_array(array, affine), placement


def from_grid(array_on_grid: NDArray[Any], placement: Placement, *, outside: float, order: int = 1) -> NDArray[Any]:
    """Bring an array from a model's grid back onto the native voxels.

    Parameters
    ----------
    array_on_grid
        ``[D, H, W]`` of ``placement.grid_shape``.
    placement
        From `to_grid`.
    outside
        Value of native voxels that the grid did not reach.
    order
        1 linear, 0 nearest (masks).

    Returns
    -------
    numpy.ndarray
        Native shape and axis order, same dtype. Bit-identical where nothing was interpolated.
    """
    if array_on_grid.shape != placement.grid_shape:
        raise InputError(
            f"an array of shape {array_on_grid.shape} does not lie on this grid of shape {placement.grid_shape}"
        )
    if placement.is_identity:
        return array_on_grid
    back = np.linalg.inv(np.asarray(placement.matrix))
    return _sample(array_on_grid, back, placement.native_shape, order, outside, ANTI_ALIAS_ABOVE, trim=True)


def resample_to(
    volume: Volume, like_affine: Affine, like_shape: Shape, *, order: int = 1, outside: float
) -> NDArray[Any]:
    """Sample a volume on the voxels of another image, by their positions in mm.

    Parameters
    ----------
    volume
        What to sample; needs an affine.
    like_affine, like_shape
        RAS affine and ``[D, H, W]`` of the other image.
    order
        0 nearest, 1 linear, up to 3 for splines. Linear and above are smoothed first where the other image is more than
        `ANTI_ALIAS_ABOVE` times as coarse.
    outside
        Value beyond the volume, which reaches half a voxel past its outermost centres.

    Returns
    -------
    numpy.ndarray
        ``like_shape``, dtype of the volume (integers are rounded).
    """
    matrix = np.linalg.inv(volume.require_affine()) @ like_affine
    return _sample(volume.array, matrix, like_shape, order, outside, ANTI_ALIAS_ABOVE)


def _sample(
    array: NDArray[Any],
    matrix: Affine,
    shape: Shape,
    order: int,
    outside: float,
    anti_alias_above: float,
    trim: bool = False,
    slab: float = 1.0,
) -> NDArray[Any]:
    """Return ``out[i] = array[matrix @ i]``, `outside` where that is more than half a voxel beyond the array.

    With `trim`, voxels of the array beyond the output's field of view (a grid's padding) do not blend into it. Slices
    reach half of `slab` voxels beyond it, where that is more.
    """
    aligned = _align_axes(array, matrix)
    if aligned is None:
        return _sample_oblique(array, matrix, shape, order, outside, anti_alias_above)
    array, factors, offsets = aligned
    coordinates = [
        np.asarray(f * np.arange(n) + o, dtype=np.float64) for f, o, n in zip(factors, offsets, shape, strict=True)
    ]
    copied = [
        abs(f) <= anti_alias_above and float(np.abs(c - np.rint(c)).max()) < INDEX_TOLERANCE
        for f, c in zip(factors, coordinates, strict=True)
    ]
    if order > 1 and not all(copied):
        return _sample_oblique(array, _diagonal(factors, offsets), shape, order, outside, anti_alias_above, slab)
    # Whole indices are copied, so axes that keep their spacing stay exact, whatever happens to the others.
    reach = [max(0.5, slab / 2) + INDEX_TOLERANCE, 0.5 + INDEX_TOLERANCE, 0.5 + INDEX_TOLERANCE]
    inside = [(c > -r) & (c < n - 1 + r) for c, n, r in zip(coordinates, array.shape, reach, strict=True)]
    if trim:
        for axis in range(3):
            array, coordinates[axis] = _trim(array, axis, coordinates[axis], abs(factors[axis]))
    result = array
    sampled = [a for a in range(3) if not (copied[a] or order == 0)]
    if sampled:
        result = array.astype(_float_dtype(array))
    for axis, c in enumerate(coordinates):
        count = array.shape[axis]
        clipped = np.clip(c, 0, count - 1)
        if axis in sampled:
            factor = abs(factors[axis]) if abs(factors[axis]) > anti_alias_above else 1.0
            result = _resampled(result, axis, _line(count, clipped.tobytes(), factor, result.dtype.char))
        else:
            index = np.rint(clipped).astype(np.intp)
            if not np.array_equal(index, np.arange(count)):
                result = np.take(result, index, axis=axis)
    result = _as_dtype(result, array.dtype)
    for axis, within in enumerate(inside):
        result[(slice(None),) * axis + (~within,)] = outside
    return result


def _align_axes(
    array: NDArray[Any], matrix: Affine
) -> tuple[NDArray[Any], tuple[float, ...], tuple[float, ...]] | None:
    """Return the array with its axes in the order of the output's, and factor and offset along each.

    ``None`` when an output axis runs obliquely to the array's.
    """
    linear = matrix[:3, :3]
    source = np.abs(linear).argmax(axis=0)
    rest = np.abs(linear).copy()
    rest[source, range(3)] = 0
    reach = float((rest * (np.array(array.shape)[:, None] + 1)).max())
    if sorted(source.tolist()) != [0, 1, 2] or reach > INDEX_TOLERANCE:
        return None
    factors = tuple(float(linear[s, axis]) for axis, s in enumerate(source))
    return array.transpose(source), factors, tuple(float(matrix[s, 3]) for s in source)


def _trim(
    array: NDArray[Any], axis: int, coordinates: NDArray[np.float64], factor: float
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the part of the array whose centres lie in the output's field of view, and the coordinates in it."""
    low = max(0, int(np.ceil(coordinates.min() - factor / 2 - INDEX_TOLERANCE)))
    high = min(array.shape[axis] - 1, int(np.floor(coordinates.max() + factor / 2 + INDEX_TOLERANCE)))
    if low > high:
        return array, coordinates
    return array[(slice(None),) * axis + (slice(low, high + 1),)], coordinates - low


@lru_cache(maxsize=64)
def _line(count: int, coordinates: bytes, factor: float, dtype: str) -> sparse.csr_array:
    """Return the matrix that blurs a line of voxels and interpolates it linearly at float64 `coordinates` inside it."""
    at = np.frombuffer(coordinates)
    below = np.floor(at).astype(np.intp)
    above = np.minimum(below + 1, count - 1)
    blurred = _blur(np.eye(count), factor, 0)
    weight = (at - below)[:, None]
    return sparse.csr_array((blurred[below] * (1.0 - weight) + blurred[above] * weight).astype(dtype))


def _resampled(array: NDArray[Any], axis: int, line: sparse.csr_array) -> NDArray[Any]:
    """Apply a matrix to every line of an array along one axis; only voxels of the result are computed."""
    first = np.moveaxis(array, axis, 0)
    made: NDArray[Any] = line @ first.reshape(len(first), -1)
    return np.moveaxis(made.reshape(-1, *first.shape[1:]), 0, axis)


def _sample_oblique(
    array: NDArray[Any],
    matrix: Affine,
    shape: Shape,
    order: int,
    outside: float,
    anti_alias_above: float,
    slab: float = 1.0,
) -> NDArray[Any]:
    values = array.astype(_float_dtype(array))
    if order > 0:
        # How far the array's index advances for one voxel of the output, whichever way the output's axes run.
        advance = np.abs(matrix[:3, :3]).max(axis=1)
        values = _smooth(values, tuple(advance), [0, 1, 2], anti_alias_above)
    result = ndimage.affine_transform(
        values, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=order, mode="nearest", prefilter=order > 1
    )
    result = _as_dtype(result, array.dtype)
    d, h, w = (np.arange(n, dtype=np.float64) for n in shape)
    for axis, count in enumerate(array.shape):
        row = matrix[axis]
        c = (row[0] * d + row[3])[:, None, None] + (row[1] * h)[None, :, None] + (row[2] * w)[None, None, :]
        reach = (max(1.0, slab) if axis == 0 else 1.0) / 2 + INDEX_TOLERANCE
        result[(c < -reach) | (c > count - 1 + reach)] = outside
    return result


def _smooth(values: NDArray[Any], factors: tuple[float, ...], axes: list[int], anti_alias_above: float) -> NDArray[Any]:
    """Blur along axes that are sampled more coarsely, so that fine detail does not fold into false structure.

    The Gaussian's full width at half maximum takes a voxel to the coarser one: FWHM² = factor² - 1
    (Cardoso et al., Scale factor point spread function matching, MICCAI 2015).
    """
    for axis in axes:
        if abs(factors[axis]) > anti_alias_above:
            values = _blur(values, abs(factors[axis]), axis)
    return values


def _blur(values: NDArray[Any], factor: float, axis: int) -> NDArray[Any]:
    if factor <= 1:
        return values
    sigma = np.sqrt(factor**2 - 1) / np.sqrt(8 * np.log(2))
    blurred: NDArray[Any] = ndimage.gaussian_filter1d(values, sigma, axis=axis, mode="nearest")
    return blurred


def _diagonal(factors: tuple[float, ...], offsets: tuple[float, ...]) -> Affine:
    matrix: Affine = np.diag([*factors, 1.0])
    matrix[:3, 3] = offsets
    return matrix


def _float_dtype(array: NDArray[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if array.dtype.itemsize > 4 or array.dtype == np.int32 else np.float32)


def _as_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a fresh array of the type; integers are rounded and clipped to their range."""
    if values.dtype == dtype or dtype.kind == "f":
        return np.array(values, dtype=dtype, order="C")
    if dtype.kind == "b":
        return np.ascontiguousarray(values > 0.5)
    info = np.iinfo(dtype)
    return np.ascontiguousarray(np.clip(np.rint(values), info.min, info.max).astype(dtype))
