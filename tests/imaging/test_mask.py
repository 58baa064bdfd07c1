"""Head masks of simple shapes whose volume is known, of real pictures, and of nothing at all."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.filters import threshold_otsu

from ctmr.imaging.mask import head_depth, head_mask_ct, head_mask_grey, otsu

SHAPE = (40, 48, 44)
Z, Y, X = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
HEAD = (Z / 17) ** 2 + (Y / 20) ** 2 + (X / 18) ** 2 <= 1


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


def ct_head() -> np.ndarray:
    """An ellipsoid head with sinuses, an airway that leaves it below, a table and noise."""
    hu = np.full(SHAPE, -1000.0)
    hu[HEAD] = 40
    hu[HEAD & ((Z / 16) ** 2 + (Y / 18.5) ** 2 + (X / 16.5) ** 2 > 1)] = 900
    hu[(Z**2 + (Y + 10) ** 2 + X**2) < 16] = -1000
    hu[(np.abs(Y - 4) < 3) & (np.abs(X) < 3) & (Z < 0)] = -950
    hu[:, 46:, :] = -150
    return hu + np.random.default_rng(0).normal(0, 15, SHAPE)


def test_a_ct_head_is_found_with_its_sinuses_and_without_the_table() -> None:
    mask = head_mask_ct(ct_head())
    assert dice(mask, HEAD) > 0.99
    assert mask[20, 14, 22] and not mask[:, 46:].any()


def test_an_airway_that_leaves_the_field_of_view_is_inside_in_every_plane() -> None:
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        mask = head_mask_ct(ct_head().transpose(axes))
        airway = (HEAD & (np.abs(Y - 4) < 3) & (np.abs(X) < 3) & (Z > -13)).transpose(axes)
        assert mask[airway].all()


def test_an_mr_head_with_dark_bone_is_found_whole() -> None:
    rng = np.random.default_rng(1)
    signal = np.where(HEAD, 600.0, 0.0)
    inner, outer = ((Z / a) ** 2 + (Y / (a + 2.5)) ** 2 + (X / (a + 1)) ** 2 for a in (14.5, 16))
    skull = (inner > 1) & (outer < 1)
    signal[skull] = 15
    noisy = np.hypot(signal + rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE))
    assert dice(head_mask_grey(noisy), HEAD) > 0.98


def test_bright_fat_does_not_hide_the_rest_of_the_head() -> None:
    signal = np.where(HEAD, 90.0, 4.0)
    signal[HEAD & ((Z / 16) ** 2 + (Y / 18.5) ** 2 + (X / 16.5) ** 2 > 1) & (X > 0)] = 500
    noisy = signal + np.random.default_rng(2).normal(0, 3, SHAPE)
    assert otsu(noisy) > 95  # of the values themselves, the threshold lies above everything but the fat
    assert dice(head_mask_grey(noisy), HEAD) > 0.98


def test_a_single_picture_is_masked_in_its_plane() -> None:
    picture = np.where(HEAD[20:21], 120, 3).astype(np.uint8)
    picture[0, 20:26, 20:26] = 0
    picture[0, 2:5, 2:5] = 200
    assert dice(head_mask_grey(picture), HEAD[20:21]) > 0.99
    hu = np.where(HEAD[20:21], 40, -1000).astype(np.int16)
    np.testing.assert_array_equal(head_mask_ct(hu), HEAD[20:21])


def test_a_head_cut_by_the_field_of_view_keeps_its_cut_face() -> None:
    mask = head_mask_ct(np.where(HEAD, 40, -1000)[20:])
    assert mask.shape == (20, 48, 44) and dice(mask, HEAD[20:]) > 0.995
    np.testing.assert_array_equal(mask[0], HEAD[20])


@pytest.mark.parametrize("value", [-1000, 0, 255])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 16), (4, 5, 6)])
def test_a_constant_image_has_no_grey_head(value: int, shape: tuple[int, int, int]) -> None:
    mask = head_mask_grey(np.full(shape, value, np.int16))
    assert mask.shape == shape and mask.dtype == np.bool_ and not mask.any()


def test_air_has_no_head() -> None:
    assert not head_mask_ct(np.full((3, 8, 8), -1000, np.int16)).any()


@given(hnp.arrays(np.int16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(-1100, 300)))
def test_any_image_gives_a_mask_without_holes(hu: np.ndarray) -> None:
    from scipy.ndimage import binary_fill_holes, label

    before = hu.copy()
    mask = head_mask_ct(hu)
    np.testing.assert_array_equal(hu, before)
    assert mask.shape == hu.shape and mask.any() == (hu > -500).any()
    if hu.shape[0] > 1:
        np.testing.assert_array_equal(binary_fill_holes(mask), mask)
    assert label(mask)[1] <= 1


def between_classes(array: np.ndarray, bright: np.ndarray) -> float:
    share = bright.mean()
    return share * (1 - share) * (array[bright].mean() - array[~bright].mean()) ** 2


@given(hnp.arrays(np.uint8, (1, 12, 12)))
def test_otsu_agrees_with_scikit_image(array: np.ndarray) -> None:
    found = otsu(array)
    if array.min() == array.max():
        assert found is None
    else:
        # Different thresholds may separate equally well, so the variances between the classes are compared.
        ours, theirs = array >= found, array > threshold_otsu(array)
        assert between_classes(array, ours) == pytest.approx(between_classes(array, theirs), rel=1e-9)


def test_depth_is_the_distance_to_the_skin_in_each_slice() -> None:
    y, x = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5, indexing="ij")
    radius = np.hypot(y, x)
    mask = np.stack([radius < 25, radius < 12, np.zeros((64, 64), bool), np.ones((64, 64), bool)])
    depth = head_depth(mask)
    assert depth.dtype == np.float32 and depth.shape == mask.shape
    for k, r in ((0, 25), (1, 12)):
        np.testing.assert_allclose(depth[k][mask[k]], (r - radius)[mask[k]], atol=1.0)
        assert (depth[k][~mask[k]] == 0).all() and (depth[k][mask[k]] >= 1).all()
    assert (depth[2] == 0).all() and (depth[3] > 64).all()


def test_the_border_of_the_picture_is_no_skin() -> None:
    mask = np.zeros((1, 32, 32), bool)
    mask[0, 8:] = True
    np.testing.assert_array_equal(head_depth(mask)[0, :, 0], np.maximum(np.arange(32) - 7, 0))


def test_a_demo_volume_is_masked_in_under_a_third_of_a_second() -> None:
    z, y, x = np.meshgrid(*(np.arange(n) - n / 2 for n in (96, 112, 96)), indexing="ij")
    hu = np.where((z / 40) ** 2 + (y / 50) ** 2 + (x / 40) ** 2 < 1, 40, -1000).astype(np.int16)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        head_mask_ct(hu)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3


@pytest.mark.shared_data
def test_real_pictures_have_one_plausible_head() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "kaggle_ct_mr" / "test"
    if not folder.is_dir():
        pytest.skip(f"the real images are not here ({folder})")
    from ctmr.imaging.volume import Modality
    from ctmr.io import raster

    for name in ("CT", "MRI"):
        shares = []
        for path in sorted((folder / name).iterdir())[:40]:
            array = raster.read(path, modality=Modality.MR).array
            shares.append(head_mask_grey(array).mean())
        assert 0.15 < np.median(shares) < 0.8
        assert np.mean(np.array(shares) > 0.05) > 0.9
