"""Structure: ranges, the identity, and what each number sees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ctmr.metrics.measurement import measure_structure
from ctmr.metrics.pair import ImagePair
from ctmr.metrics.protocol import protocol
from ctmr.metrics.structure import normalised_mutual_information

HEAD = np.hypot(*np.mgrid[-32:32, -32:32]) < 28


def picture(seed):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(64, 64)), 2.0)


def structure(x, y):
    return measure_structure(x, y, HEAD, case="c", subject="s").values


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_numbers_stay_in_their_ranges_and_are_symmetric(a, b):
    forth, back = structure(picture(a), picture(b)), structure(picture(b), picture(a))
    assert 0 <= forth["nmi"] <= 1 and -1 <= forth["gradient_correlation"] <= 1 and 0 <= forth["edge_overlap"] <= 1
    assert forth == pytest.approx(back)


def test_the_identity_scores_one_everywhere_so_it_is_no_fidelity():
    assert structure(picture(0), picture(0)) == pytest.approx({"nmi": 1, "gradient_correlation": 1, "edge_overlap": 1})


def test_scale_offset_and_inverted_contrast_change_nothing():
    found = structure(picture(1), 700.0 - 300.0 * picture(1))
    assert found["nmi"] > 0.95
    assert found["gradient_correlation"] == pytest.approx(1) and found["edge_overlap"] == pytest.approx(1)


def test_other_anatomy_and_a_constant_score_low():
    same, other = structure(picture(2), picture(2)), structure(picture(2), picture(3))
    assert all(other[k] < 0.6 * same[k] for k in same)
    assert structure(picture(2), np.full((64, 64), 35.0)) == {"nmi": 0, "gradient_correlation": 0, "edge_overlap": 0}


def test_mutual_information_equals_entropies_counted_by_hand():
    x = np.array([[0.0, 0.0, 1.0, 1.0]])
    y = np.array([[0.0, 1.0, 1.0, 1.0]])
    h_x, h_y = np.log(2), -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    h_xy = -(0.25 * np.log(0.25) * 2 + 0.5 * np.log(0.5))
    found = normalised_mutual_information(ImagePair(y, x, np.ones((1, 4), bool), protocol("structure")))
    assert found == pytest.approx((h_x + h_y) / h_xy - 1)


def test_a_volume_and_an_empty_head_are_refused():
    with pytest.raises(ValueError, match="slice by slice"):
        measure_structure(np.zeros((2, 9, 9)), np.zeros((2, 9, 9)), np.ones((2, 9, 9), bool), case="c", subject="s")
    with pytest.raises(ValueError, match="head mask is empty"):
        measure_structure(picture(0), picture(1), np.zeros((64, 64), bool), case="c", subject="s")
