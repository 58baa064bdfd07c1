"""Paired tests against scipy and full enumeration, and what they refuse or say about degenerate cases."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from ctmr.errors import InputError
from ctmr.metrics import significance
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.significance import compare_cases, correct, holm, t_test_p, wilcoxon_p

HU = protocol("wolterink")


def cases(values, metric="mae", how=HU):
    return [CaseMetrics(f"case {k}", f"patient {k}", how, {metric: float(v)}) for k, v in enumerate(values)]


def enumerated(differences):
    """Two-sided p over all signs of the mid-ranks."""
    left = [d for d in differences if d != 0]
    ranks = scipy_stats.rankdata(np.abs(left))
    seen = sum(r for r, d in zip(ranks, left, strict=True) if d > 0)
    centre = ranks.sum() / 2
    signs = itertools.product((0, 1), repeat=len(left))
    sums = [sum(r for r, positive in zip(ranks, row, strict=True) if positive) for row in signs]
    return np.mean([abs(s - centre) >= abs(seen - centre) - 1e-9 for s in sums])


@settings(max_examples=40)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9).filter(any))
def test_the_rank_test_counts_every_sign_also_with_ties_and_zeros(differences):
    assert wilcoxon_p(np.array(differences, dtype=float)) == pytest.approx(enumerated(differences), abs=1e-12)


@pytest.mark.parametrize("n", [5, 12, 40])
def test_both_tests_equal_scipy_and_the_formula(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(70, 5, n), rng.normal(73, 5, n)
    assert wilcoxon_p(a - b) == pytest.approx(scipy_stats.wilcoxon(a, b, method="exact").pvalue, rel=1e-9)
    differences = (a - b).tolist()
    mean = math.fsum(differences) / n
    t = mean / math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    assert t_test_p(a - b) == pytest.approx(2 * scipy_stats.t.sf(abs(t), n - 1), rel=1e-9)


def test_many_patients_take_the_normal_approximation(monkeypatch):
    rng = np.random.default_rng(1)
    differences = rng.normal(0.4, 5, 300).round(1)
    exact = wilcoxon_p(differences)
    monkeypatch.setattr(significance, "EXACT_UP_TO", 100)
    left = differences[differences != 0]
    ranks = scipy_stats.rankdata(np.abs(left))
    assert left.size < 300 and len(set(ranks)) < len(ranks)
    z = (ranks[left > 0].sum() - ranks.sum() / 2) / math.sqrt((ranks**2).sum() / 4)
    assert wilcoxon_p(differences) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=1e-9)
    assert wilcoxon_p(differences) == pytest.approx(exact, abs=2e-3)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_its_definition(p_values):
    found = holm(p_values)
    for k, p in enumerate(p_values):
        # The smallest level at which step-down rejects hypothesis k: the largest product up to its place.
        smaller = sorted(p_values)[: sorted(p_values).index(p) + 1]
        expected = max(min(1.0, (len(p_values) - i) * q) for i, q in enumerate(smaller))
        assert found[k] == pytest.approx(expected)


def test_what_was_not_tested_is_not_counted_by_holm():
    assert holm([0.01, None, 0.04]) == pytest.approx([0.02, None, 0.04])


def test_a_patient_with_many_cases_counts_once():
    rows = [("x1", "x", 1.0), ("x2", "x", 3.0), ("y1", "y", 5.0), ("y2", "y", 5.0)]
    a = [CaseMetrics(name, subject, HU, {"mae": value}) for name, subject, value in rows]
    b = [CaseMetrics(c.case, c.subject, HU, {"mae": 1.0}) for c in a]
    (row,) = compare_cases(a, b)
    assert (row.subjects, row.difference) == (2, 2.5)


def test_models_that_differ_on_every_patient_are_told_apart_and_corrected_over_metrics():
    rng = np.random.default_rng(0)
    values = rng.normal(80, 8, 12)
    a = [CaseMetrics(f"c{k}", f"s{k}", HU, {"mae": v, "dice_bone": 0.8}) for k, v in enumerate(values)]
    b = [CaseMetrics(f"c{k}", f"s{k}", HU, {"mae": v + 5 + k / 9, "dice_bone": 0.8}) for k, v in enumerate(values)]
    (tested,) = correct([compare_cases(a, b)])
    by_metric = {t.metric: t for t in tested}
    assert by_metric["mae"].wilcoxon_p == pytest.approx(2 / 2**12)
    assert by_metric["mae"].wilcoxon_holm == pytest.approx(4 / 2**12) and by_metric["mae"].significant
    assert by_metric["mae"].low < by_metric["mae"].difference < by_metric["mae"].high < 0
    assert by_metric["dice_bone"].wilcoxon_p == by_metric["dice_bone"].t_p == 1.0
    assert "equal on every patient" in by_metric["dice_bone"].note


def test_one_patient_is_not_tested_and_that_is_said():
    (row,) = compare_cases(cases([5.0]), cases([4.0]))
    assert (row.difference, row.wilcoxon_p, row.t_p, row.low) == (1.0, None, None, None)
    assert row.note == "1 patient: nothing can be tested"


def test_four_patients_can_never_be_significant_by_rank_and_that_is_said():
    (row,) = compare_cases(cases([1, 2, 3, 4]), cases([2, 4, 6, 8]))
    assert row.wilcoxon_p == 0.125 and not row.significant
    assert "the rank test's p is at least 0.125" in row.note


def test_equal_differences_have_no_t_test_and_share_ranks():
    (row,) = compare_cases(cases([1.1, 2.2, 3.3]), cases([0.1, 1.2, 2.3]))
    assert row.t_p is None and "there is no t-test" in row.note
    (row,) = compare_cases(cases([2.0, 4.0, 9.0]), cases([1.0, 5.0, 2.0]))
    assert "share ranks" in row.note and row.t_p is not None


def test_infinite_psnr_of_equal_images_is_ranked_and_has_no_mean():
    a, b = cases([math.inf, 30, math.inf], "psnr"), cases([29, 28, math.inf], "psnr")
    (row,) = compare_cases(a, b)
    assert row.difference is None and row.t_p is None and row.wilcoxon_p == 0.5
    assert "infinite" in row.note and "1 patient without a difference" in row.note


def test_a_metric_that_one_model_lacks_on_a_patient_is_compared_on_the_others():
    a, b = cases([1, 2, 3]), cases([2, 3, 5])
    b[0] = CaseMetrics(b[0].case, b[0].subject, HU, {"dice_bone": 0.0})
    (row,) = compare_cases(a, b)
    assert row.subjects == 2 and "1 patient has it in one model only" in row.note


def test_unlike_cases_are_refused_by_name():
    a, b = cases([1, 2, 3]), cases([1, 2])
    with pytest.raises(InputError, match=r"only new has case 2$"):
        compare_cases(a, b, names=("new", "old"))
    with pytest.raises(InputError, match=r"only old has case 2$"):
        compare_cases(b, a, names=("new", "old"))
    many = cases(range(1, 9))
    with pytest.raises(InputError, match=r"case 1, case 2, case 3 and 4 more"):
        compare_cases(many, many[:1])


def test_the_same_case_of_another_patient_or_twice_is_refused():
    a = cases([1, 2])
    other = [a[0], CaseMetrics(a[1].case, "somebody else", HU, {"mae": 1.0})]
    with pytest.raises(InputError, match="somebody else"):
        compare_cases(a, other)
    with pytest.raises(InputError, match="measured once"):
        compare_cases([*a, a[0]], a)


def test_unlike_protocols_are_a_type_error():
    with pytest.raises(TypeError, match="different protocols"):
        compare_cases(cases([1, 2]), cases([1, 2], how=protocol("synthrad2023")))


def test_functions_of_the_psnr_are_not_tested_again():
    a = [CaseMetrics("c", "s", HU, {"mae": 1.0, "mse": 4.0, "rmse": 2.0, "psnr": 20 * math.log10(4095 / 2)})]
    assert [t.metric for t in compare_cases(a, a)] == ["mae", "psnr"]


def test_a_row_is_plain_json():
    (row,) = correct([compare_cases(cases([1, 2, 4]), cases([2, 2, 9]))])[0]
    assert row.to_dict()["metric"] == "mae" and row.to_dict()["significant"] is False
