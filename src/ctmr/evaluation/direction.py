"""Side: everything that is measured of one direction, by the model and by what stands beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ctmr.errors import InputError
from ctmr.evaluation.candidates import AS_TRAINED, OWN, Model, baseline_candidates, fit_all_baselines
from ctmr.evaluation.comparison import Cases, MeasuredDirection, compare
from ctmr.evaluation.testset import TestSet, spread
from ctmr.evaluation.unpaired import measure_unpaired
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.protocol import Mask, Metric, protocol
from ctmr.metrics.stats import Summary, summarise
from ctmr.metrics.tissue import mr_order_alarm, order_alarm, order_warnings
from ctmr.recipe.recipe import Recipe
from ctmr.system.progress import Progress

CHAMPION = "champion"
FINE_MM = 3.0
"""Up to this edge of a voxel sulci are told from brain: on phantoms the true T1 is in order at 2 mm, not at 4 mm."""


@dataclass(frozen=True)
class DirectionResult:
    """One direction, measured.

    Attributes
    ----------
    held, model
        What was measured.
    measured
        Cases, tissue tables and what figures show.
    summaries
        Candidate → protocol → summary over patients.
    alarm
        Tissues that changed places, in a sentence.
    warnings
        Sentences that fail nothing.
    baselines
        Names of the candidates that never learned.
    """

    held: TestSet
    model: Model
    measured: MeasuredDirection
    summaries: Mapping[str, Mapping[str, Summary]]
    alarm: str | None
    warnings: tuple[str, ...]
    baselines: tuple[str, ...]

    @property
    def own(self) -> Mapping[str, Summary]:
        """The model by the served path."""
        return self.summaries[OWN]

    @property
    def cases(self) -> Cases:
        """The model's cases by protocol."""
        return self.measured.cases[OWN]

    @property
    def as_trained(self) -> Mapping[str, Summary] | None:
        """The model with training-only steps in front, where the grid has such steps."""
        return self.summaries.get(AS_TRAINED)


def measure_side(
    held: TestSet,
    model: Model,
    recipe: Recipe,
    *,
    tell: Progress,
    most: int | None = None,
    champion: Model | None = None,
) -> DirectionResult:
    """Measure one direction under every protocol that its data allow.

    Parameters
    ----------
    held, model
        Of one direction.
    recipe
        Its section ``evaluate``.
    tell
        Progress.
    most
        At most this many images; ``None``: all pairs, or as many unpaired ones as the recipe says.
    champion
        Measured on the same images, as candidate `CHAMPION`.
    """
    indices = held.indices(recipe.evaluate.max_unpaired_images)
    indices = indices if most is None else spread(indices, most)
    _require_masks(held, recipe, indices)
    if not indices:
        raise InputError(f"the test split has no {held.direction.source} image; direction {held.direction} needs one")
    candidates = [model.candidate()]
    if held.differs_as_trained:
        candidates.append(model.candidate_as_trained())
    if champion is not None:
        candidates.append(champion.candidate(CHAMPION))
    fitted = fit_all_baselines(held)
    if held.has_pairs:
        candidates += baseline_candidates(fitted)
    measured = compare(held, recipe, candidates, indices, tell)
    if not held.has_pairs:
        _merge(measured, measure_unpaired(held, model, recipe, indices, fitted))
        if champion is not None:
            others = measure_unpaired(held, champion, recipe, indices)
            _merge(measured, {CHAMPION: others[OWN]})
    section = recipe.evaluate
    summaries = {
        who: {n: summarise(c, resamples=section.bootstrap, seed=section.seed) for n, c in cases.items()}
        for who, cases in measured.cases.items()
    }
    alarm, warnings = _tissues(held, measured)
    if not held.has_pairs:
        warnings += _outdone(summaries, tuple(fitted))
    return DirectionResult(held, model, measured, summaries, alarm, warnings, tuple(fitted))


def _require_masks(held: TestSet, recipe: Recipe, indices: Sequence[int]) -> None:
    """Refuse a test that lacks a mask before anything is translated."""
    names = recipe.evaluate.paired_protocols if held.target_unit is Unit.HU else ()
    if held.has_pairs and any(protocol(n).mask is Mask.GIVEN for n in names):
        for index in indices:
            held.require_mask(index)


def open_side(held: TestSet, model: Model, direction: Direction) -> tuple[TestSet, Model] | str:
    """Return test and model seen from the other direction, or a sentence why that cannot be."""
    side = model.description.sides[direction.target]
    if side.target_range is None:
        return f"{direction} was not measured: it would have to write {side.channels} channels of {direction.target}"
    return held.turned(direction), Model.load(model.folder, direction)


def _merge(measured: MeasuredDirection, cases: Mapping[str, Cases]) -> None:
    for who, by_protocol in cases.items():
        measured.cases.setdefault(who, {}).update(by_protocol)


def _tissues(held: TestSet, measured: MeasuredDirection) -> tuple[str | None, tuple[str, ...]]:
    table = measured.tissues
    if not table:
        return None, ()
    if held.target_unit is Unit.HU:
        return order_alarm(table), order_warnings(table)
    sequences = held.target.volumes[0].sequences
    sequence = sequences[0] if sequences else None
    alarm = mr_order_alarm(table, sequence)
    if alarm is None:
        return None, ()
    if all(math.isfinite(row.truth) for row in table.values()):
        true_table = {tissue: replace(row, prediction=row.truth) for tissue, row in table.items()}
        if mr_order_alarm(true_table, sequence) is None:
            return alarm, ()
        return None, (f"{alarm}; the true images show the same on this grid, so it counts for nothing",)
    if measured.coarsest_mm <= FINE_MM:
        return alarm, ()
    return None, (f"{alarm}; voxels of {measured.coarsest_mm:g} mm mix tissues, so it fails nothing",)


def _outdone(summaries: Mapping[str, Mapping[str, Summary]], baselines: tuple[str, ...]) -> tuple[str, ...]:
    """Say which translators that never learned come nearer to real images of the target than the model does."""
    name, metric = "unpaired_distribution", Metric.KID
    own = summaries[OWN][name].mean(metric) if name in summaries[OWN] else None
    found = {t: summaries[t][name].mean(metric) for t in baselines if name in summaries.get(t, {})}
    nearer = sorted((kid, t) for t, kid in found.items() if own is not None and kid is not None and kid <= own)
    if not nearer:
        return ()
    named = ", ".join(f"{t} (KID {kid:.3g})" for kid, t in nearer)
    return (f"translators that never learned are nearer to real images than the model (KID {own:.3g}): {named}",)
