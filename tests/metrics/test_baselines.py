"""Baselines: what each gives, from unpaired shards."""

import numpy as np
import pytest

from ctmr.data.shards import Shard, ShardVolume
from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality, Unit
from ctmr.metrics.baselines import FILLED_HEAD, HISTOGRAM_MATCHING, IDENTITY, MATCHED_LINE, MEAN_IMAGE, fit_baselines


def shard(slices, modality, unit, count=4):
    volumes = tuple(
        ShardVolume(f"i{k}", f"s{k}", "", k * count, count, ("p",), level=-(count - 1) / 2)
        for k in range(len(slices) // count)
    )
    head = np.zeros((len(slices), *slices.shape[2:]), bool)
    head[:, 2:-2, 2:-2] = True
    return Shard(slices, head, volumes, unit, modality)


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    mr = shard(rng.integers(0, 2000, (8, 1, 16, 16)).astype(np.uint16), Modality.MR, Unit.ARBITRARY)
    ct = shard(rng.normal(100, 300, (8, 1, 16, 16)).astype(np.int16), Modality.CT, Unit.HU)
    return mr, ct, fit_baselines(mr, ct, Direction.MR2CT)


def test_hu_targets_get_a_filled_head_and_no_identity(heads):
    assert set(heads[2]) == {HISTOGRAM_MATCHING, MATCHED_LINE, MEAN_IMAGE, FILLED_HEAD}


def test_every_translator_gives_a_volume_of_the_head_masks_shape(heads):
    mr, _, fitted = heads
    for translate in fitted.values():
        out = translate(mr.volume(0), mr.volume_head(0))
        assert out.shape == (4, 16, 16) and out.dtype == np.float32


def test_histogram_matching_gives_the_heads_the_targets_distribution_whatever_the_mr_scale(heads):
    mr, ct, fitted = heads
    volume, head = mr.volume(0), mr.volume_head(0)
    out = fitted[HISTOGRAM_MATCHING](volume, head)
    wanted = np.quantile(ct.slices[:, 0][ct.head], [0.05, 0.5, 0.95])
    assert np.quantile(out[head], [0.05, 0.5, 0.95]) == pytest.approx(wanted, abs=12)
    assert (out[~head] == -1000).all()
    assert np.allclose(fitted[HISTOGRAM_MATCHING](volume * 7, head), out, atol=1)
    assert (np.diff(out[head][np.argsort(volume[0][head])]) >= -1e-3).all()


def test_the_line_matches_two_percentiles(heads):
    mr, ct, fitted = heads
    head = mr.volume_head(0)
    out = fitted[MATCHED_LINE](mr.volume(0), head)
    wanted = np.quantile(ct.slices[:, 0][ct.head], [0.1, 0.9])
    assert np.quantile(out[head], [0.1, 0.9]) == pytest.approx(wanted, abs=2)


def test_the_mean_image_is_the_mean_of_each_level_and_ignores_its_input(heads):
    mr, ct, fitted = heads
    expected = (ct.volume(0)[0].astype(float) + ct.volume(1)[0]) / 2
    assert np.allclose(fitted[MEAN_IMAGE](mr.volume(0) * 0, mr.volume_head(0)), expected)
    deeper = fitted[MEAN_IMAGE](mr.volume(0)[:, :2], mr.volume_head(0)[:2], first_level=0.5)
    assert np.allclose(deeper, expected[2:])


def test_the_filled_head_is_soft_tissue_in_air(heads):
    mr, _, fitted = heads
    assert set(np.unique(fitted[FILLED_HEAD](mr.volume(0), mr.volume_head(0)))) == {-1000.0, 35.0}


def test_pictures_get_the_identity_and_no_filled_head():
    grey = np.random.default_rng(1).integers(0, 255, (3, 1, 16, 16)).astype(np.uint8)
    fitted = fit_baselines(
        shard(grey, Modality.CT, Unit.GREY8, 1), shard(grey[::-1], Modality.MR, Unit.GREY8, 1), Direction.CT2MR
    )
    assert IDENTITY in fitted and FILLED_HEAD not in fitted
    assert (fitted[IDENTITY](grey[0][None, 0][None], np.ones((1, 16, 16), bool)) == grey[0, 0]).all()


def test_a_constant_head_and_an_empty_head_do_not_break():
    rng = np.random.default_rng(0)
    mr = shard(np.full((4, 1, 16, 16), 9, np.uint16), Modality.MR, Unit.ARBITRARY)
    ct = shard(rng.normal(0, 50, (4, 1, 16, 16)).astype(np.int16), Modality.CT, Unit.HU)
    for translate in fit_baselines(mr, ct, Direction.MR2CT).values():
        assert np.isfinite(translate(mr.volume(0), mr.volume_head(0))).all()
        assert np.isfinite(translate(mr.volume(0), mr.volume_head(0) & False)).all()


def test_shards_of_the_wrong_direction_are_refused(heads):
    with pytest.raises(InputError, match="direction ct2mr translates CT into MR"):
        fit_baselines(heads[0], heads[1], Direction.CT2MR)
