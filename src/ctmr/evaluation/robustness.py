"""Robustness: how much worse the model gets when its inputs get worse, one disturbance at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.evaluation.candidates import Model
from ctmr.evaluation.testset import Case, TestSet, spread
from ctmr.imaging.calibration import head_levels
from ctmr.imaging.hounsfield import CLIP_HU, OUTSIDE_VALUE
from ctmr.imaging.volume import Unit
from ctmr.recipe.recipe import Recipe

BRIGHT_PERCENTILE = 99.0
NOISE_SHARE, NOISE_HU = 0.10, 60.0
BIAS_LOG = 0.4
BIAS_WAVELENGTH_MM = 120.0
ROTATION_DEGREES = 15.0
GAMMA, SHIFT_HU = 0.5, 50.0
COARSER = 2.0

STRONGEST: dict[str, dict[bool, str]] = {
    "noise": {True: "σ 60 HU", False: "σ 10 % of the bright end"},
    "bias field": {True: "", False: "± 40 %"},
    "rotation": {True: "15°", False: "15°"},
    "intensity": {True: "+50 HU", False: "gamma 1.5"},
    "spacing": {True: "3 times as coarse", False: "3 times as coarse"},
}
"""Disturbance → what strength 1 means for a CT in HU (true) and for other images; a CT has no bias field."""


@dataclass(frozen=True)
class Curve:
    """One disturbance.

    Attributes
    ----------
    name, strongest
        What is done, and how much of it strength 1 is.
    strengths
        Rising from 0.
    means, lows, highs
        Mean over images of the error at each strength, and the smallest and largest image.
    """

    name: str
    strongest: str
    strengths: tuple[float, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


@dataclass(frozen=True)
class RobustnessResult:
    """The sweep of one direction.

    Attributes
    ----------
    metric
        What the curves are of: the error against the truth, or the change of the translation where there is no truth.
    unit
        Of the curves.
    cases
        Images.
    """

    metric: str
    unit: Unit
    cases: int
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "metric": self.metric,
            "unit": self.unit.value,
            "cases": self.cases,
            "curves": [
                {
                    "name": c.name,
                    "strongest": c.strongest,
                    "strengths": list(c.strengths),
                    "means": [float(f"{v:.6g}") for v in c.means],
                    "lows": [float(f"{v:.6g}") for v in c.lows],
                    "highs": [float(f"{v:.6g}") for v in c.highs],
                }
                for c in self.curves
            ],
        }


def robustness_sweep(test_set: TestSet, model: Model, recipe: Recipe) -> RobustnessResult | None:
    """Disturb inputs of the test set and measure the translations.

    The mean absolute error inside the head on the model's grid, in a few slices of each image: against the truth where
    some protocol compares the target's unit, otherwise against the translation of the undisturbed input. Rotation
    turns the truth along with the input.

    Returns
    -------
    Robustness or None
        ``None`` when the recipe asks for no case.
    """
    section, seed = recipe.evaluate.robustness, recipe.evaluate.seed
    indices = spread(test_set.indices(len(test_set.source.volumes)), section.cases)
    if not indices:
        return None
    strengths = (0.0, *sorted(set(section.strengths)))
    hu = test_set.source.unit is Unit.HU
    names = [name for name, said in STRONGEST.items() if said[hu]]
    errors = {name: np.zeros((len(indices), len(strengths))) for name in names}
    for row, index in enumerate(indices):
        case = test_set.case(index)
        levels = head_levels(case.head, section.slices)
        plain = model.translate(case.array, levels)
        truth = plain if case.truth is None else case.on_grid(case.truth)[levels].astype(np.float32)
        head = case.head[levels]
        for name in names:
            errors[name][row, 0] = _error(plain, truth, head, test_set.target_unit)
            for column, strength in enumerate(strengths[1:], start=1):
                rng = np.random.default_rng((seed, index, column))
                made = model.translate(disturb(case, name, strength, rng), levels)
                turn = _turned(strength) if name == "rotation" else _as_it_is
                errors[name][row, column] = _error(
                    made, turn(truth, OUTSIDE_VALUE[test_set.target_unit]), turn(head, 0) > 0.5, test_set.target_unit
                )
    curves = tuple(
        Curve(
            name, STRONGEST[name][hu], strengths, *(tuple(map(float, f(e, axis=0))) for f in (np.mean, np.min, np.max))
        )
        for name, e in errors.items()
    )
    metric = "MAE against the truth" if test_set.has_pairs else "mean absolute change of the translation"
    return RobustnessResult(metric, test_set.target_unit, len(indices), curves)


def disturb(case: Case, name: str, strength: float, rng: np.random.Generator) -> NDArray[Any]:
    """Return a case's array ``[C, D, H, W]`` with one disturbance of a strength in (0, 1], in its storage type."""
    hu = case.volumes[0].unit is Unit.HU
    how: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    if name == "noise":
        share = NOISE_HU if hu else NOISE_SHARE

        def how(image: NDArray[np.float32]) -> NDArray[np.float32]:
            sigma = np.float32(strength * share * (1.0 if hu else _bright(image)))
            noisy: NDArray[np.float32] = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
            if not hu:
                # The magnitude of a complex signal, as an MR scanner stores it.
                noisy = np.hypot(noisy, sigma * rng.standard_normal(image.shape, dtype=np.float32))
            return noisy

    elif name == "bias field":
        field = _smooth_field(case.array.shape[1:], case.spacing_mm, rng)

        def how(image: NDArray[np.float32]) -> NDArray[np.float32]:
            shaded: NDArray[np.float32] = image * np.exp(np.float32(strength * BIAS_LOG) * field)
            return shaded

    elif name == "rotation":
        turn = _turned(strength)

        def how(image: NDArray[np.float32]) -> NDArray[np.float32]:
            return turn(image, OUTSIDE_VALUE[case.volumes[0].unit])

    elif name == "intensity":

        def how(image: NDArray[np.float32]) -> NDArray[np.float32]:
            if hu:
                return image + np.float32(strength * SHIFT_HU)
            bright = max(_bright(image), 1.0)
            return np.float32(bright) * (image / np.float32(bright)) ** np.float32(1 + strength * GAMMA)

    elif name == "spacing":

        def how(image: NDArray[np.float32]) -> NDArray[np.float32]:
            return _coarser(image, 1 + strength * COARSER)

    else:
        raise ValueError(f"no disturbance is called {name!r}; allowed are {', '.join(STRONGEST)}")
    limits = np.iinfo(case.array.dtype)
    made = np.stack([how(channel.astype(np.float32)) for channel in case.array])
    stored: NDArray[Any] = np.clip(np.rint(made), limits.min, limits.max).astype(case.array.dtype)
    return stored


def _error(made: NDArray[Any], truth: NDArray[Any], head: NDArray[np.bool_], unit: Unit) -> float:
    if not head.any():
        return 0.0
    a, b = made[head].astype(np.float64), truth[head].astype(np.float64)
    if unit is Unit.HU:
        a, b = np.clip(a, *CLIP_HU), np.clip(b, *CLIP_HU)
    return float(np.abs(a - b).mean())


def _bright(image: NDArray[np.float32]) -> float:
    return float(np.percentile(image, BRIGHT_PERCENTILE))


def _as_it_is(image: NDArray[Any], outside: float) -> NDArray[Any]:
    return image


def _turned(strength: float) -> Callable[[NDArray[Any], float], NDArray[np.float32]]:
    """Rotation of every slice about its centre, by splines: linear interpolation would blur the truth as well."""
    angle = np.deg2rad(strength * ROTATION_DEGREES)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def turn(image: NDArray[Any], outside: float) -> NDArray[np.float32]:
        centre = (np.asarray(image.shape[1:]) - 1) / 2
        offset = centre - matrix @ centre
        turned = np.empty(image.shape, dtype=np.float32)
        for slice_, out in zip(image.astype(np.float32), turned, strict=True):
            ndimage.affine_transform(slice_, matrix, offset, output=out, order=3, mode="constant", cval=outside)
        return turned

    return turn


def _smooth_field(
    shape: Sequence[int], spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Smooth noise between -1 and 1: a few cosines of random direction and phase."""
    axes = [np.arange(n, dtype=np.float32) * np.float32(mm) for n, mm in zip(shape, spacing_mm, strict=True)]
    d, h, w = np.meshgrid(*axes, indexing="ij", sparse=True)
    field: NDArray[np.float32] = np.zeros(shape, dtype=np.float32)
    for _ in range(4):
        way = rng.standard_normal(3)
        z, y, x = (np.float32(v) for v in way / np.linalg.norm(way) * 2 * np.pi / BIAS_WAVELENGTH_MM)
        field += np.cos(d * z + h * y + w * x + np.float32(rng.uniform(0, 2 * np.pi)))
    return field / np.float32(max(1e-6, float(np.abs(field).max())))


def _coarser(image: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Sample slices more coarsely and back, as an image of thicker pixels looks on the grid."""
    size = image.shape[1:]
    few = [max(2, round(n / factor)) for n in size]
    sigma = [0.0, *(np.sqrt(factor**2 - 1) / np.sqrt(8 * np.log(2)),) * 2]
    blurred = ndimage.gaussian_filter(image, sigma, mode="nearest")
    shrink = [1.0, *(f / n for f, n in zip(few, size, strict=True))]
    small = ndimage.zoom(blurred, shrink, order=1, grid_mode=True, mode="nearest")
    back: NDArray[np.float32] = ndimage.zoom(small, [1 / s for s in shrink], order=1, grid_mode=True, mode="nearest")
    return back
