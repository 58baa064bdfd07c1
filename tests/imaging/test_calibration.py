"""Calibration of uncertainty: monotone, honest about images left out, and none where the figure says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ctmr.imaging.calibration import Calibration, calibrate, series_figure
from ctmr.imaging.volume import Unit


def fit(figures, errors, images=None, intact=None):
    count = len(figures)
    return calibrate(figures, errors, images or [str(k) for k in range(count)], intact or [True] * count, Unit.HU)


def test_pairs_that_rise_are_their_own_fit():
    found = fit([1, 2, 3, 4, 5], [10, 20, 40, 50, 90])
    assert isinstance(found, Calibration)
    assert (found.cases, found.rank_correlation) == (5, 1.0)
    assert [found.expected_error(f) for f in (1, 2.5, 5)] == pytest.approx([10, 30, 90])
    # Left out in turn: 10 is called 20, 20 is called 25, 40 is called 35, 50 is called 65, 90 is called 50.
    assert found.left_out_error == pytest.approx((10 + 5 + 5 + 15 + 40) / 5)


def test_pairs_that_fall_are_pooled():
    found = fit([1, 2, 3, 4, 5], [10, 40, 20, 50, 60])
    assert found.errors == (10, 30, 30, 50, 60)


def test_equal_figures_count_together():
    found = fit([1, 1, 2, 3, 4], [10, 20, 30, 40, 50])
    assert found.figures == (1, 2, 3, 4) and found.errors[0] == 15


def test_beyond_the_largest_figure_the_error_goes_on_growing():
    found = fit([1, 2, 3, 4, 5], [10, 20, 40, 50, 90])
    assert found.expected_error(50) == pytest.approx(900) and found.expected_error(0) == 10


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000)), min_size=5, max_size=12), st.floats(0, 300))
def test_a_larger_figure_never_means_a_smaller_error(pairs, figure):
    found = fit([f for f, _ in pairs], [e for _, e in pairs])
    if not isinstance(found, str):
        assert found.expected_error(figure) <= found.expected_error(figure * 1.1 + 0.1) + 1e-9


@pytest.mark.parametrize(
    ("figures", "errors", "words"),
    [
        ([1, 2, 3], [1, 2, 3], "3 held-out images with truth are there, 3 with .* needs 4 and 5"),
        ([1, 2, 3, 4], [1, 2, 3, 4], "4 held-out images with truth are there, 4 with .* needs 4 and 5"),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], r"does not rise with the true error of 5 cases \(rank correlation -1.00\)"),
        ([1, 1, 1, 1, 1], [5, 4, 3, 2, 1], "does not rise"),
        ([1, 2, 3, 4, 5], [2, 2, 2, 2, 2], "does not rise"),
    ],
)
def test_a_figure_that_says_nothing_is_not_calibrated(figures, errors, words):
    found = fit(figures, errors)
    assert isinstance(found, str)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found)


def test_a_written_calibration_that_falls_is_refused():
    tree = fit([1, 2, 3, 4, 5], [10, 20, 40, 50, 90]).model_dump()
    with pytest.raises(ValidationError, match="rise"):
        Calibration(**{**tree, "errors": (5, 4, 3, 2, 1)})


def test_no_head_no_doubt():
    assert series_figure(np.ones((2, 3, 3), np.float32), np.zeros((2, 3, 3), bool)) == 0.0


def test_an_image_and_its_copies_are_left_out_together():
    names = ["a", "a", "b", "b", "c", "c", "d", "d"]
    found = fit([1, 5, 2, 6, 3, 7, 4, 8], [1, 50, 2, 60, 3, 70, 4, 80], names, [True, False] * 4)
    assert (found.cases, found.images, found.intact_rank_correlation) == (8, 4, 1.0)
    # Without "a" 1 is called 2, and 5, between 4 and 6, is called (4 + 60) / 2.
    others = [(2, 1), (32, 50), (2, 2), ((50 + 70) / 2, 60), (3, 3), (70, 70), ((3 + 50) / 2, 4), (70, 80)]
    assert found.left_out_error == pytest.approx(np.mean([abs(a - b) for a, b in others]))


def test_images_alone_may_say_the_opposite():
    names = ["a", "b", "c", "d"] * 2
    found = fit([1, 2, 3, 4, 11, 12, 13, 14], [4, 3, 2, 1, 90, 91, 92, 93], names, [True] * 4 + [False] * 4)
    assert found.intact_rank_correlation == -1 and found.rank_correlation > 0.5
