"""Image steps in an order that is possible, and orders that are not."""

from __future__ import annotations

from collections.abc import Sequence

from ctmr.imaging.steps.base import ImageStep
from ctmr.imaging.volume import Modality


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
