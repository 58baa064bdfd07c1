"""Properties that every metric must have, whatever the images: identity, symmetry, monotonicity, masks, order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.distribution import fid, kid
from ctmr.metrics.fidelity import flicker
from ctmr.metrics.measurement import measure_cycle, measure_paired, measure_structure
from ctmr.metrics.pair import ImagePair
from ctmr.metrics.protocol import PROTOCOLS, Pairing, protocol
from ctmr.metrics.registry import METRICS
from ctmr.metrics.stats import summarise

torch.set_num_threads(1)
SHAPE = (9, 10, 11)
VOLUME_PROTOCOLS = ["paired_volume_hu", "synthrad2023", "wolterink"]
ALL_PAIRED = sorted(n for n, p in PROTOCOLS.items() if p.pairing is Pairing.PAIRED)
hounsfield = arrays(np.int16, SHAPE, elements=st.integers(-1200, 3500))
masks = arrays(bool, SHAPE).filter(lambda m: bool(m[3:-3, 3:-3, 3:-3].any()))
trained = arrays(np.float64, (2, 12, 13), elements=st.floats(-1, 1))
seeds = st.integers(0, 10_000)


def measured(prediction, truth, mask, name, **extra):
    return measure_paired(prediction, truth, mask, protocol(name), case="c", subject="s", **extra).values


def shaped(name, seed):
    """Truth and mask that the protocol takes."""
    rng = np.random.default_rng(seed)
    if protocol(name).volume:
        return rng.uniform(-1000, 2500, SHAPE), np.ones(SHAPE, bool)
    return rng.uniform(20, 235, (1, 16, 17)), np.ones((1, 16, 17), bool)


@pytest.mark.parametrize("name", ALL_PAIRED)
def test_an_image_measured_against_itself_has_no_error_and_full_similarity(name):
    truth, mask = shaped(name, 1)
    values = measured(truth, truth, mask, name)
    assert values["mae"] == values["mse"] == values["rmse"] == 0 and values["psnr"] == math.inf
    for metric in ("ssim", "ms_ssim", "dice_bone"):
        assert values.get(metric, 1.0) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", VOLUME_PROTOCOLS)
@settings(max_examples=15)
@given(x=hounsfield, y=hounsfield, mask=masks)
def test_errors_and_similarities_do_not_depend_on_which_image_is_called_the_truth(name, x, y, mask):
    forth, back = measured(x, y, mask, name), measured(y, x, mask, name)
    for metric in ("mae", "mse", "psnr", "ssim", "dice_bone"):
        assert forth.get(metric) == pytest.approx(back.get(metric), abs=1e-9)


@pytest.mark.parametrize("name", VOLUME_PROTOCOLS)
@settings(max_examples=15)
@given(x=hounsfield, y=hounsfield, mask=masks, other=hounsfield)
def test_nothing_outside_the_mask_changes_a_number(name, x, y, mask, other):
    painted = np.where(mask, x, other)
    assert measured(painted, y, mask, name, slice_axis=0) == measured(x, y, mask, name, slice_axis=0)


@pytest.mark.parametrize("name", [n for n in ALL_PAIRED if not n.startswith("synthrad2025")])
@settings(max_examples=8)
@given(seed=seeds, small=st.floats(2, 20), factor=st.floats(1.5, 4))
def test_more_noise_is_never_better(name, seed, small, factor):
    truth, mask = shaped(name, seed)
    noise = np.random.default_rng(seed + 1).normal(size=truth.shape)
    less, more = (measured(truth + small * k * noise, truth, mask, name) for k in (1.0, factor))
    for metric, value in less.items():
        better = METRICS[metric].higher_is_better
        if metric in ("mae", "mse", "rmse", "psnr"):
            assert (value > more[metric]) if better else (value < more[metric])
        elif better and metric != "dice_bone":
            assert value > more[metric] - 1e-3


def test_more_noise_lowers_ms_ssim():
    truth, mask = shaped("synthrad2025", 0)
    noise = np.random.default_rng(1).normal(size=truth.shape)
    found = [measured(truth + k * noise, truth, mask, "synthrad2025")["ms_ssim"] for k in (0, 50, 200, 800)]
    assert found == sorted(found, reverse=True) and found[-1] < 0.9


@settings(max_examples=25)
@given(hounsfield, hounsfield, masks)
def test_numbers_of_any_images_pass_the_bounds_that_printed_numbers_are_held_to(x, y, mask):
    for name in VOLUME_PROTOCOLS:
        values = measured(x, y, mask, name, slice_axis=1)
        assert set(values) <= set(METRICS)


@settings(max_examples=15)
@given(hounsfield, st.integers(-300, 300), st.integers(-300, 300))
def test_a_constant_offset_is_an_error_of_its_own_size(x, offset, other):
    mask = np.ones(SHAPE, bool)
    values = measured(x + offset, x, mask, "wolterink")
    assert values["mae"] == pytest.approx(abs(offset)) and values["rmse"] == pytest.approx(abs(offset))
    if abs(other) > abs(offset):
        assert measured(x + other, x, mask, "wolterink")["psnr"] < values["psnr"]


@settings(max_examples=20)
@given(seeds, st.floats(-50, 50), st.floats(-20, 20))
def test_flicker_ignores_a_steady_change_and_grows_with_jumps(seed, slope, offset):
    truth = np.random.default_rng(seed).normal(0, 30, SHAPE)
    mask = np.ones(SHAPE, bool)
    ramp = truth + offset + slope * np.arange(SHAPE[0])[:, None, None]
    assert flicker(ImagePair(ramp, truth, mask, PROTOCOLS["wolterink"], 0)) == pytest.approx(1.0, abs=1e-9)
    jumps = np.where(np.arange(SHAPE[0]) % 2, 400.0, -400.0)[:, None, None]
    assert flicker(ImagePair(truth + jumps, truth, mask, PROTOCOLS["wolterink"], 0)) > 5
    assert flicker(ImagePair(truth + jumps, truth, mask, PROTOCOLS["wolterink"], 1)) == pytest.approx(1.0, abs=1e-9)


def test_flicker_has_no_number_where_the_mask_is_thin_or_the_truth_does_not_change():
    truth = np.random.default_rng(0).normal(size=SHAPE)
    thin = np.zeros(SHAPE, bool)
    thin[4:6] = True
    assert flicker(ImagePair(truth, truth, thin, PROTOCOLS["wolterink"], 0)) is None
    assert flicker(ImagePair(truth, np.zeros(SHAPE), ~thin, PROTOCOLS["wolterink"], 1)) is None
    assert "flicker" not in measured(truth, truth, thin, "paired_volume_hu", slice_axis=0)


@settings(max_examples=20)
@given(trained, trained)
def test_a_cycle_is_symmetric_and_perfect_for_the_identity(x, y):
    forth, back = (measure_cycle(a, b, case="c", subject="s").values for a, b in ((x, y), (y, x)))
    assert forth == pytest.approx(back, abs=1e-9)
    assert measure_cycle(x, x, case="c", subject="s").values["ssim"] == pytest.approx(1)


@settings(max_examples=10)
@given(seeds)
def test_structure_does_not_see_what_lies_outside_the_head(seed):
    rng = np.random.default_rng(seed)
    head = np.hypot(*np.mgrid[-24:24, -24:24]) < 16
    x, y = rng.normal(size=(2, 48, 48))
    # Gradients reach 4 px beyond a pixel, the outermost 2 px of the head are left out.
    far = np.hypot(*np.mgrid[-24:24, -24:24]) > 16 + 4
    assert measure_structure(np.where(far, 99.0, x), y, head, case="c", subject="s").values == pytest.approx(
        measure_structure(x, y, head, case="c", subject="s").values
    )


@settings(max_examples=10)
@given(seeds)
def test_distances_of_distributions_are_symmetric_and_ignore_the_order_of_images(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(20, 6)), rng.normal(0.5, 1, (20, 6))
    assert fid(x, y) == pytest.approx(fid(y, x), abs=1e-9)
    assert fid(x[rng.permutation(20)], y) == pytest.approx(fid(x, y), abs=1e-9)
    whole = {"subsets": 1, "subset_size": 20, "seed": 0}
    assert kid(x[rng.permutation(20)], y, **whole)[0] == pytest.approx(kid(y, x, **whole)[0], abs=1e-9)
    assert fid(x, x) == pytest.approx(0, abs=1e-9) and fid(x, x) >= 0


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(1, 200)), min_size=1, max_size=12), seeds)
def test_the_order_of_cases_changes_nothing_in_a_summary(rows, seed):
    cases = [CaseMetrics(f"c{k}", f"s{s}", protocol("wolterink"), {"mae": v}) for k, (s, v) in enumerate(rows)]
    shuffled = [cases[k] for k in np.random.default_rng(seed).permutation(len(cases))]
    assert summarise(shuffled, resamples=200).to_dict() == summarise(cases, resamples=200).to_dict()
