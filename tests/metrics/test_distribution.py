"""KID and FID against explicit loops and scipy's matrix square root."""

import numpy as np
import pytest
from scipy import linalg

from ctmr.metrics.distribution import fid, kid, measure_distribution, polynomial_mmd2


def sets(n=40, m=50, width=6, shift=0.0):
    rng = np.random.default_rng(3)
    return rng.normal(size=(n, width)), rng.normal(shift, 1.0, (m, width))


def test_the_discrepancy_equals_an_explicit_double_loop():
    x, y = sets(7, 9, 4, 0.5)

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 4 + 1) ** 3

    xx = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (7 * 6)
    yy = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (9 * 8)
    xy = sum(k(a, b) for a in x for b in y) / 63
    assert polynomial_mmd2(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_kid_is_about_zero_for_one_distribution_and_grows_with_a_shift():
    rng = np.random.default_rng(0)
    draws = [kid(*rng.normal(size=(2, 60, 8)), subsets=5, subset_size=40, seed=1)[0] for _ in range(20)]
    assert abs(np.mean(draws)) < 0.02
    near, far = (kid(*sets(60, 60, 8, s), subsets=10, subset_size=40, seed=1)[0] for s in (0.5, 1.5))
    assert 0.05 < near < far


def test_kid_repeats_with_its_seed_and_clamps_its_subsets():
    x, y = sets(12, 30)
    assert kid(x, y, subsets=6, subset_size=50, seed=5) == kid(x, y, subsets=6, subset_size=50, seed=5)
    assert kid(x, y, subsets=6, subset_size=8, seed=5) != kid(x, y, subsets=6, subset_size=8, seed=6)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_fid_equals_the_formula_with_a_matrix_square_root(shift):
    x, y = sets(shift=shift)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert fid(x, y) == pytest.approx(expected, abs=1e-8)


def test_fid_of_equal_sets_is_zero_with_fewer_images_than_features():
    x, _ = sets(10, 10, 64)
    assert fid(x, x) == pytest.approx(0.0, abs=1e-9)


def test_the_variant_names_extractor_and_counts():
    x, y = sets()
    case = measure_distribution(x, y, subsets=3, subset_size=20, seed=0, variant="net, weights abc", case="test")
    assert case.protocol.variant == "net, weights abc, 40 real and 50 synthetic, 3 subsets of 20"
    assert set(case.values) == {"kid", "kid_sd", "fid"}


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least 2 images"):
        fid(np.zeros((1, 3)), np.zeros((5, 3)))
