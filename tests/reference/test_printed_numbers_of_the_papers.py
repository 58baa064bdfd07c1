"""Numbers printed in the five papers: which can come from one pair of images, and which cannot."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctmr.metrics.cases import CaseMetrics, check_consistent
from ctmr.metrics.distribution import fid, kid
from ctmr.metrics.protocol import protocol


def test_jha_iima_cyclegan_row_is_impossible_over_the_range_they_trained_on():
    row = {"mae": 0.5309, "mse": 0.37901, "psnr": 52.344}
    with pytest.raises(ValueError, match=r"PSNR 52\.344 dB over range 2 implies"):
        check_consistent(row, 2.0, where="Jha & Iima")


def test_jha_iima_cyclegan_row_is_possible_over_255():
    check_consistent({"mae": 0.5309, "mse": 0.37901, "psnr": 52.344}, 255.0, where="Jha & Iima")


def test_jha_iima_mse_over_the_trained_range_is_ten_decibel():
    assert 20 * math.log10(2 / math.sqrt(0.37901)) == pytest.approx(10.23, abs=0.005)


@given(st.none() | st.floats(1e-3, 1e6))
def test_jha_iima_cnn_row_is_impossible_over_any_range(data_range):
    with pytest.raises(ValueError, match="Jha & Iima CNN"):
        check_consistent({"mae": 70.44, "mse": 60.867, "psnr": 9.457}, data_range, where="Jha & Iima CNN")


def test_wolterinks_formula_as_printed_would_put_rmse_below_mae():
    mse_of_the_printed_formula = 4095 / 10 ** (32.3 / 20)
    with pytest.raises(ValueError, match=r"MAE 73\.7 is above RMSE"):
        check_consistent({"mae": 73.7, "mse": mse_of_the_printed_formula}, None, where="Wolterink")


@pytest.mark.parametrize(("mae", "psnr"), [(73.7, 32.3), (89.4, 30.6)])
def test_wolterinks_numbers_are_possible_on_the_rmse(mae, psnr):
    check_consistent({"mae": mae, "psnr": psnr}, 4095.0, where="Wolterink")


def test_wolterinks_error_is_six_decibel_less_over_the_models_own_window():
    rmse = 4095 / 10 ** (32.3 / 20)
    assert rmse == pytest.approx(99.4, abs=0.1)
    assert 20 * math.log10(2000 / rmse) == pytest.approx(26.1, abs=0.05)


def test_wolterinks_numbers_are_a_legal_case_of_their_protocol():
    CaseMetrics("mean", "", protocol("wolterink"), {"mae": 73.7, "psnr": 32.3})


def test_nehras_losses_add_up_with_a_weight_of_ten_and_show_a_misprint():
    adversarial, reconstruction = 0.998336 + 0.997466, 0.00336
    assert adversarial + 10 * reconstruction == pytest.approx(2.029403, abs=2e-6)
    assert reconstruction - 0.001313 == pytest.approx(0.002047, abs=1e-9)
    assert 6 * reconstruction < 0.001313 + 0.02047


def test_nehras_discriminator_loss_fits_least_squares_and_no_cross_entropy():
    # D(fake) of a discriminator whose loss is 7.12e-6, were that loss the cross-entropy or the square.
    by_entropy, by_square = 1 - math.exp(-7.12e-6), math.sqrt(7.12e-6)
    assert -math.log(by_entropy) > 11.8
    assert (by_square - 1) ** 2 == pytest.approx(0.998336, abs=0.004)


def test_duvals_counts_leave_a_distance_between_samples_of_one_distribution():
    """85 and 111 images against 2048 features: covariances of rank 84 and 110, and a FID far above zero."""
    rng = np.random.default_rng(0)
    mr, ct = rng.normal(size=(85, 2048)), rng.normal(size=(111, 2048))
    assert np.linalg.matrix_rank(np.cov(mr[:, :300], rowvar=False)) == 84
    assert fid(mr, ct) > 1000
    mean, sd = kid(mr, ct, subsets=20, subset_size=85, seed=0)
    assert abs(mean) < 3 * sd
