"""The path around a model keeps every voxel in its place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ctmr.errors import InputError
from ctmr.imaging.grid import Plane, picture_grid, volume_grid
from ctmr.imaging.inference_path import finish, prepare
from ctmr.imaging.volume import Modality, Unit, Volume

GRID = volume_grid(Plane.AXIAL, (40, 40), (2.5, 1.5))


def test_a_model_that_copies_its_input_gives_the_input_back_on_its_own_voxels(head):
    grid = volume_grid(Plane.AXIAL, (80, 80), (1.5, 2.5))
    array, placement = prepare(head, grid)
    assert array.shape[0] == 2 and array.dtype == np.uint16
    back = finish(array[0].astype(np.int16), placement, modality=Modality.CT, unit=Unit.HU)
    assert np.array_equal(back.affine, head[0].affine) and back.subject == "s1"
    assert back.array.shape == head[0].array.shape and back.array.dtype == np.int16
    assert np.abs(back.array.astype(int) - head[0].array).max() <= 1


def test_the_affine_on_the_grid_puts_each_voxel_where_it_was(head):
    bright = np.zeros((9, 26, 30), np.int16)
    bright[4, 20, 7] = 1000
    volume = head[0].with_array(bright)
    array, placement = prepare([volume], volume_grid(Plane.AXIAL, (80, 80), (1.5, 2.5)))
    index = np.unravel_index(array[0].argmax(), array[0].shape)
    assert placement.grid_affine @ [*index, 1] == pytest.approx(volume.affine @ [4, 20, 7, 1], abs=1e-3)


def test_beyond_the_grid_stands_air(head):
    array, placement = prepare(head, volume_grid(Plane.AXIAL, (16, 16), (1.5, 2.5)))
    back = finish(np.zeros(array.shape[1:], np.int16), placement, modality=Modality.CT, unit=Unit.HU)
    assert set(np.unique(back.array)) == {-1024, 0}
    assert back.array[0, 0, 0] == -1024


def test_pictures_keep_having_no_geometry():
    picture = Volume(np.full((1, 30, 20), 9, np.uint8), None, Modality.MR, Unit.GREY8)
    array, placement = prepare([picture], picture_grid((16, 16)))
    assert array.dtype == np.uint8 and array.shape == (1, 1, 16, 16) and placement.grid_affine is None
    back = finish(array[0], placement, modality=Modality.CT, unit=Unit.GREY8)
    assert back.affine is None and back.array.shape == (1, 30, 20)


def test_channels_of_unlike_voxels_or_units_are_refused(head):
    moved = head[1].affine.copy()
    moved[0, 3] += 1
    for other, named in (
        (head[1].with_array(head[1].array[1:]), "does not lie on the voxels of channel 1"),
        (head[1].with_array(head[1].array, moved), "does not lie on the voxels of channel 1"),
        (dataclasses.replace(head[1], unit=Unit.GREY8), "in unit grey8"),
    ):
        with pytest.raises(InputError, match=named):
            prepare([head[0], other], GRID)
    with pytest.raises(InputError, match="no volume"):
        prepare([], GRID)


def test_values_that_are_not_finite_are_refused(head):
    array = head[0].array.astype(np.float32)
    array[4, 13, 15] = np.nan
    with pytest.raises(InputError, match="not finite"):
        prepare([head[0].with_array(array)], volume_grid(Plane.AXIAL, (80, 80), (1.5, 2.5)))
