"""The head decides where the grid lies: neither the field of view nor what is around the head moves an answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.errors import InputError
from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.head import head_of
from ctmr.imaging.inference_path import finish, prepare, prepare_as_trained
from ctmr.imaging.steps.table_removal import TableRemoval
from ctmr.imaging.volume import Interpolation, Modality, Unit, Volume

AXIAL = np.array([[0, 0, -1.2, 90], [0, -1.2, 0, 110], [2.5, 0, 0, -40], [0, 0, 0, 1]], dtype=np.float64)
PLAIN = volume_grid(Plane.AXIAL, (40, 36), (1.2, 1.2))
COARSE = volume_grid(Plane.AXIAL, (26, 24), (2.0, 2.0))


def ball(modality: Modality = Modality.MR, centre=(3, 20, 15), shape=(8, 44, 40), radius=(3.2, 14, 12)) -> Volume:
    place = np.indices(shape).astype(np.float64)
    r = sum(((p - c) / q) ** 2 for p, c, q in zip(place, centre, radius, strict=True))
    texture = 40 * np.sin(place[1] / 3) * np.cos(place[2] / 4)
    if modality is Modality.CT:
        return Volume(np.where(r < 1, 40 + texture, -1024).astype(np.int16), AXIAL, modality, Unit.HU, "s")
    return Volume(np.where(r < 1, 500 + texture, 0).astype(np.uint16), AXIAL, modality, Unit.ARBITRARY, "s")


def padded(volume: Volume, room) -> Volume:
    """Pad with the background, negative room crops; every voxel keeps its place in mm."""
    air = volume.array.min()
    grown = np.pad(volume.array, [(max(0, a), max(0, b)) for a, b in room], constant_values=air)
    cut = grown[tuple(slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(room, grown.shape, strict=True))]
    shift = np.eye(4)
    shift[:3, 3] = [-a for a, _ in room]
    return volume.with_array(cut, volume.require_affine() @ shift)


def test_the_middle_of_the_heads_box_lies_in_the_middle_of_the_grid():
    array, placement = prepare([ball()], PLAIN)
    rows, columns = (np.flatnonzero((array[0] > 0).any(axis=a)) for a in ((0, 2), (0, 1)))
    assert abs(rows.mean() - 19.5) <= 0.5 and abs(columns.mean() - 17.5) <= 0.5
    assert placement.outside == 0 and placement.notes == ()


# Three voxels of background stay beside the head: so far does the blur of a coarser grid reach.
in_plane = st.tuples(st.integers(-1, 60), st.integers(-1, 60))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.tuples(st.integers(0, 3), st.integers(0, 3)), in_plane, in_plane),
    st.sampled_from([PLAIN, COARSE]),
    st.sampled_from(list(Modality)),
)
def test_padding_or_cropping_the_background_does_not_move_the_answer(room, grid, modality):
    plain = ball(modality)
    other = padded(plain, room)
    (a, place_a), (b, place_b) = prepare([plain], grid), prepare([other], grid)
    above = room[0][0]
    assert np.array_equal(a, b[:, above : above + a.shape[1]])
    shift = place_a.grid_affine @ [-above, 0, 0, 1]
    assert place_b.grid_affine[:, 3] == pytest.approx(shift, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.sampled_from([1.0, 1.7, 2.5, 4.0, 7.3]),
    st.sampled_from(list(Modality)),
)
def test_slices_above_and_below_do_not_move_those_of_another_distance(room, distance, modality):
    grid = volume_grid(Plane.AXIAL, (40, 36), (1.2, 1.2), distance)
    plain = padded(ball(modality), ((6, 6), (0, 0), (0, 0)))
    other = padded(plain, (room, (0, 0), (0, 0)))
    (a, place_a), (b, place_b) = prepare([plain], grid), prepare([other], grid)
    above = round((place_a.grid_affine[2, 3] - place_b.grid_affine[2, 3]) / distance)
    assert place_b.grid_affine @ [above, 0, 0, 1] == pytest.approx(place_a.grid_affine[:, 3], abs=1e-6)
    assert np.array_equal(a, b[:, above : above + a.shape[1]])
    # The truth beside it, placed as the served path places it, has the same slices.
    assert np.array_equal(prepare_as_trained([other], grid).placement.grid_affine, place_b.grid_affine)
    # No slice of the image is lost to air.
    back = finish(np.ones(b.shape[1:], np.int16), place_b, modality=Modality.CT, unit=Unit.HU)
    assert (back.array == 1).any(axis=(1, 2)).all()


@pytest.mark.parametrize("distance", [1.0, 2.5, 4.0, 7.3, 30.0])
@pytest.mark.parametrize("offset", [0.0, 0.9, 1.25, 2.4])
@pytest.mark.parametrize("interpolation", [Interpolation.LINEAR, Interpolation.SPLINE])
def test_every_slice_of_another_distance_shows_the_head(distance, offset, interpolation):
    volume = ball(centre=(1, 20, 15), shape=(3, 44, 40), radius=(50, 14, 12))
    moved = volume.with_array(volume.array, volume.require_affine() + offset * np.eye(4)[2][:, None] * np.eye(4)[3])
    grid = volume_grid(Plane.AXIAL, (40, 36), (1.2, 1.2), distance, interpolation=interpolation)
    array, placement = prepare([moved], grid)
    assert (array[0, :, 20, 18] > 300).all()
    back = finish(array[0].astype(np.int16), placement, modality=Modality.CT, unit=Unit.HU)
    assert (back.array[:, 20, 15] > 300).all()


def test_an_answer_lies_where_the_image_does_wherever_the_head_is():
    volume = padded(ball(), ((0, 0), (0, 70), (55, 0)))
    array, placement = prepare([volume], PLAIN)
    back = finish(array[0].astype(np.int16), placement, modality=Modality.CT, unit=Unit.HU)
    inside = head_of(volume).mask
    assert np.array_equal(back.array[inside], volume.array[inside])


def test_what_of_the_head_is_beyond_the_grid_is_said_and_too_much_is_refused():
    volume = ball()
    small = volume_grid(Plane.AXIAL, (24, 24), (1.2, 1.2))
    array, placement = prepare([volume], small)
    cut = head_of(volume).mask
    back = finish(np.zeros(array.shape[1:], np.int16), placement, modality=Modality.CT, unit=Unit.HU)
    share = (back.array[cut] == -1024).mean()
    assert placement.outside == pytest.approx(share) and 0.02 < share < 0.2
    assert back.notes == placement.notes
    assert f"{share:.1%} of the head lies outside the model's slices of 28.8 × 28.8 mm" in placement.notes[0]
    with pytest.raises(InputError, match=r"image 's': .*% of the head lies outside .* at most 50% may; crop the image"):
        prepare([volume], volume_grid(Plane.AXIAL, (8, 8), (1.2, 1.2)))


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("prepare_it", [prepare, prepare_as_trained])
def test_a_served_table_removal_comes_before_the_head_is_looked_for(gap, prepare_it):
    head = ball(Modality.CT, centre=(10, 20, 28), shape=(20, 60, 80), radius=(9, 14, 12))
    table = head.array.copy()
    # A plate of 4.8 mm as wide as the field of view, at the back of the head or below it; SPL counts backwards.
    table[:, 33 + gap : 37 + gap] = np.maximum(table[:, 33 + gap : 37 + gap], 200)
    without = volume_grid(Plane.AXIAL, (40, 36), (1.2, 1.2))
    removing = volume_grid(Plane.AXIAL, (40, 36), (1.2, 1.2), image_steps=(TableRemoval(),))
    centre = head_of(head).centre_mm
    made = prepare_it([head.with_array(table)], removing)
    placement = made[1] if isinstance(made, tuple) else made.placement
    # What of a plate touches the head stays.
    assert placement.centre_mm == pytest.approx(centre, abs=2)
    assert placement.outside == 0
    if not gap:
        # Else the test would show nothing.
        assert prepare([head.with_array(table)], without)[1].centre_mm != pytest.approx(centre, abs=10)


def test_an_image_without_a_head_keeps_its_field_of_view_in_the_middle():
    empty = ball().with_array(np.full((8, 44, 40), 7, np.uint16))
    _, placement = prepare([empty], PLAIN)
    assert placement.centre_mm is None
    assert placement.grid_affine @ [3.5, 19.5, 17.5, 1] == pytest.approx(AXIAL @ [3.5, 21.5, 19.5, 1])


def test_a_truth_lies_on_the_grid_of_its_source_where_both_show_one_field():
    mr, ct = ball(), ball(Modality.CT, centre=(3, 22, 15))
    alone = prepare_as_trained([ct], PLAIN).placement
    paired = prepare_as_trained([ct], PLAIN, beside=mr).placement
    served = prepare([mr], PLAIN)[1]
    assert np.array_equal(paired.grid_affine, served.grid_affine)
    assert not np.array_equal(alone.grid_affine, served.grid_affine)
    elsewhere = padded(mr, ((0, 0), (0, 9), (0, 0)))
    assert np.array_equal(prepare_as_trained([ct], PLAIN, beside=elsewhere).placement.grid_affine, alone.grid_affine)
