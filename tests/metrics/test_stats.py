"""Summaries: patients before cases, seeded intervals, and no mixing of protocols."""

import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.stats import FEW_PATIENTS, bootstrap_interval, per_patient, summarise

HU = protocol("wolterink")


def case(name, subject, mae):
    return CaseMetrics(name, subject, HU, {"mae": mae})


def test_a_patient_with_many_cases_counts_once():
    summary = summarise([case("a1", "a", 10.0), case("a2", "a", 20.0), case("a3", "a", 30.0), case("b1", "b", 40.0)])
    mae = summary.metrics["mae"]
    assert (mae.mean, mae.subjects, mae.cases) == (30.0, 2, 4)
    assert mae.sd == pytest.approx(np.std([20.0, 40.0], ddof=1))


def test_the_interval_repeats_with_its_seed_and_agrees_with_scipy():
    values = np.random.default_rng(0).normal(100, 10, 25)
    ours = bootstrap_interval(values, resamples=4000, seed=3)
    assert ours == bootstrap_interval(values, resamples=4000, seed=3)
    drawn = scipy_stats.bootstrap((values,), np.mean, n_resamples=4000, batch=256, method="percentile", rng=3)
    means = np.sort(drawn.bootstrap_distribution)
    assert ours == (means[99], means[-100])
    assert ours == pytest.approx(tuple(drawn.confidence_interval), abs=0.4)


def test_one_patient_has_no_interval_and_no_spread():
    row = summarise([case("a", "a", 5.0)]).metrics["mae"].to_dict()
    assert row == {"mean": 5.0, "sd": None, "low": None, "high": None, "subjects": 1, "cases": 1}


def test_mixed_protocols_are_a_type_error():
    other = CaseMetrics("x", "a", protocol("synthrad2023"), {"mae": 1.0})
    with pytest.raises(TypeError, match="different protocols"):
        summarise([case("a", "a", 1.0), other])
    with pytest.raises(TypeError, match="nothing to compare"):
        summarise([])


def test_an_infinite_psnr_stays_infinite_in_python_and_is_null_in_json():
    equal = [CaseMetrics(s, s, HU, {"psnr": math.inf}) for s in "ab"]
    summary = summarise(equal)
    assert summary.mean("psnr") == math.inf
    assert "null" in json.dumps(summary.to_dict(), allow_nan=False)


def test_cases_without_subject_are_patients_of_their_own():
    assert summarise([case("p1", "", 1.0), case("p2", "", 3.0)]).subjects == 2


def coverage(patients, samples=400):
    rng = np.random.default_rng(patients)
    held = 0
    for k in range(samples):
        low, high = bootstrap_interval(rng.normal(0, 1, patients), resamples=400, seed=k)
        held += low <= 0 <= high
    return held / samples


def test_the_interval_of_few_patients_is_too_narrow_as_documented():
    assert coverage(4) < 0.85
    assert coverage(FEW_PATIENTS) > 0.87 and coverage(30) > 0.91


def test_equal_patients_have_an_interval_without_width():
    row = summarise([case(s, s, 7.0) for s in "abc"]).metrics["mae"]
    assert (row.mean, row.sd, row.low, row.high) == (7.0, 0.0, 7.0, 7.0)


def test_the_interval_draws_patients_and_not_cases():
    cases = [case(f"{s}{k}", s, value) for s, value in (("a", 10.0), ("b", 20.0)) for k in range(50)]
    row = summarise(cases).metrics["mae"]
    assert (row.low, row.high) == (10.0, 20.0)


def test_patients_are_sorted_and_their_cases_averaged():
    cases = [case("b1", "b", 4.0), case("a1", "a", 1.0), case("b2", "b", 6.0)]
    assert list(per_patient(cases, "mae").items()) == [("subject a", 1.0), ("subject b", 5.0)]
    assert per_patient(cases, "ssim") == {}
