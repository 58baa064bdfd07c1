"""Distribution: KID and FID between two sets of images, from the features of a named extractor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import PROTOCOLS
from ctmr.metrics.registry import FID, KID, KID_SD

KID_DEGREE = 3
KID_COEF0 = 1.0


def polynomial_mmd2(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel ``(xᵀy / F + 1)³``; may be slightly negative.

    Parameters
    ----------
    x, y
        ``[N, F]`` and ``[M, F]``, N and M at least 2.

    References
    ----------
    Bińkowski, Sutherland, Arbel, Gretton: Demystifying MMD GANs, 2018, eq. 4. Gretton et al. 2012, lemma 6.
    """
    _check_features(x, y)
    n, m = x.shape[0], y.shape[0]
    k_xx, k_yy, k_xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within_x = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within_x + within_y - 2.0 * k_xy.mean())


def kid(x: NDArray[Any], y: NDArray[Any], *, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """Kernel inception distance: mean and standard deviation of `polynomial_mmd2` over seeded subsets.

    Parameters
    ----------
    x, y
        Features ``[N, F]``, ``[M, F]``.
    subsets
        How many.
    subset_size
        Images of each side, drawn without replacement; at most the smaller set.
    seed
        Of the draws.

    Returns
    -------
    tuple
        Mean and population standard deviation. The latter tells the spread of subsets, not a confidence interval.
    """
    _check_features(x, y)
    size = min(subset_size, x.shape[0], y.shape[0])
    rng = np.random.default_rng(seed)
    draws = [
        polynomial_mmd2(x[rng.choice(x.shape[0], size, replace=False)], y[rng.choice(y.shape[0], size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(draws)), float(np.std(draws))


def fid(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Fréchet distance of Gaussians fitted to features, ``|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½)``.

    Parameters
    ----------
    x, y
        Features ``[N, F]``, ``[M, F]``.

    Notes
    -----
    With centred, scaled rows X and Y, Σ₁ = XᵀX and Σ₂ = YᵀY, and ``tr (Σ₁Σ₂)^½`` is the sum of the singular values
    of XYᵀ: exact also when N is below F and the covariances are singular, where a matrix square root is not. Biased
    upwards for few images, since the covariances of N images have a rank of N - 1 at most; comparable to papers only
    with the original Inception weights, which the default extractor has not.

    References
    ----------
    Heusel et al.: GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017.
    """
    _check_features(x, y)
    rows = []
    for a in (x.astype(np.float64), y.astype(np.float64)):
        rows.append((a - a.mean(axis=0)) / np.sqrt(a.shape[0] - 1))
    cross = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    mean_shift = np.square(x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)).sum()
    # Rounding alone can bring the distance of equal sets below zero.
    return max(0.0, float(mean_shift + np.square(rows[0]).sum() + np.square(rows[1]).sum() - 2.0 * cross))


def measure_distribution(
    real: NDArray[Any],
    synthetic: NDArray[Any],
    *,
    subsets: int,
    subset_size: int,
    seed: int,
    variant: str,
    case: str,
) -> CaseMetrics:
    """Measure two sets of features under ``unpaired_distribution``: kid, kid_sd and fid of the whole sets.

    Parameters
    ----------
    real, synthetic
        Features ``[N, F]``, ``[M, F]``.
    subsets, subset_size, seed
        Of KID.
    variant
        Extractor and weights, `Extractor.variant`; the numbers of images are added.
    case
        Name of the comparison; it is one case, without patient.
    """
    mean, sd = kid(real, synthetic, subsets=subsets, subset_size=subset_size, seed=seed)
    size = min(subset_size, real.shape[0], synthetic.shape[0])
    words = f"{variant}, {real.shape[0]} real and {synthetic.shape[0]} synthetic, {subsets} subsets of {size}"
    values = {KID.name: mean, KID_SD.name: sd, FID.name: fid(real, synthetic)}
    return CaseMetrics(case, "", replace(PROTOCOLS["unpaired_distribution"], variant=words), values)


def _kernel(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    inner = a.astype(np.float64) @ b.astype(np.float64).T
    result: NDArray[np.float64] = (inner / a.shape[1] + KID_COEF0) ** KID_DEGREE
    return result


def _check_features(x: NDArray[Any], y: NDArray[Any]) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features are [N, F] with one F, found {x.shape} and {y.shape}")
    if min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(f"a distribution needs at least 2 images a side, found {x.shape[0]} and {y.shape[0]}")
