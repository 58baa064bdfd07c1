"""The background of an MR is 0 on the grid, whatever offset, marks or scale a file came with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.imaging.background import on_background
from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.inference_path import prepare
from ctmr.imaging.volume import Interpolation, Modality, Unit, Volume

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])[:, [2, 1, 0, 3]]


def mr(array) -> Volume:
    return Volume(array, AFFINE, Modality.MR, Unit.ARBITRARY, "s")


def head() -> np.ndarray:
    rng = np.random.default_rng(3)
    z, y, x = np.indices((7, 40, 36))
    r = np.hypot((y - 19) / 16, (x - 17) / 14) + abs(z - 3) / 12
    signal = np.where(r < 1, 300 + 400 * (r < 0.6), 0) + np.abs(rng.normal(0, 8, r.shape))
    signal[0, 0, 0] = 0
    return np.rint(signal).astype(np.int16)


def normal(array, interpolation: Interpolation = Interpolation.LINEAR, spacing: float = 1.0) -> np.ndarray:
    """The image as the networks see it, on a grid that is larger than it."""
    from ctmr.networks.normaliser import normaliser_for
    from ctmr.recipe.recipe import Normalise

    grid = volume_grid(Plane.AXIAL, (64, 64), (spacing, spacing), None, (), interpolation)
    volume = torch.from_numpy(prepare([mr(array)], grid)[0].astype(np.float32))
    normaliser = normaliser_for(Unit.ARBITRARY, Normalise())
    return normaliser(volume.movedim(1, 0), normaliser.measure(volume)[None]).numpy()


@settings(max_examples=30, deadline=None)
@given(st.integers(-3000, 3000), st.sampled_from(list(Interpolation)), st.sampled_from([1.0, 1.7]))
def test_an_offset_changes_nothing(offset, interpolation, spacing):
    plain = head()
    assert np.array_equal(normal(plain + offset, interpolation, spacing), normal(plain, interpolation, spacing))


@settings(max_examples=30, deadline=None)
@given(st.floats(-2000, 2000), st.floats(1, 1000))
def test_a_z_score_changes_nothing_but_rounding(mean, deviation):
    plain = head()
    scored = ((plain - mean) / deviation).astype(np.float32)
    assert np.abs(normal(scored) - normal(plain)).max() < 2e-4


@pytest.mark.parametrize("mark", [-32768, -1024, -999, -2000])
def test_a_mark_for_missing_data_is_background_and_said(mark):
    plain = head()
    gone = plain < 30
    masked, marked = np.where(gone, 0, plain).astype(np.int16), np.where(gone, mark, plain).astype(np.int16)
    assert np.array_equal(normal(marked), normal(masked))
    moved, notes = on_background(mr(marked))
    assert moved.array.min() == 0 and notes == (
        f"{gone.mean():.0%} of its voxels hold {mark}, a mark for missing data, which became background",
    )


def test_a_mark_below_a_z_scored_image_is_its_background():
    plain = head().astype(np.float32)
    scored = (plain - 300) / 200
    gone = plain < 30
    lowest = scored[~gone].min()
    for mark in (-32768, -1024):
        marked = np.where(gone, np.float32(mark), scored)
        assert np.array_equal(normal(marked), normal(np.where(gone, lowest, scored)))


def test_a_masked_image_that_was_shifted_is_not_taken_for_marked():
    masked = np.where(head() < 250, 0, head()).astype(np.int16)
    for offset in (-217, -1500, 50):
        moved, notes = on_background(mr(masked + np.int16(offset)))
        assert np.array_equal(moved.array, masked) and notes == ()


def test_an_image_on_a_background_of_0_and_other_units_stay_as_they_are():
    plain = mr(head())
    assert on_background(plain)[0] is plain
    ct = Volume(head() - np.int16(1000), AFFINE, Modality.CT, Unit.HU)
    assert on_background(ct)[0] is ct
    picture = Volume(np.full((1, 4, 4), 9, np.uint8), None, Modality.MR, Unit.GREY8)
    assert on_background(picture)[0] is picture
