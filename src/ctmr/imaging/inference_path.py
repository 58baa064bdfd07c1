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
from ctmr.imaging.background import on_background
from ctmr.imaging.grid import Grid
from ctmr.imaging.head import MOST_OUTSIDE, WORTH_SAYING, Head, head_of
from ctmr.imaging.hounsfield import OUTSIDE_VALUE
from ctmr.imaging.resample import Placement, from_grid, to_grid
from ctmr.imaging.steps.base import Alignment, ImageStep, Reference, no_reference
from ctmr.imaging.storage_types import to_storage
from ctmr.imaging.volume import Modality, Unit, Volume

StepObserver = Callable[[ImageStep, Volume], None]

SAME_PLACE_MM = 1e-3
"""Affines of the channels of one subject may differ by rounding of file headers, not by more."""
SAME_SIZE = 0.02
"""Fields of view of one scan differ by less: voxels of unlike sizes do not fill them alike."""


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
    centre_mm
        Point, RAS mm, in the middle of the grid's slices: the centre of the head's bounding box; ``None``: the centre
        of the field of view, for pictures and where no head was found.
    outside
        Share of the head that the grid does not reach, where the head was looked for.
    notes
        Sentences on what was done to the image or is missing of it; `finish` hands them to the translation.
    """

    on_grid: Placement
    native_affine: NDArray[np.float64] | None
    subject: str = ""
    centre_mm: tuple[float, float, float] | None = None
    outside: float = 0.0
    notes: tuple[str, ...] = ()

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


def prepare(
    volumes: Sequence[Volume], grid: Grid, like: ServedPlacement | None = None
) -> tuple[NDArray[Any], ServedPlacement]:
    """Bring the channels of one subject onto a model's grid, as the model takes them.

    Parameters
    ----------
    volumes
        One volume a channel, in the model's order, all of one unit and on the same voxels. The head that the first
        shows comes to lie in the middle of the grid.
    grid
        The model's grid; its served steps run, training-only ones do not.
    like
        Placement of another image of the same head: the grid lies where that one's does, and no head is looked for.

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
    given, notes = _given(volumes)
    now, _, _ = _run(given, _served(grid), grid, no_reference, None)
    if like is not None:
        return _place(now, grid, None, notes, None if like.centre_mm is None else np.asarray(like.centre_mm))
    head = _head(now[0])
    return _place(now, grid, head, notes, None if head is None else head.centre_mm)


def prepare_as_trained(
    volumes: Sequence[Volume],
    grid: Grid,
    reference: Reference = no_reference,
    watch: StepObserver | None = None,
    beside: Volume | None = None,
) -> PreparedImage:
    """Bring channels onto the grid through every step, training-only ones included.

    The grid lies where `prepare` puts it: training-only steps do not move it, but for a registration, after which it
    lies about the head of the reference.

    Parameters
    ----------
    volumes, grid
        As in `prepare`, as are the errors.
    reference
        Finds the images that registrations and masks refer to.
    watch
        Sees the first channel after each step.
    beside
        The image that these belong to as its truth: where both show the same field of view, the grid lies about its
        head, so that a pair lies on one grid.
    """
    fixed: list[Volume] = []

    def remembered(name: str | None, volume: Volume) -> Volume | None:
        found = reference(name, volume)
        fixed[:] = [] if found is None else [found]
        return found

    given, notes = _given(volumes)
    now, ran, alignment = _run(given, grid.image_steps, grid, remembered, watch)
    head = _head(now[0])
    if alignment is not None:
        centre = head_of(fixed[0]).centre_mm
    elif beside is not None and _same_field(beside, volumes[0]):
        centre = head_of(_run(_given([beside])[0], _served(grid), grid, no_reference, None)[0][0]).centre_mm
    elif any(not s.served for s in ran):
        centre = head_of(_run(given, _served(grid), grid, no_reference, None)[0][0]).centre_mm
    else:
        centre = None if head is None else head.centre_mm
    array, placement = _place(now, grid, head, notes, centre)
    return PreparedImage(array, placement, tuple(ran), alignment)


def require_together(volumes: Sequence[Volume]) -> None:
    """Raise InputError when volumes are not the channels of one subject: of one unit, on the same voxels, finite."""
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
    for volume in volumes:
        # A filter would spread one such value over the image before anything else could name it.
        if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
            raise InputError(
                f"image {volume.uid or volume.subject!r} holds values that are not finite; all must be numbers"
            )


def _given(volumes: Sequence[Volume]) -> tuple[list[Volume], tuple[str, ...]]:
    """Return channels that go together, MR on a background of 0, and what was done for it."""
    require_together(volumes)
    moved = [on_background(v) for v in volumes]
    return [v for v, _ in moved], tuple(dict.fromkeys(note for _, notes in moved for note in notes))


def _served(grid: Grid) -> list[ImageStep]:
    return [s for s in grid.image_steps if s.served]


def _run(
    volumes: list[Volume], steps: Sequence[ImageStep], grid: Grid, reference: Reference, watch: StepObserver | None
) -> tuple[list[Volume], list[ImageStep], Alignment | None]:
    """Run the steps that are for these channels."""
    now, ran, alignment = list(volumes), [], None
    for step in (s for s in steps if s.modality is volumes[0].modality):
        now, found = step.run(now, reference, grid.interpolation)
        alignment = found or alignment
        ran.append(step)
        if watch is not None:
            watch(step, now[0])
    return now, ran, alignment


def _place(
    volumes: Sequence[Volume],
    grid: Grid,
    head: Head | None,
    notes: tuple[str, ...],
    centre_mm: NDArray[np.float64] | None,
) -> tuple[NDArray[Any], ServedPlacement]:
    """Bring channels onto the grid about a point, and say what of the head it does not reach."""
    channels, placements = [], []
    for volume in volumes:
        on_grid, placement = to_grid(volume, grid, centre_mm)
        # Splines swing below the background.
        swings = volume.unit is Unit.ARBITRARY and on_grid.array.dtype.kind != "u"
        channels.append(to_storage(on_grid.array.clip(0) if swings else on_grid.array, volume.unit))
        placements.append(placement)
    first = volumes[0]
    outside = 0.0 if head is None else head.share_outside(placements[0])
    if outside > WORTH_SAYING and grid.spacing_mm is not None:
        field = " × ".join(f"{n * mm:g}" for n, mm in zip(grid.size, grid.spacing_mm, strict=True))
        words = f"{outside:.1%} of the head lies outside the model's slices of {field} mm"
        if outside > MOST_OUTSIDE:
            raise InputError(
                f"image {first.uid or first.subject!r}: {words}, at most {MOST_OUTSIDE:.0%} may; crop the image to the "
                "head, or take a model of a larger preprocess.size"
            )
        notes = (*notes, f"{words} and is not translated: air stands there")
    centre = None if centre_mm is None else (float(centre_mm[0]), float(centre_mm[1]), float(centre_mm[2]))
    served = ServedPlacement(placements[0], first.affine, first.subject, centre, outside, notes)
    return np.stack(channels), served


def _head(volume: Volume) -> Head | None:
    return None if volume.affine is None else head_of(volume)


def _same_field(a: Volume, b: Volume) -> bool:
    """True when two images show one box of the patient, in voxels of whatever size."""
    if a.affine is None or b.affine is None or a.orientation != b.orientation:
        return False
    (centre_a, extent_a), (centre_b, extent_b) = (
        (field_centre(v.array.shape, v.require_affine()), np.array(v.array.shape) * v.spacing_mm) for v in (a, b)
    )
    return bool(np.allclose(centre_a, centre_b, atol=SAME_PLACE_MM) and np.allclose(extent_a, extent_b, rtol=SAME_SIZE))


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
        On the native voxels, same dtype as `array`; where the grid did not reach stands `OUTSIDE_VALUE`. Its notes are
        the placement's.
    """
    native = from_grid(array, placement.on_grid, outside=OUTSIDE_VALUE[unit])
    return Volume(
        native, placement.native_affine, modality, unit, subject=placement.subject, uid=uid, notes=placement.notes
    )


def field_centre(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centre of a field of view, RAS mm."""
    centre: NDArray[np.float64] = (affine @ [*((n - 1) / 2 for n in shape), 1.0])[:3]
    return centre


def _same_affine(a: NDArray[np.float64] | None, b: NDArray[np.float64] | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.allclose(a, b, rtol=0, atol=SAME_PLACE_MM))
