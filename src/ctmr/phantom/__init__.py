"""Digital head phantoms: CT, T1 and T2 of the same imaginary person, paired by construction.

A phantom is for demonstrations and tests. It is labelled *phantom* wherever it appears, and no result obtained
on it says anything about patients.

Examples
--------
>>> from ctmr.phantom import make_head
>>> head = make_head(7, shape=(24, 28, 24), spacing_mm=8.0)
>>> head.ct.shape, str(head.ct.dtype)
((24, 28, 24), 'int16')
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .acquisition import acquire
from .anatomy import build_anatomy, grid_axes
from .lesion import Lesion
from .tissue import PROPERTIES, Tissue, TissueProperties

__all__ = ["PROPERTIES", "Lesion", "PhantomHead", "Tissue", "TissueProperties", "make_head"]

DEFAULT_SHAPE = (96, 112, 96)
DEFAULT_SPACING_MM = 2.0

# The largest head must fit: vertex and occiput, nose and ears. Below the jaw the neck may leave the volume.
MIN_FIELD_OF_VIEW_MM = (184.0, 216.0, 184.0)
SPACING_RANGE_MM = (0.5, 10.0)


@dataclass(frozen=True)
class PhantomHead:
    """One subject on one grid, axes D (to superior), H (to posterior), W (to the patient's left).

    Attributes
    ----------
    ct
        int16 ``[D, H, W]``, Hounsfield units.
    t1, t2
        uint16 ``[D, H, W]``, T1- and T2-weighted spin echo in arbitrary units.
    labels
        uint8 ``[D, H, W]``, the `Tissue` with the largest share of each voxel.
    head
        bool ``[D, H, W]``, inside the skin: one piece, airways included.
    spacing_mm
        Edge of a voxel.
    lesion
        The lesion, if the subject has one.
    """

    ct: NDArray[np.int16]
    t1: NDArray[np.uint16]
    t2: NDArray[np.uint16]
    labels: NDArray[np.uint8]
    head: NDArray[np.bool_]
    spacing_mm: float
    lesion: Lesion | None


def make_head(
    seed: int,
    *,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing_mm: float = DEFAULT_SPACING_MM,
    lesion: bool | None = None,
) -> PhantomHead:
    """Make one random head.

    Parameters
    ----------
    seed
        Non-negative; the same seed gives the same arrays, and the same person at any other shape or spacing.
    shape
        Voxels along D, H and W; times `spacing_mm` at least 184 x 216 x 184 mm, so that the head fits.
    spacing_mm
        Edge of a voxel, 0.5 to 10 mm.
    lesion
        Whether the subject has a lesion; None lets about 30 % of subjects have one.

    Raises
    ------
    ValueError
        If an argument is outside its range.
    """
    check_arguments(seed, shape, spacing_mm)
    anatomy_rng, scanner_rng = np.random.default_rng(seed).spawn(2)
    anatomy = build_anatomy(shape, spacing_mm, lesion, anatomy_rng)
    scans = acquire(anatomy.canvas, grid_axes(shape, spacing_mm), scanner_rng)
    return PhantomHead(
        scans.ct, scans.t1, scans.t2, anatomy.canvas.labels, anatomy.head, float(spacing_mm), anatomy.lesion
    )


def check_arguments(seed: int, shape: tuple[int, int, int], spacing_mm: float) -> None:
    """Raise ValueError when no head can be made of these."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, allowed are integers from 0")
    if len(shape) != 3 or any(count < 1 for count in shape):
        raise ValueError(f"shape is {tuple(shape)}, allowed are three positive voxel counts (D, H, W)")
    low, high = SPACING_RANGE_MM
    if not low <= spacing_mm <= high:
        raise ValueError(f"spacing_mm is {spacing_mm}, allowed are {low} to {high}")
    extent = tuple(float(count * spacing_mm) for count in shape)
    if any(have < need for have, need in zip(extent, MIN_FIELD_OF_VIEW_MM, strict=True)):
        raise ValueError(
            f"shape {tuple(shape)} at {spacing_mm} mm covers {extent} mm, allowed is at least {MIN_FIELD_OF_VIEW_MM} mm"
        )
