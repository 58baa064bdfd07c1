"""Detection of lesions: kept, lost and invented ones, against balls whose answer is known beforehand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ctmr.imaging.volume import Unit
from ctmr.metrics.detection import (
    Site,
    blob_contrast,
    false_findings,
    lesion_metrics,
    matched_means,
    respond,
    visible_contrast,
    wilson_interval,
)
from ctmr.metrics.stats import summarise

SPACING = (2.0, 1.0, 1.5)
SHAPE = (24, 48, 36)
HERE, THERE = (12, 14, 12), (12, 34, 24)
HEAD = np.ones(SHAPE, dtype=bool)


def distance(centre, shape=SHAPE, spacing=SPACING):
    axes = [(np.arange(n) - c) * mm for n, c, mm in zip(shape, centre, spacing, strict=True)]
    return np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))


def ball(centre, radius=5.0, shape=SHAPE, spacing=SPACING):
    return distance(centre, shape, spacing) <= radius


def site(centre=HERE, radius=5.0):
    return Site(ball(centre, radius), radius, "bright")


def found(difference, sites=None, **options):
    return respond(difference, sites or [site()], HEAD, visible=5.0, finding=10.0, spacing_mm=SPACING, **options)


def test_a_translation_that_shows_the_lesion_keeps_it_and_invents_nothing():
    answer = found(30.0 * ball(HERE))
    assert [r.kept for r in answer.responses] == [True]
    assert answer.responses[0].signal == pytest.approx(30.0)
    assert answer.invented == 0


def test_a_translation_that_ignores_its_input_loses_every_lesion():
    answer = found(np.zeros(SHAPE), [site(), site(THERE)])
    assert [r.kept for r in answer.responses] == [False, False]
    assert [r.cnr for r in answer.responses] == [0.0, 0.0]


@pytest.mark.parametrize(("contrast", "kept"), [(4.9, False), (5.1, True), (-5.1, True)])
def test_without_noise_the_visible_contrast_decides(contrast, kept):
    assert found(contrast * ball(HERE)).responses[0].kept is kept


def test_a_lesion_in_noise_of_its_own_size_is_lost_and_in_fine_noise_it_is_kept():
    rng = np.random.default_rng(0)
    fine = rng.normal(0, 10, SHAPE)
    coarse = 40 * matched_means(rng.normal(0, 60, SHAPE), HEAD, radius_mm=5.0, spacing_mm=SPACING)
    assert found(20.0 * ball(HERE) + fine).responses[0].kept
    assert not found(20.0 * ball(HERE) + coarse).responses[0].kept


def test_a_shift_of_the_whole_image_is_no_lesion():
    assert not found(np.full(SHAPE, 50.0)).responses[0].kept
    assert found(np.full(SHAPE, 50.0)).invented == 0


def test_a_lesion_shown_with_the_wrong_sign_is_lost_where_truth_says_so():
    truth = 20.0 * ball(HERE)
    assert not found(-truth, truth=truth, truth_visible=5.0).responses[0].kept
    assert found(truth, truth=truth, truth_visible=5.0).responses[0].kept


def test_a_lesion_that_the_truth_does_not_show_is_not_asked_for():
    assert found(30.0 * ball(HERE), truth=2.0 * ball(HERE), truth_visible=5.0).responses == ()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_finding_far_from_every_lesion_is_invented_and_one_at_its_edge_is_not(sign):
    assert found(30.0 * ball(HERE) + sign * 30.0 * ball(THERE)).invented == 1
    assert found(30.0 * ball(HERE, 8.0)).invented == 0


def test_two_findings_count_twice():
    third = (4, 40, 6)
    assert found(30.0 * (ball(THERE) + ball(third)).astype(float)).invented == 2


@pytest.mark.parametrize("shape", [SHAPE, (1, 64, 64)])
@pytest.mark.parametrize("radius", [5.0, 8.0])
def test_a_ball_answers_its_own_contrast_at_its_centre(shape, radius):
    centre = tuple(n // 2 for n in shape)
    image = 100.0 + 20.0 * ball(centre, radius, shape, (1.0, 1.0, 1.0))
    contrast = blob_contrast(image, np.ones(shape, bool), radius_mm=radius, spacing_mm=(1.0, 1.0, 1.0))
    assert contrast[centre] == pytest.approx(20.0, rel=0.12)


def test_a_plain_and_a_sloping_image_have_no_blobs():
    flat = blob_contrast(np.full(SHAPE, 7.0), HEAD, radius_mm=4.0, spacing_mm=SPACING)
    slope = np.broadcast_to(np.arange(SHAPE[1])[None, :, None] * 10.0, SHAPE)
    inner = blob_contrast(slope, HEAD, radius_mm=2.0, spacing_mm=SPACING)[8:-8, 16:-16, 10:-10]
    assert np.abs(flat).max() < 1e-4 and np.abs(inner).max() < 0.5


@given(st.floats(-2000, 2000), st.integers(0, 5))
@settings(max_examples=20)
def test_means_inside_a_mask_see_nothing_of_what_lies_outside(value, seed):
    mask = np.random.default_rng(seed).random((6, 12, 10)) > 0.4
    image = np.where(mask, value, 1e4)
    means = matched_means(image, mask, radius_mm=3.0, spacing_mm=SPACING)
    assert np.allclose(means[mask], value, rtol=1e-4, atol=1e-3)


def test_only_blobs_that_the_truth_lacks_are_false():
    options = {"contrast": 10.0, "radius_mm": 5.0, "spacing_mm": SPACING}
    flat, here, there = np.full(SHAPE, 35.0), 30.0 * ball(HERE), 30.0 * ball(THERE)
    assert false_findings(flat + here, flat + here, HEAD, **options) == 0
    assert false_findings(flat, flat + here, HEAD, **options) == 0
    assert false_findings(flat + here - there, flat, HEAD, **options) == 2
    assert false_findings(flat + here, flat, HEAD & ~ball(HERE, 14.0), **options) == 0
    assert false_findings(flat + here * 0.2, flat, HEAD, **options) == 0


def test_the_smallest_visible_contrast_follows_the_unit():
    image = np.linspace(0, 1000, 1001).reshape(1, 7, 143)
    assert visible_contrast(Unit.HU, image, image > -1) == 5.0
    assert visible_contrast(Unit.ARBITRARY, image, image > -1) == pytest.approx(0.02 * 990)


@pytest.mark.parametrize(("k", "n"), [(0, 8), (5, 8), (8, 8), (1, 200), (3, 4)])
def test_the_wilson_interval_is_scipys(k, n):
    reference = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson_interval(k, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_no_lesions_have_no_interval_and_no_response():
    assert all(math.isnan(x) for x in wilson_interval(0, 0))
    with pytest.raises(ValueError, match="no lesion"):
        respond(np.zeros(SHAPE), [], HEAD, visible=5.0, finding=10.0, spacing_mm=SPACING)


def test_a_case_becomes_rates_and_counts_under_protocol_lesions():
    findings = found(30.0 * ball(HERE), [site(), site(THERE)])
    case = lesion_metrics(findings, case="a", subject="a", variant="5 mm", false_blobs=3)
    assert dict(case.values) == {"detection_rate": 0.5, "invented": 0.0, "false_findings": 3.0}
    other = lesion_metrics(findings, case="b", subject="b", variant="9 mm")
    assert "false_findings" not in other.values
    with pytest.raises(TypeError, match="different protocols"):
        summarise([case, other])
