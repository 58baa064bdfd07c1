"""Plan of the way onto a grid: reorient, resample, resize, crop or pad as one index map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.grid import Grid
from ctmr.imaging.volume import Volume, orientation_of

SPACING_TOLERANCE_MM = 1e-3
"""Spacings closer than this are one; nothing is interpolated for them."""
SHEAR_TOLERANCE = 1e-3
INDEX_TOLERANCE = 1e-4
"""Voxel positions closer than this to a whole index are that index."""

Affine = NDArray[np.float64]
Shape = tuple[int, int, int]

_PATIENT_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


class Plan:
    """The index map that the steps so far amount to: index on the grid to native index.

    Parameters
    ----------
    shape, affine
        Of the native image; no affine for pictures.
    centre_mm
        Point, RAS mm, that comes to lie in the middle of every slice; ``None``: the centre of the field of view.
    """

    def __init__(self, shape: tuple[int, ...], affine: Affine | None, centre_mm: NDArray[np.float64] | None) -> None:
        self.shape = three(shape)
        self.native_affine = affine
        self.centre_mm = centre_mm
        self.matrix: Affine = np.eye(4)

    @property
    def affine(self) -> Affine:
        """RAS affine of the voxels so far."""
        if self.native_affine is None:
            raise AssertionError("steps that need millimetres check for the affine first")
        return self.native_affine @ self.matrix

    def reorient(self, target: str, volume: Volume) -> None:
        """Permute and flip axes to the nearest ones of `target`, three letters."""
        volume.require_affine()
        refuse_shear(self.affine, volume)
        letters = orientation_of(self.affine)
        source_axis = {_PATIENT_AXIS[letter]: axis for axis, letter in enumerate(letters)}
        step = np.zeros((4, 4))
        step[3, 3] = 1
        shape = []
        for axis, letter in enumerate(target):
            source = source_axis[_PATIENT_AXIS[letter]]
            same = letters[source] == letter
            step[source, axis] = 1 if same else -1
            step[source, 3] = 0 if same else self.shape[source] - 1
            shape.append(self.shape[source])
        self._apply(step, shape)

    def resample(self, grid: Grid, volume: Volume) -> None:
        """Change the spacing along the axes for which the grid names another."""
        volume.require_affine()
        refuse_shear(self.affine, volume)
        current = np.linalg.norm(self.affine[:3, :3], axis=0)
        wanted = (grid.slice_spacing_mm, *(grid.spacing_mm or (None, None)))
        step, shape = np.eye(4), list(self.shape)
        for axis, (have, want) in enumerate(zip(current, wanted, strict=True)):
            if want is not None and abs(have - want) > SPACING_TOLERANCE_MM:
                # As many voxels as cover the field of view; a hair less than a whole one does not make another.
                count = max(1, int(np.ceil(self.shape[axis] * have / want - 1e-3)))
                _scale(step, axis, want / have, self.shape[axis], count)
                if self.centre_mm is not None:
                    start = float(self.affine[:3, 3] @ (self.affine[:3, axis] / have))
                    if axis > 0:
                        first, count = np.floor((start - have / 2) / want), count + 1
                    else:
                        # All slices between those that reach the first and the last, which no cropping follows.
                        ends = np.array([start - want / 2, start + (self.shape[0] - 1) * have + want / 2]) / want
                        tie = INDEX_TOLERANCE * min(1.0, have / want)
                        first, last = np.ceil(ends[0] - tie), np.floor(ends[1] + tie)
                        count = int(last - first) + 1
                    step[axis, 3] = (first * want - start) / have
                shape[axis] = count
        self._apply(step, shape)

    def resize(self, size: tuple[int, int]) -> None:
        """Scale slices so that they just fit a size."""
        factor = min(size[0] / self.shape[1], size[1] / self.shape[2])
        step, shape = np.eye(4), list(self.shape)
        for axis, limit in ((1, size[0]), (2, size[1])):
            count = min(limit, max(1, round(self.shape[axis] * factor)))
            _scale(step, axis, self.shape[axis] / count, self.shape[axis], count)
            shape[axis] = count
        self._apply(step, shape)

    def crop_or_pad(self, size: tuple[int, int]) -> None:
        """Cut slices to a size, or pad them."""
        step, shape = np.eye(4), list(self.shape)
        centre = None if self.centre_mm is None else np.linalg.inv(self.affine) @ [*self.centre_mm, 1.0]
        for axis, count in ((1, size[0]), (2, size[1])):
            step[axis, 3] = (self.shape[axis] - count) // 2
            if centre is not None:
                step[axis, 3] = np.floor(centre[axis] - (count - 1) / 2 + INDEX_TOLERANCE)
            shape[axis] = count
        self._apply(step, shape)

    def _apply(self, step: Affine, shape: list[int]) -> None:
        self.matrix = self.matrix @ step
        self.shape = three(tuple(shape))


def _scale(step: Affine, axis: int, factor: float, before: int, after: int) -> None:
    """Let `axis` advance by `factor`, with the centres of both fields of view on each other (half voxels included)."""
    step[axis, axis] = factor
    step[axis, 3] = (before - 1) / 2 - factor * (after - 1) / 2


def refuse_shear(affine: Affine, volume: Volume) -> None:
    """Raise InputError when the axes of an affine are not at right angles; `volume` is named."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if cosine > SHEAR_TOLERANCE:
        raise InputError(
            f"image {volume.uid or volume.subject!r} is sheared (axes {np.degrees(np.arcsin(min(1.0, cosine))):.2f}° "
            "off the right angle); resample it to a straight grid first"
        )


def three(shape: tuple[int, ...]) -> Shape:
    """Return a shape as one of three axes."""
    d, h, w = shape
    return d, h, w
