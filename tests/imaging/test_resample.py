"""To the grid and back: places in mm, values of known functions, identity where nothing is interpolated."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ctmr.errors import InputError
from ctmr.imaging.grid import ORIENTATION, Grid, Plane, ServeStep, picture_grid, volume_grid
from ctmr.imaging.resample import Placement, from_grid, resample_to, to_grid
from ctmr.imaging.volume import Modality, Unit, Volume

ORDERS = [
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for sides in itertools.product((0, 1), repeat=3)
]


def mr(array: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(array, affine, Modality.MR, Unit.ARBITRARY, subject="s", uid="u")


def affine_for(letters: str, spacing: tuple[float, float, float], oblique_deg: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(letters):
        row = ("RL", "AP", "SI").index(next(p for p in ("RL", "AP", "SI") if letter in p))
        affine[row, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    turn = Rotation.from_euler("xyz", [oblique_deg, -oblique_deg, oblique_deg / 2], degrees=True)
    affine[:3, :3] = turn.as_matrix() @ affine[:3, :3]
    affine[:3, 3] = [12.0, -34.0, 56.0]
    return affine


def places(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Millimetres of every voxel, [D, H, W, 3]."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def linear(mm: np.ndarray) -> np.ndarray:
    return mm @ np.array([0.7, -1.3, 0.4]) + 500.0


@pytest.mark.parametrize("letters", ORDERS)
@pytest.mark.parametrize("plane", [Plane.AXIAL, Plane.SAGITTAL, Plane.CORONAL])
def test_all_48_axis_orders_are_reoriented_with_every_voxel_in_its_place(letters: str, plane: Plane) -> None:
    affine = affine_for(letters, (2.0, 3.0, 4.0), oblique_deg=9)
    shape = (3, 4, 5)
    volume = mr(linear(places(affine, shape)), affine)
    grid = Grid(plane=plane, size=(8, 8), spacing_mm=(1, 1), steps=(ServeStep.REORIENT,))
    found, placement = to_grid(volume, grid)
    assert "".join(aff2axcodes(found.affine)) == ORIENTATION[plane]
    np.testing.assert_allclose(found.array, linear(places(found.affine, found.array.shape)), atol=1e-9)
    assert sorted(found.array.ravel()) == sorted(volume.array.ravel())
    np.testing.assert_array_equal(from_grid(found.array, placement, outside=-1), volume.array)


@settings(max_examples=60, deadline=None)
@given(
    letters=st.sampled_from(ORDERS),
    oblique=st.floats(-14, 14),
    spacing=st.tuples(*[st.floats(0.5, 3.0)] * 3),
    target=st.tuples(*[st.floats(0.6, 3.0)] * 2),
    slices=st.none() | st.floats(0.6, 3.0),
    shape=st.tuples(*[st.integers(8, 20)] * 3),
)
def test_a_linear_function_of_mm_is_the_same_function_on_the_grid(
    letters: str,
    oblique: float,
    spacing: tuple[float, ...],
    target: tuple[float, float],
    slices: float | None,
    shape: tuple[int, ...],
) -> None:
    affine = affine_for(letters, spacing, oblique)
    volume = mr(linear(places(affine, shape)), affine)
    found, placement = to_grid(volume, volume_grid(Plane.AXIAL, (24, 16), target, slices))
    assert found.array.shape == placement.grid_shape and found.array.shape[1:] == (24, 16)
    np.testing.assert_allclose(found.spacing_mm[1:], target, atol=1.1e-3)
    mm = places(found.affine, found.array.shape)
    index = (mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    # Smoothing and clamping bend the function near the border of the field of view; inside it must be exact.
    margin = 1 + np.ceil(4 * np.array([max(found.spacing_mm) / s for s in spacing]))
    inside = ((index >= margin) & (index <= np.array(shape) - 1 - margin)).all(-1)
    np.testing.assert_allclose(found.array[inside], linear(mm)[inside], atol=1e-6)
    beyond = ((index < -0.51) | (index > np.array(shape) - 0.49)).any(-1)
    assert (found.array[beyond] == 0).all()


@settings(max_examples=30, deadline=None)
@given(letters=st.sampled_from(ORDERS), shape=st.tuples(*[st.integers(1, 12)] * 3), seed=st.integers(0, 99))
def test_without_resampling_the_way_there_and_back_is_bit_identical(
    letters: str, shape: tuple[int, int, int], seed: int
) -> None:
    array = np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)
    volume = Volume(array, affine_for(letters, (2.0, 2.0, 2.0), 5), Modality.CT, Unit.HU)
    found, placement = to_grid(volume, volume_grid(Plane.CORONAL, (12, 12), (2.0, 2.0)))
    back = from_grid(found.array, placement, outside=-1024)
    assert back.dtype == np.int16
    np.testing.assert_array_equal(back, array)


def test_an_image_on_the_grid_is_returned_as_it_is() -> None:
    array = np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32)
    affine = affine_for("SPL", (3.0, 1.0004, 0.9996))
    found, placement = to_grid(mr(array, affine), volume_grid(Plane.AXIAL, (16, 16), (1.0, 1.0)))
    assert found.array is array and placement.is_identity
    np.testing.assert_array_equal(found.affine, affine)
    assert from_grid(array, placement, outside=0) is array


def test_what_the_grid_cut_off_comes_back_as_outside() -> None:
    array = np.ones((2, 10, 20), dtype=np.float32)
    found, placement = to_grid(mr(array, affine_for("SPL", (1.0, 1.0, 1.0))), volume_grid(Plane.AXIAL, (16, 8), (1, 1)))
    assert found.array.shape == (2, 16, 8)
    assert found.array.sum() == 2 * 10 * 8 and (found.array[:, :3] == 0).all() and (found.array[:, 13:] == 0).all()
    back = from_grid(found.array, placement, outside=-7)
    np.testing.assert_array_equal(back[:, :, 6:14], 1)
    assert (back[:, :, :6] == -7).all() and (back[:, :, 14:] == -7).all()


def test_outside_a_ct_is_air_and_integers_stay_integers() -> None:
    volume = Volume(np.full((3, 6, 6), 40, np.int16), affine_for("SPL", (2, 2, 2)), Modality.CT, Unit.HU)
    found, _ = to_grid(volume, volume_grid(Plane.AXIAL, (32, 32), (0.7, 0.7)))
    assert found.array.dtype == np.int16 and set(np.unique(found.array)) == {-1024, 40}


def test_the_field_of_view_stays_centred_to_half_a_voxel() -> None:
    # 7 voxels of 3 mm are 21 mm; 2 mm voxels need 11. The centre of the 21 mm must be the centre of the 11 voxels.
    affine = affine_for("SPL", (2.0, 3.0, 3.0))
    grid = Grid(plane=Plane.AXIAL, size=(8, 8), spacing_mm=(2, 2), steps=(ServeStep.REORIENT, ServeStep.RESAMPLE))
    found, _ = to_grid(mr(np.ones((2, 7, 7)), affine), grid)
    assert found.array.shape == (2, 11, 11)
    np.testing.assert_allclose(found.affine @ [0, 5, 5, 1], affine @ [0, 3, 3, 1], atol=1e-9)
    assert (found.array == 1).all()


@pytest.mark.parametrize("count", [60, 61])
def test_fine_stripes_do_not_alias_when_sampled_coarsely(count: int) -> None:
    # Period 2.5 voxels, sampled every 4: without smoothing this folds into a strong slow wave.
    wave = np.cos(2 * np.pi * np.arange(count) / 2.5)
    array = np.broadcast_to(wave, (2, count, count)).copy()
    grid = volume_grid(Plane.AXIAL, (16, 16), (4, 4))
    found, _ = to_grid(mr(array, affine_for("SPL", (1, 1, 1))), grid)
    assert np.abs(found.array[:, 4:12, 4:12]).max() < 0.15
    aliased = wave[::4]
    assert np.abs(aliased).max() > 0.9


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(33, 90),
    width=st.integers(33, 90),
    size=st.sampled_from([(16, 16), (24, 20), (32, 32)]),
    seed=st.integers(0, 99),
)
def test_reducing_a_picture_is_a_gaussian_blur_and_linear_interpolation(
    height: int, width: int, size: tuple[int, int], seed: int
) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (1, height, width)).astype(np.uint8)
    there, _ = to_grid(Volume(grey, None, Modality.CT, Unit.GREY8), picture_grid(size))
    factor = min(size[0] / height, size[1] / width)
    wanted = grey[0].astype(np.float64)
    for axis, limit in enumerate(size):
        before = wanted.shape[axis]
        after = min(limit, max(1, round(before * factor)))
        step = before / after
        at = np.clip((np.arange(after) + 0.5) * step - 0.5, 0, before - 1)
        if step > 1:
            sigma = np.sqrt(step**2 - 1) / (2 * np.sqrt(2 * np.log(2)))
            wanted = ndimage.gaussian_filter1d(wanted, sigma, axis=axis, mode="nearest")
        wanted = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, wanted)
    top, left = (-((m - n) // 2) for n, m in zip(size, wanted.shape, strict=True))
    found = there.array[0, top : top + wanted.shape[0], left : left + wanted.shape[1]].astype(np.float64)
    assert np.abs(found - wanted).max() <= 0.5 + 1e-3


def test_pictures_keep_their_aspect_ratio_and_come_back() -> None:
    rng = np.random.default_rng(0)
    # Smooth noise, so that the way down and up loses little.
    base = np.kron(rng.integers(40, 200, (5, 8)), np.ones((40, 40)))
    picture = Volume(base[None].astype(np.uint8), None, Modality.MR, Unit.GREY8)
    found, placement = to_grid(picture, picture_grid((128, 128)))
    assert found.array.shape == (1, 128, 128) and found.array.dtype == np.uint8 and found.affine is None
    # 200×320 shrinks by 2.5 to 80×128, with 24 rows of padding above and below.
    assert (found.array[0, :24] == 0).all() and (found.array[0, 104:] == 0).all()
    assert (found.array[0, 24:104] > 0).all()
    back = from_grid(found.array, placement, outside=0)
    assert back.shape == (1, 200, 320)
    blocks = back[0].reshape(5, 40, 8, 40)[:, 12:28, :, 12:28]
    np.testing.assert_allclose(blocks.mean((1, 3)), base[::40, ::40], atol=1)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.tuples(*[st.integers(8, 64)] * 2))
def test_every_picture_fits_and_every_pixel_comes_back(height: int, width: int, size: tuple[int, int]) -> None:
    picture = Volume(np.full((1, height, width), 99, np.uint8), None, Modality.CT, Unit.GREY8)
    found, placement = to_grid(picture, picture_grid(size))
    assert found.array.shape == (1, *size) and set(np.unique(found.array)) <= {0, 99}
    rows, columns = (found.array[0] == 99).any(1).sum(), (found.array[0] == 99).any(0).sum()
    assert rows == size[0] or columns == size[1]
    assert (from_grid(found.array, placement, outside=0) == 99).all()


def test_resizing_agrees_with_pillows_bilinear_enlargement() -> None:
    from PIL import Image

    array = np.random.default_rng(1).integers(0, 255, (30, 40)).astype(np.uint8)
    found, _ = to_grid(Volume(array[None], None, Modality.MR, Unit.GREY8), picture_grid((90, 120)))
    truth = np.asarray(Image.fromarray(array).resize((120, 90), Image.Resampling.BILINEAR))
    assert np.abs(found.array[0].astype(int) - truth).max() <= 1


@settings(max_examples=20, deadline=None)
@given(oblique=st.floats(0, 40), letters=st.sampled_from(ORDERS))
def test_any_image_is_sampled_on_any_others_voxels(oblique: float, letters: str) -> None:
    affine = affine_for("LPS", (1.5, 1.5, 1.5), oblique)
    affine[:3, 3] = -affine[:3, :3] @ [12, 12, 12]
    volume = mr(linear(places(affine, (25, 25, 25))), affine)
    like = affine_for(letters, (1.2, 2.0, 1.0))
    like[:3, 3] = -like[:3, :3] @ [3, 3, 3]
    found = resample_to(volume, like, (7, 7, 7), outside=-1)
    np.testing.assert_allclose(found, linear(places(like, (7, 7, 7))), atol=1e-5)


def test_sampling_on_its_own_voxels_changes_nothing_and_nearest_keeps_labels() -> None:
    rng = np.random.default_rng(0)
    affine = affine_for("RSP", (1.1, 0.9, 2.3), 7)
    labels = mr(rng.integers(0, 9, (6, 7, 8)).astype(np.uint8), affine)
    np.testing.assert_array_equal(resample_to(labels, affine, (6, 7, 8), outside=0), labels.array)
    turned = affine_for("RSP", (0.7, 0.8, 0.9), 20)
    assert set(np.unique(resample_to(labels, turned, (9, 9, 9), order=0, outside=77))) <= {*range(9), 77}
    mask = mr(np.ones((6, 7, 8), bool), affine)
    assert resample_to(mask, affine, (6, 7, 8), order=0, outside=0).dtype == np.bool_


def test_cubic_splines_reproduce_a_smooth_wave_better_than_lines() -> None:
    x = np.arange(40.0)
    array = np.broadcast_to(np.sin(x / 3), (4, 4, 40)).copy()
    like = np.eye(4)
    like[2, 3] = 0.5
    truth = np.sin((x[5:34] + 0.5) / 3)
    error = [
        np.abs(resample_to(mr(array, np.eye(4)), like, (4, 4, 40), order=k, outside=0)[1, 1, 5:34] - truth).max()
        for k in (1, 3)
    ]
    assert error[1] < error[0] / 10


def test_a_placement_is_plain_data() -> None:
    volume = mr(np.ones((2, 9, 9)), affine_for("SPL", (2, 2, 2)))
    _, placement = to_grid(volume, volume_grid(Plane.AXIAL, (8, 8), (1, 1)))
    again = Placement(placement.native_shape, placement.grid_shape, placement.matrix)
    assert again == placement and hash(again) == hash(placement)


def test_refusals() -> None:
    picture = Volume(np.zeros((1, 8, 8), np.uint8), None, Modality.CT, Unit.GREY8)
    grid = volume_grid(Plane.AXIAL, (8, 8), (1, 1))
    with pytest.raises(InputError, match="without geometry"):
        to_grid(picture, grid)
    sheared = affine_for("SPL", (1, 1, 1))
    sheared[0, 0] = 0.33
    with pytest.raises(InputError, match="sheared"):
        to_grid(mr(np.zeros((2, 8, 8)), sheared), grid)
    _, placement = to_grid(mr(np.zeros((2, 9, 9)), affine_for("SPL", (1, 1, 1))), grid)
    with pytest.raises(InputError, match="does not lie on this grid"):
        from_grid(np.zeros((2, 9, 9)), placement, outside=0)


@pytest.mark.shared_data
def test_a_real_head_goes_to_a_grid_and_back() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom_mr_t1_studyforrest"
    if not folder.is_dir():
        pytest.skip(f"the real images are not here ({folder})")
    from ctmr.io.dicom import read_series

    head = read_series(folder)
    found, placement = to_grid(head, volume_grid(Plane.AXIAL, (288, 224), (1, 1)))
    back = from_grid(found.array, placement, outside=0)
    assert found.orientation == "SPL" and back.shape == head.array.shape
    assert np.corrcoef(back.ravel(), head.array.ravel())[0, 1] > 0.98
