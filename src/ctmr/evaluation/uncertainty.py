"""Uncertainty by voxel, from mirrored inputs and from the cycle, and how well it tells where the true error is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ctmr.evaluation.candidates import Model
from ctmr.evaluation.robustness import STRONGEST, disturb
from ctmr.evaluation.testset import Case, TestSet, spread
from ctmr.imaging.calibration import (
    SLICES,
    Calibration,
    calibrate,
    head_levels,
    mirrored_difference,
    series_figure,
)
from ctmr.imaging.hounsfield import CLIP_HU
from ctmr.imaging.volume import Unit
from ctmr.metrics.stats import bootstrap_interval, finite_or_none
from ctmr.recipe.recipe import Recipe

FLIP, CYCLE, BOTH = "mirrored input", "cycle error", "both"
COVERAGES = tuple(float(c) for c in np.round(np.linspace(1.0, 0.1, 10), 2))
MOST_VOXELS = 50_000
"""Voxels an image that ranks are taken of."""


@dataclass(frozen=True)
class Measure:
    """One kind of uncertainty against the true error.

    Attributes
    ----------
    name
        Which.
    spearman, low, high
        Mean over images of the rank correlation with the absolute error, and its bootstrap 95 % interval.
    curve
        Mean absolute error of the voxels that remain at each of `COVERAGES`, when the least certain ones are left out.
    area
        Area between this curve and that of the true error itself, over the error of all voxels: 0 is perfect, and what
        random numbers give is `Uncertainty.random_area`.
    """

    name: str
    spearman: float
    low: float
    high: float
    curve: tuple[float, ...]
    area: float


@dataclass(frozen=True)
class UncertaintyMap:
    """One slice for a figure; every image is ``[H, W]``, NaN outside the head in the last two."""

    case: str
    source: NDArray[Any]
    made: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    error: NDArray[np.float32] | None


@dataclass(frozen=True)
class UncertaintyResult:
    """Uncertainty on the test set.

    Attributes
    ----------
    unit
        Of translations and errors.
    cases
        Images.
    measures
        Each kind against the true error; empty without truth.
    perfect
        The curve of the true error itself.
    random_area
        `Measure.area` of an uncertainty that says nothing.
    shown
        A map.
    """

    unit: Unit
    cases: int
    measures: tuple[Measure, ...]
    perfect: tuple[float, ...]
    random_area: float
    shown: UncertaintyMap

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "unit": self.unit.value,
            "cases": self.cases,
            "coverages": list(COVERAGES),
            "perfect": [_plain(v) for v in self.perfect],
            "random_area": _plain(self.random_area),
            "measures": [
                {
                    "name": m.name,
                    "spearman": _plain(m.spearman),
                    "low": _plain(m.low),
                    "high": _plain(m.high),
                    "area": _plain(m.area),
                    "curve": [_plain(v) for v in m.curve],
                }
                for m in self.measures
            ],
        }


@dataclass(frozen=True)
class CalibrationResult:
    """Figures and errors of held-out images, and the map between them.

    Attributes
    ----------
    unit
        Of both.
    cases
        Image, disturbance (empty: as it is), figure, mean absolute error inside the head.
    calibration
        The map; ``None``: `reason` says why there is none.
    """

    unit: Unit
    cases: tuple[tuple[str, str, float, float], ...]
    calibration: Calibration | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "unit": self.unit.value,
            "cases": [
                {"case": c, "disturbance": d, "figure": _plain(f), "error": _plain(e)} for c, d, f, e in self.cases
            ],
            "calibration": None if self.calibration is None else self.calibration.model_dump(mode="json"),
            "reason": self.reason,
        }

    @property
    def words(self) -> str:
        """A sentence for the report."""
        if self.calibration is None:
            return f"The uncertainty of a series is not calibrated: {self.reason}."
        known, intact = self.calibration, self.calibration.intact_rank_correlation
        alone = "" if intact is None else f", {intact:.2f} over the {known.images} as they are"
        return (
            f"The uncertainty of a series goes with its error: rank correlation {known.rank_correlation:.2f} over "
            f"{known.cases} held-out images and disturbed copies{alone}; what it lets expect of an image that was left "
            f"out of the fit is off by {known.left_out_error:.0f} {self.unit.value} on average."
        )


def uncertainty(test_set: TestSet, model: Model, recipe: Recipe) -> UncertaintyResult | None:
    """Say where the model is uncertain, and whether that is where it errs.

    *Mirrored input*: half the difference between a translation and the mirrored translation of the mirrored input.
    *Cycle error*: mean absolute difference, as trained, between the input and its reconstruction through both
    generators. *Both*: the sum, each divided by its mean inside the head.

    Returns
    -------
    Uncertainty or None
        ``None`` when the recipe asks for no case.
    """
    section = recipe.evaluate.uncertainty
    indices = spread(test_set.indices(len(test_set.source.volumes)), section.cases)
    ranks: dict[str, list[float]] = {FLIP: [], CYCLE: [], BOTH: []}
    curves: dict[str, list[NDArray[np.float64]]] = {FLIP: [], CYCLE: [], BOTH: []}
    perfect: list[NDArray[np.float64]] = []
    shown = None
    for index in indices:
        case = test_set.case(index)
        levels = head_levels(case.head, section.slices)
        head = case.head[levels]
        made = model.translate(case.array, levels)
        found = _maps(model, case.array, levels, made, head)
        error = None
        if case.truth is not None:
            truth = case.on_grid(case.truth)[levels].astype(np.float32)
            limits = CLIP_HU if test_set.target_unit is Unit.HU else (-np.inf, np.inf)
            error = np.abs(np.clip(made, *limits) - np.clip(truth, *limits))
            some = _sample(head, np.random.default_rng((recipe.evaluate.seed, index)))
            errors = error[head][some].astype(np.float64)
            perfect.append(sparsification(errors, errors))
            for name, values in found.items():
                ranks[name].append(_rank_correlation(values[head][some], errors))
                curves[name].append(sparsification(values[head][some], errors))
        if shown is None:
            k = len(levels) // 2
            shown = UncertaintyMap(
                case.name,
                np.array(case.array[0, levels[k]]),
                made[k],
                np.where(head[k], found[BOTH][k], np.nan).astype(np.float32),
                None if error is None else np.where(head[k], error[k], np.nan).astype(np.float32),
            )
    if shown is None:
        return None
    best = np.mean(perfect, axis=0) if perfect else np.array([])
    measures = tuple(_measure(n, ranks[n], curves[n], best) for n in ranks if ranks[n])
    nothing = _area(np.full_like(best, best[0]), best) if len(best) else float("nan")
    return UncertaintyResult(test_set.target_unit, len(indices), measures, tuple(map(float, best)), nothing, shown)


def calibrate_series(test_set: TestSet, model: Model, recipe: Recipe) -> CalibrationResult:
    """Fit the map from a series' figure to its error, as the served model computes the figure.

    Both are taken inside the head on the model's grid, in `SLICES` slices of held-out images with truth, at most
    ``evaluate.uncertainty.calibration_cases`` of them. Each is taken as it is and disturbed in every way of
    `ctmr.evaluation.robustness` that leaves the truth in its place: images of one kind err alike, and what the figure
    must tell is an image of a kind that the model does not know.
    """
    unit, most = test_set.target_unit, recipe.evaluate.uncertainty.calibration_cases
    if not test_set.has_pairs:
        return CalibrationResult(unit, (), None, "no held-out image has a truth that compares")
    indices = spread(test_set.indices(0), most)
    cases = tuple(row for index in indices for row in _calibrated_on(test_set.case(index), index, model, recipe))
    names, kinds, figures, errors = zip(*cases, strict=True) if cases else ((), (), (), ())
    found = calibrate(figures, errors, names, [not kind for kind in kinds], unit)
    if isinstance(found, str):
        return CalibrationResult(unit, cases, None, found)
    return CalibrationResult(unit, cases, found)


def _calibrated_on(case: Case, index: int, model: Model, recipe: Recipe) -> Iterator[tuple[str, str, float, float]]:
    """Yield name, disturbance, figure and error of one held-out image and of its disturbed copies."""
    assert case.truth is not None, "only pairs are calibrated on"
    truth = case.on_grid(case.truth).astype(np.float32)
    limits = CLIP_HU if case.target_unit is Unit.HU else (-np.inf, np.inf)
    hu = case.volumes[0].unit is Unit.HU
    for kind in ("", *(name for name, said in STRONGEST.items() if said[hu] and name != "rotation")):
        rng = np.random.default_rng((recipe.evaluate.seed, index))
        array = disturb(case, kind, 1.0, rng) if kind else case.array
        head = case.head_of(array)
        levels = head_levels(head, SLICES)
        made = model.translate(array, levels)
        mirrored = model.translate(np.ascontiguousarray(array[..., ::-1]), levels)[..., ::-1]
        error = np.abs(np.clip(made, *limits) - np.clip(truth[levels], *limits))
        figure = series_figure(mirrored_difference(made, mirrored), head[levels])
        yield case.name, kind, figure, series_figure(error, case.head[levels])


def sparsification(values: NDArray[Any], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean error of the voxels that remain at each coverage, when the largest values are left out first.

    E. Ilg et al., Uncertainty estimates and multi-hypotheses networks for optical flow, ECCV 2018.
    """
    order = np.argsort(values, kind="stable")
    running = np.cumsum(errors[order]) / np.arange(1, len(errors) + 1)
    return np.array([running[max(1, round(c * len(errors))) - 1] for c in COVERAGES])


def _maps(
    model: Model, array: NDArray[Any], levels: list[int], made: NDArray[np.float32], head: NDArray[np.bool_]
) -> dict[str, NDArray[np.float32]]:
    mirrored = model.translate(np.ascontiguousarray(array[..., ::-1]), levels)[..., ::-1]
    trained, again = model.cycle(array, levels)
    flip = mirrored_difference(made, mirrored)
    cycle = np.abs(trained - again).mean(axis=1).astype(np.float32)

    def scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
        mean = float(values[head].mean()) if head.any() else 0.0
        return values / np.float32(mean) if mean > 0 else values

    return {FLIP: flip, CYCLE: cycle, BOTH: scaled(flip) + scaled(cycle)}


def _measure(name: str, ranks: list[float], curves: list[NDArray[np.float64]], perfect: NDArray[np.float64]) -> Measure:
    curve = np.mean(curves, axis=0)
    known = np.array(ranks)
    low, high = bootstrap_interval(known)
    return Measure(name, float(known.mean()), low, high, tuple(map(float, curve)), _area(curve, perfect))


def _rank_correlation(values: NDArray[Any], errors: NDArray[np.float64]) -> float:
    """Spearman's; 0 where one of the two says the same everywhere."""
    if np.ptp(values) == 0 or np.ptp(errors) == 0:
        return 0.0
    return float(stats.spearmanr(values, errors).statistic)


def _area(curve: NDArray[np.float64], perfect: NDArray[np.float64]) -> float:
    if not perfect[0] > 0:
        return float("nan")
    return float(np.trapezoid((curve - perfect)[::-1], np.array(COVERAGES)[::-1]) / perfect[0])


def _sample(head: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    count = int(head.sum())
    return np.sort(rng.permutation(count)[:MOST_VOXELS])


def _plain(value: float) -> float | None:
    return finite_or_none(float(f"{value:.6g}"))
