"""Measurements without truth: cycle, structure and distribution, a slice an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.evaluation.candidates import AS_TRAINED, OWN, Model
from ctmr.evaluation.comparison import Cases
from ctmr.evaluation.testset import TestSet, spread
from ctmr.metrics.extractors import unit_interval
from ctmr.recipe.recipe import Recipe

if TYPE_CHECKING:
    from ctmr.metrics.baselines import Baseline

MIN_IMAGES = 2
"""A distribution needs as many on either side; with fewer it is not measured, and a limit on it fails."""
MIN_HEAD_PX = 64
"""Structure is not measured on a slice that hardly shows a head."""

Slice = Callable[[NDArray[Any], int, NDArray[np.bool_], float], NDArray[np.float32]]
"""(volume [C, D, H, W], index, head of that slice, its level) → translated slice [H, W]."""
Input = tuple[NDArray[Any], NDArray[np.bool_], float]
"""Volume ``[C, D, H, W]``, head of its middle slice, level of its first."""


def measure_unpaired(
    test_set: TestSet,
    model: Model,
    recipe: Recipe,
    indices: Sequence[int],
    baselines: Mapping[str, Baseline] | None = None,
) -> dict[str, Cases]:
    """Measure the middle slice of every image under ``cycle_slice``, ``structure`` and ``unpaired_distribution``.

    Parameters
    ----------
    test_set, model
        Of one direction.
    indices
        Source volumes.
    baselines
        Translators that stand beside the model under the two protocols that need no way back.

    Returns
    -------
    dict
        Candidate → protocol → cases; the model is `OWN` by the served path, and `AS_TRAINED` where that differs.
    """
    from ctmr.metrics.measurement import measure_cycle, measure_structure

    def own(volume: NDArray[Any], k: int, head: NDArray[np.bool_], level: float) -> NDArray[np.float32]:
        made: NDArray[np.float32] = model.translate(volume, [k])[0]
        return made

    translators: dict[str, Slice] = {OWN: own} | ({AS_TRAINED: own} if test_set.differs_as_trained else {})
    translators |= {name: _one_slice(t) for name, t in (baselines or {}).items()}
    out: dict[str, Cases] = {name: {} for name in translators}
    made: dict[str, list[NDArray[np.float32]]] = {name: [] for name in translators}
    for index in indices:
        entry, served = test_set.source.volumes[index], _served(test_set, index)
        inputs = {AS_TRAINED: _as_trained(test_set, index) if test_set.differs_as_trained else served}
        for name, translate in translators.items():
            volume, head, level = inputs.get(name, served)
            middle = volume.shape[1] // 2
            slice_ = translate(volume, middle, head, level + middle)
            made[name].append(slice_)
            if int(head.sum()) > MIN_HEAD_PX:
                out[name].setdefault("structure", []).append(
                    measure_structure(volume[0, middle], slice_, head, case=entry.image, subject=entry.subject)
                )
            if translate is own:
                trained, again = model.cycle(volume, [middle])
                out[name].setdefault("cycle_slice", []).append(
                    measure_cycle(trained[0], again[0], case=entry.image, subject=entry.subject)
                )
    for name, cases in _distribution(test_set, model, recipe, made).items():
        out[name]["unpaired_distribution"] = cases
    return out


def _as_trained(test_set: TestSet, index: int) -> Input:
    volume = test_set.source.volume(index)
    return volume, test_set.head_slice(index, volume.shape[1] // 2), test_set.source.volumes[index].level


def _served(test_set: TestSet, index: int) -> Input:
    """The shard holds what a client sends, unless training images went through more steps, or lie as a partner does."""
    if not test_set.differs_as_trained and index not in test_set.partners:
        return _as_trained(test_set, index)
    case = test_set.case(index)
    return case.array, case.head[case.array.shape[1] // 2], case.level


def _distribution(
    test_set: TestSet, model: Model, recipe: Recipe, made: Mapping[str, Sequence[NDArray[np.float32]]]
) -> Cases:
    from ctmr.metrics.distribution import measure_distribution
    from ctmr.metrics.extractors import features, load_extractor

    section = recipe.evaluate
    chosen = spread(range(len(test_set.target.volumes)), section.max_unpaired_images)
    if min(len(chosen), *(len(slices) for slices in made.values())) < MIN_IMAGES:
        return {}
    real = [test_set.target.volume(i)[0, test_set.target.volumes[i].count // 2] for i in chosen]
    side = model.description.sides[test_set.direction.target].target_range or (0.0, 1.0)
    extractor = load_extractor(section.feature_weights)
    seen = features(unit_interval(np.stack(real), *side), extractor)
    return {
        name: [
            measure_distribution(
                seen,
                features(unit_interval(np.stack(slices), *side), extractor),
                subsets=section.kid_subsets,
                subset_size=section.kid_subset_size,
                seed=section.seed,
                variant=extractor.variant,
                case=f"test {test_set.direction}",
            )
        ]
        for name, slices in made.items()
    }


def _one_slice(translator: Baseline) -> Slice:
    """Translate a slice as if it were the whole image: quantiles are the slice's own."""

    def translate(volume: NDArray[Any], index: int, head: NDArray[np.bool_], level: float) -> NDArray[np.float32]:
        made: NDArray[np.float32] = translator(volume[:, index : index + 1], head[None], first_level=level)[0]
        return made

    return translate
