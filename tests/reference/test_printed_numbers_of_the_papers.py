"""Numbers printed in the five papers: which can come from one pair of images, and which cannot."""

import math

import pytest

from ctmr.protocol import check_consistent


def test_jha_iima_cyclegan_row_is_impossible_over_the_range_they_trained_on():
    row = {"mae": 0.5309, "mse": 0.37901, "psnr": 52.344}
    with pytest.raises(ValueError, match=r"PSNR 52\.344 dB over range 2 implies"):
        check_consistent(row, 2.0, where="Jha & Iima")


def test_jha_iima_cyclegan_row_is_possible_over_255():
    check_consistent({"mae": 0.5309, "mse": 0.37901, "psnr": 52.344}, 255.0, where="Jha & Iima")


def test_jha_iima_mse_over_the_trained_range_is_ten_decibel():
    assert 20 * math.log10(2 / math.sqrt(0.37901)) == pytest.approx(10.23, abs=0.005)


@pytest.mark.parametrize("data_range", [None, 1.0, 2.0, 255.0, 4095.0])
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
