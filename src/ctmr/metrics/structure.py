"""Structure: how much of an input's anatomy its own translation still shows; never fidelity, the identity scores 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.metrics.pair import ImagePair

NMI_BINS = 64
NMI_PERCENTILES = (0.5, 99.5)
GRADIENT_SIGMA_PX = 1.0
EDGE_FRACTION = 0.1
EDGE_TOLERANCE_PX = 1


def normalised_mutual_information(pair: ImagePair) -> float:
    """Studholme's normalised mutual information minus 1, in [0, 1].

    ``(H(x) + H(y)) / H(x, y) - 1`` from a joint histogram of 64 × 64 bins between each image's 0.5th and 99.5th
    percentile in the mask. 0: independent (or an image is constant); 1: each image determines the other, as the
    identity and any monotone recolouring do. Independent noise scores slightly above 0: a finite histogram is biased.

    References
    ----------
    Studholme, Hill, Hawkes: An overlap invariant entropy measure of 3D medical image alignment, 1999.
    """
    bins_x, bins_y = (_binned(v[pair.inside]) for v in (pair.reference, pair.prediction))
    joint = np.bincount(bins_x * NMI_BINS + bins_y, minlength=NMI_BINS**2).reshape(NMI_BINS, NMI_BINS).astype(float)
    joint /= max(1.0, joint.sum())
    both = _entropy(joint.ravel())
    if both <= 0:
        return 0.0
    ratio = (_entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))) / both
    return float(np.clip(ratio - 1.0, 0.0, 1.0))


def gradient_correlation(pair: ImagePair) -> float:
    """Pearson correlation of gradient magnitudes inside the mask, in [-1, 1]; 0 when an image has no gradient there.

    Magnitudes (Gaussian derivative, σ 1 px), because CT and MR invert contrast at many borders, where Penney's signed
    gradient correlation would punish a right translation.
    """
    a, b = (_gradient(v)[pair.inside] for v in (pair.reference, pair.prediction))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def edge_overlap(pair: ImagePair) -> float:
    """Share of edge pixels that have an edge of the other image within 1 px, in [0, 1].

    Edges are the pixels of the largest tenth of gradient magnitudes in the mask. Lost anatomy leaves edges of the
    input without partner, invented anatomy those of the translation. Chance level is about 0.4 for unrelated textures,
    not 0.
    """
    from scipy import ndimage

    a, b = (_edges(v, pair.inside) for v in (pair.reference, pair.prediction))
    total = int(a.sum()) + int(b.sum())
    if not (a.any() and b.any()):
        return 0.0
    near = ndimage.generate_binary_structure(2, 2)
    met_a = a & ndimage.binary_dilation(b, near, iterations=EDGE_TOLERANCE_PX)
    met_b = b & ndimage.binary_dilation(a, near, iterations=EDGE_TOLERANCE_PX)
    return (int(met_a.sum()) + int(met_b.sum())) / total


def _binned(values: NDArray[Any]) -> NDArray[np.int64]:
    low, high = np.percentile(values, NMI_PERCENTILES)
    if high <= low:
        low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, dtype=np.int64)
    scaled = (values.astype(np.float64) - low) / (high - low) * NMI_BINS
    binned: NDArray[np.int64] = np.clip(scaled, 0, NMI_BINS - 1).astype(np.int64)
    return binned


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _gradient(x: NDArray[Any]) -> NDArray[np.float64]:
    from scipy import ndimage

    result: NDArray[np.float64] = ndimage.gaussian_gradient_magnitude(x.astype(np.float64), GRADIENT_SIGMA_PX)
    return result


def _edges(x: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    magnitude = _gradient(x)
    limit = np.quantile(magnitude[mask], 1.0 - EDGE_FRACTION)
    # Strictly above 0: a flat image has no edges, though all its pixels reach the quantile.
    edges: NDArray[np.bool_] = mask & (magnitude >= limit) & (magnitude > 1e-9 * max(1.0, float(np.abs(x).max())))
    return edges
