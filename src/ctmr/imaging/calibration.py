"""Uncertainty of a translation: by voxel from a mirrored input, one figure a series, and its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import optimize, stats

from ctmr.imaging.volume import Unit

SLICES = 12
"""Slices of a series that its figure is taken of."""
FEWEST_CASES = 5
"""Pairs of figure and error below which nothing is calibrated."""
FEWEST_IMAGES = 4
"""Held-out images below which nothing is calibrated; disturbed copies of one make no other."""


class Calibration(BaseModel):
    """Monotone map from the figure of a series to the error that is to be expected of it.

    Attributes
    ----------
    unit
        Of figures and errors.
    cases
        Pairs of figure and error that it was fitted to: held-out images, and disturbed copies of them.
    images
        Held-out images among them.
    rank_correlation
        Spearman's, of figure and true error over all cases.
    intact_rank_correlation
        The same over the images as they are; ``None`` where it cannot be told.
    left_out_error
        Mean absolute difference of the true error from the one that is expected by the fit to all other images.
    figures, errors
        Corners of the map, both rising; between them lie straight lines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    unit: Unit
    cases: int = Field(ge=FEWEST_CASES)
    images: int = Field(ge=FEWEST_IMAGES)
    rank_correlation: float = Field(gt=0, le=1)
    intact_rank_correlation: float | None = Field(default=None, ge=-1, le=1)
    left_out_error: float = Field(ge=0)
    figures: tuple[float, ...] = Field(min_length=1)
    errors: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rises(self) -> Calibration:
        corners = pairwise(zip(self.figures, self.errors, strict=True))
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in corners):
            raise ValueError("figures and errors of a calibration rise")
        return self

    def expected_error(self, figure: float) -> float:
        """Return the mean absolute error inside the head that a figure goes with.

        Beyond the largest figure that was seen the error grows with the figure in proportion, so that no limit is out
        of reach.
        """
        found = float(np.interp(figure, self.figures, self.errors))
        last = self.figures[-1]
        return found * figure / last if figure > last > 0 else found


def head_levels(head: NDArray[np.bool_], most: int) -> list[int]:
    """Return at most `most` slices, evenly spaced over those that show half as much head as the fullest one."""
    area = head.sum(axis=(1, 2))
    full = np.flatnonzero((area > 0) & (area >= area.max() / 2))
    if not len(full):
        return [len(head) // 2]
    at = np.linspace(0, len(full) - 1, min(len(full), most)).round().astype(int)
    return sorted({int(full[k]) for k in at})


def mirrored_difference(made: NDArray[Any], mirrored: NDArray[Any]) -> NDArray[np.float32]:
    """Return half the absolute difference between a translation and the mirrored translation of the mirrored input."""
    half: NDArray[np.float32] = (np.abs(made - mirrored) / 2).astype(np.float32)
    return half


def series_figure(doubt: NDArray[np.float32], head: NDArray[np.bool_]) -> float:
    """Return the mean of `mirrored_difference` inside the head; 0 where there is none.

    Parameters
    ----------
    doubt, head
        ``[N, H, W]``, at the slices that `head_levels` names.
    """
    return float(doubt[head].mean(dtype=np.float64)) if head.any() else 0.0


def calibrate(
    figures: Sequence[float], errors: Sequence[float], images: Sequence[str], intact: Sequence[bool], unit: Unit
) -> Calibration | str:
    """Fit the map from figures to true errors, or say in a sentence why there is none.

    Isotonic regression: R. E. Barlow et al., Statistical Inference under Order Restrictions, 1972.

    Parameters
    ----------
    figures, errors
        `series_figure` and mean absolute error inside the head of each case.
    images, intact
        Held-out image that a case shows, and whether as it is. An image and its copies are left out together.
    """
    count = len(set(images))
    if count < FEWEST_IMAGES or len(figures) < FEWEST_CASES:
        return (
            f"{count} held-out images with truth are there, {len(figures)} with their disturbed copies, and a "
            f"calibration needs {FEWEST_IMAGES} and {FEWEST_CASES}"
        )
    x, y = np.array(figures, dtype=np.float64), np.array(errors, dtype=np.float64)
    r = _rank_correlation(x, y) or 0.0
    if not r > 0:
        return f"the figure does not rise with the true error of {len(x)} cases (rank correlation {r:.2f})"
    corners = _corners(x, y)
    whose, plain = np.array(images), np.array(intact, dtype=bool)
    left_out = [
        abs(float(np.interp(x[k], *_corners(x[whose != whose[k]], y[whose != whose[k]]))) - y[k]) for k in range(len(x))
    ]
    return Calibration(
        unit=unit,
        cases=len(x),
        images=count,
        rank_correlation=_plain(min(r, 1.0)),
        intact_rank_correlation=_rank_correlation(x[plain], y[plain]),
        left_out_error=_plain(float(np.mean(left_out))),
        figures=tuple(map(_plain, corners[0])),
        errors=tuple(map(_plain, corners[1])),
    )


def _rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Spearman's; ``None`` for fewer than three pairs, or where one side says the same everywhere."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return _plain(min(1.0, max(-1.0, float(stats.spearmanr(x, y).statistic))))


def _corners(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Return the rising fit at each figure once."""
    known, inverse, counts = np.unique([_plain(v) for v in x], return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=y) / counts
    fit = optimize.isotonic_regression(means, weights=counts)
    return [float(v) for v in known], [float(v) for v in fit.x]


def _plain(value: float) -> float:
    return float(f"{value:.6g}")
