"""Image steps: which orders are possible, and their run on the native voxels of one subject's channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ctmr.imaging.steps.base import ImageStep, Ran, Reference
from ctmr.imaging.volume import Interpolation, Modality, Volume


def no_reference(name: str | None, volume: Volume) -> Volume | None:
    """Find nothing: what a client has."""
    return None


def run_steps(
    volumes: Sequence[Volume], steps: Sequence[ImageStep], reference: Reference, interpolation: Interpolation
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
            ran = step.run(now, reference, interpolation)
            now = ran.volumes
            yield ran


def check_order(steps: Sequence[ImageStep]) -> None:
    """Raise ValueError where one step takes the ground from under another."""
    moves: dict[Modality, ImageStep] = {}
    for step in steps:
        if step.moves:
            if step.modality in moves:
                raise ValueError(f"{step.modality} images are registered twice; leave one registration")
            moves[step.modality] = step
        elif step.named_reference is not None:
            before = moves.get(step.modality)
            if before is None or before.named_reference != step.named_reference:
                raise ValueError(
                    f"{step.kind} by the mask of {step.named_reference} needs a registration of {step.modality} images "
                    "to it before; add one, or leave reference out"
                )
        elif step.served and step.modality in moves:
            raise ValueError(
                f"{step.kind} is served and comes after a registration, which is not, so served images would go "
                "through other steps in another order; put it before the registration, or set served to false"
            )
    to_each_other = [m for m, step in moves.items() if step.named_reference is None]
    if to_each_other and len(moves) > 1:
        raise ValueError(
            f"{to_each_other[0]} images are registered to the same subject's other image, which is registered itself; "
            "let one of both stay where it is, or name one reference for both"
        )
