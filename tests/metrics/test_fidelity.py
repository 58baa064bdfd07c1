"""Fidelity: formulas against float64 numpy, bounds that no images can break, and refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ctmr.metrics.measurement import measure_cycle, measure_paired
from ctmr.metrics.protocol import SsimWindow, protocol
from ctmr.metrics.ssim import ssim, ssim_map

torch.set_num_threads(1)
GREY = protocol("paired_slice_grey8_full")
pictures = arrays(np.uint8, (1, 12, 13))


def measured(p, t, name="paired_slice_grey8_full", mask=None):
    return measure_paired(p, t, mask, protocol(name), case="c", subject="s").values


@settings(max_examples=40, deadline=None)
@given(pictures, pictures)
def test_the_mean_absolute_error_never_exceeds_the_rmse(x, y):
    values = measured(x, y)
    assert values["mae"] <= values["rmse"] * (1 + 1e-12)
    assert values["rmse"] == pytest.approx(math.sqrt(np.mean((x.astype(float) - y) ** 2)))


@settings(max_examples=30, deadline=None)
@given(pictures, st.integers(1, 60), st.integers(1, 60))
def test_psnr_falls_as_the_error_grows(x, a, b):
    small, large = sorted((a, b))
    truth = np.zeros_like(x, dtype=float)
    near, far = (measured(truth + error, truth)["psnr"] for error in (small, large))
    assert near >= far and near == pytest.approx(20 * math.log10(255 / small))


@settings(max_examples=25, deadline=None)
@given(pictures, pictures)
def test_ssim_is_symmetric_and_one_for_equal_images(x, y):
    a, b = (torch.from_numpy(v.astype(np.float64)) for v in (x, y))
    how = {"data_range": 255.0, "window": SsimWindow.GAUSSIAN_11_2D}
    assert float(ssim(a, b, **how)) == pytest.approx(float(ssim(b, a, **how)), abs=1e-12)
    assert float(ssim(a, a, **how)) == pytest.approx(1.0, abs=1e-9)
    assert float(ssim_map(a, b, **how).abs().max()) <= 1 + 1e-9


def test_equal_images_have_an_infinite_psnr_and_no_error():
    x = np.arange(400, dtype=np.uint8).reshape(1, 20, 20)
    values = measured(x, x)
    assert values["psnr"] == math.inf and values["mae"] == 0 and values["ssim"] == pytest.approx(1)


def test_the_ssim_gradient_is_right():
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.random((1, 1, 12, 12))) for _ in range(2))
    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: ssim(t, y, data_range=1.0, window=SsimWindow.GAUSSIAN_11_2D), (x,))


def test_the_ssim_of_a_batch_is_the_mean_over_its_images():
    x, y = torch.rand(3, 1, 16, 16), torch.rand(3, 1, 16, 16)
    how = {"data_range": 1.0, "window": SsimWindow.GAUSSIAN_11_2D}
    alone = [float(ssim(x[k, 0], y[k, 0], **how)) for k in range(3)]
    assert float(ssim(x, y, **how)) == pytest.approx(np.mean(alone), abs=1e-6)


def volume_of_tissues():
    truth = np.full((9, 10, 11), 30.0)
    truth[2:4] = 800.0
    truth[6:8] = -900.0
    mask = np.ones(truth.shape, bool)
    mask[:, :2] = False
    return truth, mask


def test_errors_are_split_by_the_tissue_of_the_truth():
    truth, mask = volume_of_tissues()
    prediction = truth + np.select([truth > 250, truth < -200], [100.0, 20.0], 5.0)
    values = measured(prediction, truth, "paired_volume_hu", mask)
    assert (values["mae_bone"], values["mae_air"], values["mae_soft"]) == (100.0, 20.0, 5.0)
    assert values["dice_bone"] == 1.0


def test_half_of_the_bone_missing_gives_dice_of_two_thirds():
    truth, mask = volume_of_tissues()
    prediction = truth.copy()
    prediction[3] = 30.0
    assert measured(prediction, truth, "paired_volume_hu", mask)["dice_bone"] == pytest.approx(2 / 3)
    soft = np.zeros(truth.shape)
    assert "dice_bone" not in measured(soft, soft, "paired_volume_hu", mask)


def test_what_lies_outside_the_mask_or_the_clip_range_does_not_count():
    truth, mask = volume_of_tissues()
    prediction = np.where(mask, truth, 2000.0)
    assert measured(prediction, truth, "paired_volume_hu", mask)["mae"] == 0.0
    assert measured(prediction, truth, "paired_volume_hu", mask)["ssim"] == pytest.approx(1.0)
    beyond = np.where(truth > 250, 9000.0, truth)
    metal = np.where(truth > 250, 3500.0, truth)
    assert measured(beyond, metal, "paired_volume_hu", mask)["mae"] == 0.0
    assert measured(beyond, metal, "wolterink", mask)["mae"] > 1000.0


def test_wolterink_takes_psnr_over_4095_without_clip():
    truth, mask = volume_of_tissues()
    values = measured(truth + 99.4, truth, "wolterink", mask)
    assert values["psnr"] == pytest.approx(32.3, abs=0.01)
    assert "ssim" not in values


@pytest.mark.parametrize("name", ["synthrad2025", "synthrad2025_metrics"])
def test_synthrad2025_variants_differ_in_range(name):
    truth, mask = volume_of_tissues()
    values = measured(truth + 10.0, truth, name, mask)
    assert values["psnr"] == pytest.approx(20 * math.log10(protocol(name).data_range / 10.0))
    assert 0 < values["ms_ssim"] <= 1


def test_a_volume_below_the_window_is_refused():
    tiny, mask = np.zeros((6, 20, 20)), np.ones((6, 20, 20), bool)
    with pytest.raises(ValueError, match=r"case c under paired_volume_hu.*smaller than the SSIM window.*7"):
        measured(tiny, tiny, "paired_volume_hu", mask)


@pytest.mark.parametrize(
    ("prediction", "mask", "words"),
    [
        (np.zeros((8, 8, 9)), np.ones((8, 8, 8), bool), "must share one shape"),
        (np.full((8, 8, 8), np.nan), np.ones((8, 8, 8), bool), "not finite"),
        (np.zeros((8, 8, 8)), None, "needs mask head_from_ct"),
        (np.zeros((8, 8, 8)), np.zeros((8, 8, 8), bool), "is empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(prediction, mask, words):
    with pytest.raises(ValueError, match=words):
        measured(prediction, np.zeros((8, 8, 8)), "paired_volume_hu", mask)


def test_slice_protocols_refuse_volumes_and_unpaired_protocols_are_no_fidelity():
    x = np.zeros((2, 16, 16))
    with pytest.raises(ValueError, match="slice by slice"):
        measured(x, x)
    with pytest.raises(ValueError, match="does not compare a prediction with its truth"):
        measured(x, x, "cycle_slice")


def test_channels_of_a_cycle_are_averaged():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1, 1, (2, 16, 16)), rng.uniform(-1, 1, (2, 16, 16))
    both = measure_cycle(x, y, case="c", subject="s").values
    single = [measure_cycle(x[k], y[k], case="c", subject="s").values["ssim"] for k in range(2)]
    assert both["ssim"] == pytest.approx(np.mean(single))
    assert both["mae"] == pytest.approx(np.abs(x - y).mean())


def test_masks_choose_the_pixels_of_the_plain_formulas():
    x, y = np.array([[[1.0, 2.0, 30.0]]]), np.array([[[0.0, 4.0, 0.0]]])
    where = np.array([[[True, True, False]]])
    values = measured(x, y, "wolterink", where)
    assert values["mae"] == 1.5
    assert values["rmse"] == pytest.approx(math.sqrt(2.5))
