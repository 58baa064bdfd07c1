"""Volume: an image with its geometry and its unit, so that a picture can never pass for Hounsfield units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.origin import Synthetic

UNEVEN_LIMIT = 0.25
"""Gaps between slices that differ from the usual one by at most this share of it are resampled to even ones; a missing
slice is 1."""


class Modality(StrEnum):
    """Technique that made the image, in DICOM's codes."""

    CT = "CT"
    MR = "MR"


class Unit(StrEnum):
    """Meaning of a voxel's number."""

    HU = "HU"
    ARBITRARY = "arbitrary"
    GREY8 = "grey8"


class Direction(StrEnum):
    """Translation of one modality into the other."""

    MR2CT = "mr2ct"
    CT2MR = "ct2mr"

    @property
    def source(self) -> Modality:
        """Modality that goes in."""
        return Modality.MR if self is Direction.MR2CT else Modality.CT

    @property
    def target(self) -> Modality:
        """Modality that comes out."""
        return Modality.CT if self is Direction.MR2CT else Modality.MR

    @property
    def reverse(self) -> Direction:
        """The way back."""
        return Direction.CT2MR if self is Direction.MR2CT else Direction.MR2CT


class Interpolation(StrEnum):
    """Interpolation between voxels when an image is brought onto the grid."""

    NEAREST = "nearest"
    LINEAR = "linear"
    SPLINE = "spline"

    @property
    def order(self) -> int:
        """Degree of the spline: 0, 1 or 3."""
        return {Interpolation.NEAREST: 0, Interpolation.LINEAR: 1, Interpolation.SPLINE: 3}[self]


@dataclass(frozen=True)
class Volume:
    """One image of one subject.

    Attributes
    ----------
    array
        ``[D, H, W]``, any real dtype, in `unit`. A single picture has D = 1.
    affine
        4×4 float64; maps an index ``(d, h, w, 1)`` to RAS millimetres. ``None`` for pictures, which have no geometry.
    modality, unit
        What made the image and what its numbers mean. HU belongs to CT only.
    subject
        Pseudonym of the subject; never a patient's name.
    sequence
        MR sequence (``T1``, ``T2``, …), ``None`` for CT or when unknown.
    uid
        Series instance UID or another identifier of the image; empty when there is none.
    notes
        Sentences on what the reader did to the image or doubts about it, e.g. that a gantry tilt was straightened.
    synthetic
        What the file says when a model made the image; ``None`` for what was acquired, and for phantoms.
    phantom
        Whether the file says that it shows a phantom.

    Examples
    --------
    >>> axial = np.array([[0.0, 0, -1, 0], [0, -1, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]])
    >>> ct = Volume(np.full((4, 8, 8), -1000, np.int16), axial, Modality.CT, Unit.HU)
    >>> ct.orientation, ct.spacing_mm
    ('SPL', (2.5, 1.0, 1.0))
    >>> Volume(ct.array, axial, Modality.MR, Unit.HU)
    Traceback (most recent call last):
    ctmr.errors.InputError: unit HU belongs to CT; this volume's modality is MR
    """

    array: NDArray[Any]
    affine: NDArray[np.float64] | None
    modality: Modality
    unit: Unit
    subject: str = ""
    sequence: str | None = None
    uid: str = ""
    notes: tuple[str, ...] = ()
    synthetic: Synthetic | None = None
    phantom: bool = False

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise InputError(f"a volume has 3 axes [D, H, W]; this one has shape {self.array.shape}")
        if min(self.array.shape) < 1:
            raise InputError(f"a volume has at least one voxel along each axis; this one has shape {self.array.shape}")
        if self.unit is Unit.HU and self.modality is not Modality.CT:
            raise InputError(f"unit HU belongs to CT; this volume's modality is {self.modality}")
        if self.affine is not None:
            affine = np.asarray(self.affine, dtype=np.float64)
            if affine.shape != (4, 4) or not np.isfinite(affine).all():
                raise InputError(f"an affine is a finite 4×4 matrix; this one has shape {affine.shape}")
            if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
                raise InputError("an affine is invertible; this one collapses an axis")
            object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along D, H, W in mm; InputError for a picture."""
        affine = self.require_affine()
        d, h, w = np.linalg.norm(affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def orientation(self) -> str:
        """Three letters of RASLPI: towards which side of the patient D, H and W grow, e.g. ``SPL``."""
        return orientation_of(self.require_affine())

    def require_affine(self) -> NDArray[np.float64]:
        """Return the affine, or raise InputError when the image has no geometry."""
        if self.affine is None:
            raise InputError(
                f"image {self.uid or self.subject!r} is a picture without geometry; a step here needs millimetres"
            )
        return self.affine

    def require_hu(self) -> NDArray[Any]:
        """Return the array if it is in Hounsfield units, else raise InputError: a grey picture never yields HU."""
        if self.unit is not Unit.HU:
            raise InputError(
                f"image {self.uid or self.subject!r} is in unit {self.unit}; Hounsfield units are needed here"
            )
        return self.array

    def with_array(self, array: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Volume:
        """Return a copy with other voxels and, if given, another affine."""
        return replace(self, array=array, affine=self.affine if affine is None else affine)


def orientation_of(affine: NDArray[np.float64]) -> str:
    """Return the three orientation letters of the array axes of an RAS affine.

    Each axis gets the letter of the patient axis that it follows most, one letter a patient axis
    (the assignment is the best permutation, so oblique volumes are unambiguous).
    """
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best: tuple[float, str] = (-1.0, "")
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        score = sum(abs(direction[row, axis]) for axis, row in enumerate(order))
        if score > best[0] + 1e-12:
            letters = "".join(
                ("RL", "AP", "SI")[row][0 if direction[row, axis] > 0 else 1] for axis, row in enumerate(order)
            )
            best = (score, letters)
    return best[1]
