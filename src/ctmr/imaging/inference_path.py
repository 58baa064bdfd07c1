"""The path around a served model: native images to the array it takes, and its answer back onto the native voxels.

Preprocessing, evaluation and the Triton client all use these functions, so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.grid import Grid
from ctmr.imaging.hounsfield import OUTSIDE_VALUE
from ctmr.imaging.resample import Placement, from_grid, to_grid
from ctmr.imaging.steps.base import Alignment, ImageStep, Reference, no_reference
from ctmr.imaging.storage_types import to_storage
from ctmr.imaging.volume import Modality, Unit, Volume

StepObserver = Callable[[ImageStep, Volume], None]

SAME_PLACE_MM = 1e-3
"""Affines of the channels of one subject may differ by rounding of file headers, not by more."""


@dataclass(frozen=True)
class ServedPlacement:
    """Origin of a prepared array: everything `finish` needs.

    Attributes
    ----------
    on_grid
        Index map between the native image and the grid.
    native_affine
        4×4 RAS affine of the native image; ``None`` for pictures.
    subject
        Pseudonym, carried over to the translation.
    """

    on_grid: Placement
    native_affine: NDArray[np.float64] | None
    subject: str = ""

    @property
    def grid_affine(self) -> NDArray[np.float64] | None:
        """4×4 RAS affine of the array on the grid; ``None`` for pictures."""
        if self.native_affine is None:
            return None
        affine: NDArray[np.float64] = self.native_affine @ np.asarray(self.on_grid.matrix)
        return affine


@dataclass(frozen=True)
class PreparedImage:
    """One subject's channels on the grid.

    Attributes
    ----------
    array
        ``[C, D, H, W]`` in the storage type of the unit.
    placement
        The way back: to native voxels or, after a registration, to those of its reference.
    ran
        The image steps that ran, in order.
    alignment
        What a registration to another image found; ``None`` without one.
    """

    array: NDArray[Any]
    placement: ServedPlacement
    ran: tuple[ImageStep, ...]
    alignment: Alignment | None


def prepare(volumes: Sequence[Volume], grid: Grid) -> tuple[NDArray[Any], ServedPlacement]:
    """Bring the channels of one subject onto a model's grid, as the model takes them.

    Parameters
    ----------
    volumes
        One volume a channel, in the model's order, all of one unit and on the same voxels.
    grid
        The model's grid; its served steps run, training-only ones do not.

    Returns
    -------
    tuple of numpy.ndarray and ServedPlacement
        ``[C, D, H, W]`` in the storage type of the unit (int16 HU, uint16 arbitrary, uint8 grey), and the way back.

    Raises
    ------
    InputError
        No volume, channels of unlike unit or geometry, values that are not finite, or an image that does not fit the
        grid or one of its steps.
    """
    prepared = _prepare(volumes, grid, [s for s in grid.image_steps if s.served])
    return prepared.array, prepared.placement


def prepare_as_trained(
    volumes: Sequence[Volume], grid: Grid, reference: Reference = no_reference, watch: StepObserver | None = None
) -> PreparedImage:
    """Bring channels onto the grid through every step, training-only ones included.

    Parameters and errors as in `prepare`; `reference` finds the images that registrations and masks refer to, `watch`
    sees the first channel after each step.
    """
    return _prepare(volumes, grid, grid.image_steps, reference, watch)


def _prepare(
    volumes: Sequence[Volume],
    grid: Grid,
    steps: Sequence[ImageStep],
    reference: Reference = no_reference,
    watch: StepObserver | None = None,
) -> PreparedImage:
    if not volumes:
        raise InputError("no volume was given; a model needs one volume a channel")
    first = volumes[0]
    for number, other in enumerate(volumes[1:], start=2):
        if other.unit is not first.unit:
            raise InputError(f"channel {number} is in unit {other.unit}, channel 1 in {first.unit}; give one unit")
        if other.array.shape != first.array.shape or not _same_affine(first.affine, other.affine):
            raise InputError(
                f"channel {number} (shape {other.array.shape}) does not lie on the voxels of channel 1 "
                f"(shape {first.array.shape}); resample the sequences onto one grid first"
            )
    for volume in volumes if steps else ():
        # A filter would spread one such value over the image before anything else could name it.
        if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
            raise InputError(
                f"image {volume.uid or volume.subject!r} holds values that are not finite; all must be numbers"
            )
    now, ran, alignment = list(volumes), [], None
    for step in (s for s in steps if s.modality is first.modality):
        now, found = step.run(now, reference, grid.interpolation)
        alignment = found or alignment
        ran.append(step)
        if watch is not None:
            watch(step, now[0])
    channels, placements = [], []
    for volume in now:
        on_grid, placement = to_grid(volume, grid)
        channels.append(to_storage(on_grid.array, volume.unit))
        placements.append(placement)
    served = ServedPlacement(placements[0], now[0].affine, first.subject)
    return PreparedImage(np.stack(channels), served, tuple(ran), alignment)


def finish(array: NDArray[Any], placement: ServedPlacement, *, modality: Modality, unit: Unit, uid: str = "") -> Volume:
    """Bring a model's answer back onto the native voxels.

    Parameters
    ----------
    array
        ``[D, H, W]`` on the grid, in `unit`.
    placement
        From `prepare`.
    modality, unit
        What the model makes.
    uid
        Identifier of the new image, if it has one yet.

    Returns
    -------
    Volume
        On the native voxels, same dtype as `array`; where the grid did not reach stands `OUTSIDE_VALUE`.
    """
    native = from_grid(array, placement.on_grid, outside=OUTSIDE_VALUE[unit])
    return Volume(native, placement.native_affine, modality, unit, subject=placement.subject, uid=uid)


def _same_affine(a: NDArray[np.float64] | None, b: NDArray[np.float64] | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.allclose(a, b, rtol=0, atol=SAME_PLACE_MM))
