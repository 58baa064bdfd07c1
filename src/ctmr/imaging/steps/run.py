"""The image steps of a grid, run in order on the native voxels of one subject's channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctmr.imaging.grid import BiasField, HeadMask, ImageStep, Interpolation, Registration, TableRemoval
from ctmr.imaging.hounsfield import OUTSIDE_VALUE
from ctmr.imaging.mask import head_mask_ct, head_mask_grey
from ctmr.imaging.volume import Unit, Volume

if TYPE_CHECKING:
    from ctmr.imaging.steps.registration import Alignment

Reference = Callable[[Registration | TableRemoval, Volume], Volume | None]
"""Finds the image that a step refers to, for an image that is prepared; ``None``: it has none and stays as it is."""


def no_reference(step: Registration | TableRemoval, volume: Volume) -> Volume | None:
    """Find nothing: what a client has."""
    return None


@dataclass(frozen=True)
class Ran:
    """A step that ran.

    Attributes
    ----------
    step
        What was asked for.
    volumes
        The channels after it.
    alignment
        What a registration found; ``None`` after another step, or when there was no reference.
    """

    step: ImageStep
    volumes: list[Volume]
    alignment: Alignment | None = None


def run_steps(
    volumes: Sequence[Volume],
    steps: Sequence[ImageStep],
    reference: Reference = no_reference,
    interpolation: Interpolation = Interpolation.LINEAR,
) -> Iterator[Ran]:
    """Yield every step that is for these images, and the images after it.

    Parameters
    ----------
    volumes
        Channels of one subject, on the same voxels.
    steps
        Those for another modality are passed over.
    reference
        Finds references.
    interpolation
        Of registered images.
    """
    now = list(volumes)
    for step in steps:
        if step.modality is now[0].modality:
            ran = _run(step, now, reference, interpolation)
            now = ran.volumes
            yield ran


def _run(step: ImageStep, volumes: list[Volume], reference: Reference, interpolation: Interpolation) -> Ran:
    match step:
        case HeadMask():
            return Ran(step, [_head_only(v) for v in volumes])
        case BiasField():
            from ctmr.imaging.steps.bias_field import correct_bias_field

            return Ran(step, [correct_bias_field(v, step) for v in volumes])
        case TableRemoval():
            from ctmr.imaging.steps.table_removal import remove_table

            fixed = reference(step, volumes[0]) if step.reference is not None else None
            return Ran(step, [remove_table(v, step, fixed) for v in volumes])
        case Registration():
            from ctmr.imaging.steps.registration import move, register

            fixed = reference(step, volumes[0])
            if fixed is None:
                return Ran(step, volumes)
            # Channels share their voxels, so what is found for the first holds for all.
            alignment = register(volumes[0], fixed, step)
            return Ran(step, [move(v, alignment, fixed, interpolation=interpolation) for v in volumes], alignment)


def _head_only(volume: Volume) -> Volume:
    head = head_mask_ct(volume.array) if volume.unit is Unit.HU else head_mask_grey(volume.array)
    return volume.with_array(np.where(head, volume.array, volume.array.dtype.type(OUTSIDE_VALUE[volume.unit])))
