"""Two models compare on the same images only where grid, direction, units and channels are the same."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from torch import nn

from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.volume import Direction, Unit
from ctmr.networks.model_folder import Description, ModalityDescription, save
from ctmr.recipe.recipe import Recipe

CT = ModalityDescription(unit=Unit.HU, channels=1, sequences=("",), target_range=(-1024, 2000))
MR = ModalityDescription(unit=Unit.ARBITRARY, channels=1, sequences=("T1",), target_range=(0, 1))
ONE = Description(
    generator=Recipe().network.generator,
    normalise=Recipe().normalise,
    grid=volume_grid(Plane.AXIAL, (32, 32), (1.0, 1.0)),
    sides={"CT": CT, "MR": MR},
    directions=(Direction.MR2CT,),
)


@pytest.mark.parametrize(
    ("change", "unlike"),
    [
        ({}, ""),
        ({"neighbours": 2}, ""),
        ({"grid": volume_grid(Plane.AXIAL, (36, 36), (1.0, 1.0))}, "grid"),
        ({"grid": volume_grid(Plane.CORONAL, (32, 32), (1.0, 1.0))}, "grid"),
        ({"directions": (Direction.CT2MR,)}, "direction"),
        ({"sides": {"CT": CT, "MR": MR.model_copy(update={"unit": Unit.GREY8})}}, "unit of MR"),
        ({"sides": {"CT": CT, "MR": MR.model_copy(update={"channels": 2})}}, "number or sequence of MR channels"),
        ({"sides": {"CT": CT, "MR": MR.model_copy(update={"sequences": ("T2",)})}}, "number or sequence of MR"),
    ],
)
def test_what_keeps_two_models_from_being_compared_is_named(change: dict[str, object], unlike: str) -> None:
    other = ONE.model_copy(update=change)
    assert other.unlike(ONE, Direction.MR2CT).startswith(unlike) and bool(other.unlike(ONE, Direction.MR2CT)) == bool(
        unlike
    )


def test_a_full_disk_is_an_error_of_the_system(small_disk: Path) -> None:
    with pytest.raises(OSError) as caught:
        save(small_disk / "model", ONE, {Direction.MR2CT: nn.Linear(1000, 1000)})
    assert caught.value.errno == errno.ENOSPC
