"""Calibration of uncertainty: monotone, honest about images left out, and none where the figure says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ctmr.imaging.calibration import Calibration, calibrate, series_figure
from ctmr.imaging.volume import Unit


def test_pairs_that_rise_are_their_own_fit():
    found = calibrate([1, 2, 3, 4, 5], [10, 20, 40, 50, 90], Unit.HU)
    assert isinstance(found, Calibration)
    assert (found.cases, found.rank_correlation) == (5, 1.0)
    assert [found.expected_error(f) for f in (1, 2.5, 5)] == pytest.approx([10, 30, 90])
    # Left out in turn: 10 is called 20, 20 is called 25, 40 is called 35, 50 is called 65, 90 is called 50.
    assert found.left_out_error == pytest.approx((10 + 5 + 5 + 15 + 40) / 5)


def test_pairs_that_fall_are_pooled():
    found = calibrate([1, 2, 3, 4, 5], [10, 40, 20, 50, 60], Unit.HU)
    assert found.errors == (10, 30, 30, 50, 60)


def test_equal_figures_count_together():
    found = calibrate([1, 1, 2, 3, 4], [10, 20, 30, 40, 50], Unit.HU)
    assert found.figures == (1, 2, 3, 4) and found.errors[0] == 15


def test_beyond_the_largest_figure_the_error_goes_on_growing():
    found = calibrate([1, 2, 3, 4, 5], [10, 20, 40, 50, 90], Unit.HU)
    assert found.expected_error(50) == pytest.approx(900) and found.expected_error(0) == 10


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), min_size=5, max_size=12), st.floats(0, 300))
def test_a_larger_figure_never_means_a_smaller_error(pairs, figure):
    found = calibrate([f for f, _ in pairs], [e for _, e in pairs], Unit.HU)
    if not isinstance(found, str):
        assert found.expected_error(figure) <= found.expected_error(figure * 1.1 + 0.1) + 1e-9


@pytest.mark.parametrize(
    ("figures", "errors", "words"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], "4 held-out images with truth are there, and a calibration needs 5"),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], r"does not rise with the true error of 5 .*\(rank correlation -1.00\)"),
        ([1, 1, 1, 1, 1], [5, 4, 3, 2, 1], "does not rise"),
        ([1, 2, 3, 4, 5], [2, 2, 2, 2, 2], "does not rise"),
    ],
)
def test_a_figure_that_says_nothing_is_not_calibrated(figures, errors, words):
    found = calibrate(figures, errors, Unit.HU)
    assert isinstance(found, str)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found)


def test_a_written_calibration_that_falls_is_refused():
    tree = calibrate([1, 2, 3, 4, 5], [10, 20, 40, 50, 90], Unit.HU).model_dump()
    with pytest.raises(ValidationError, match="rise"):
        Calibration(**{**tree, "errors": (5, 4, 3, 2, 1)})


def test_no_head_no_doubt():
    assert series_figure(np.ones((2, 3, 3), np.float32), np.zeros((2, 3, 3), bool)) == 0.0
