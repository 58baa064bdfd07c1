"""Direction: everything that is measured of one, by the model and by what stands beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctmr.data.manifest import Column
from ctmr.errors import InputError
from ctmr.evaluation.candidates import AS_TRAINED, OWN, Model, baseline_candidates, fit_all_baselines
from ctmr.evaluation.comparison import Cases, Golden, MeasuredDirection, compare
from ctmr.evaluation.lesions import LesionTest
from ctmr.evaluation.testset import TestSet, spread
from ctmr.evaluation.unpaired import measure_unpaired
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.protocol import VOLUME_WINDOW_SIDE, Mask, SsimWindow, protocol
from ctmr.metrics.registry import KID
from ctmr.metrics.stats import Summary, summarise
from ctmr.metrics.tissue import mr_order_alarm, order_alarm, order_warnings, table_to_dict
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
    direction, unit
        Which way, and the unit of its truth.
    has_pairs, phantom
        The truth of the same subjects was there; all of them are phantoms.
    measured
        Cases, tissue tables and what figures show.
    summaries
        Candidate → protocol → summary over patients.
    alarm
        Tissues that changed places, in a sentence.
    warnings
        Sentences that fail nothing.
    baseline_names
        The candidates that never learned.
    """

    direction: Direction
    unit: Unit
    has_pairs: bool
    phantom: bool
    measured: MeasuredDirection
    summaries: Mapping[str, Mapping[str, Summary]]
    alarm: str | None = None
    warnings: tuple[str, ...] = ()
    baseline_names: tuple[str, ...] = ()

    @property
    def own(self) -> Mapping[str, Summary]:
        """The model by the served path."""
        return self.summaries[OWN]

    @property
    def cases(self) -> Cases:
        """The model's cases by protocol."""
        return self.measured.cases[OWN]

    @property
    def golden(self) -> Golden:
        """The first case, with the model's answer."""
        golden = self.measured.golden
        assert golden is not None, "a direction is measured on one image at least"
        return golden

    @property
    def as_trained(self) -> Mapping[str, Summary] | None:
        """The model with training-only steps in front, where the grid has such steps."""
        return self.summaries.get(AS_TRAINED)

    @property
    def baselines(self) -> dict[str, Mapping[str, Summary]]:
        """Return the summaries of what never learned, where it was measured."""
        return {name: self.summaries[name] for name in self.baseline_names if self.summaries.get(name)}

    def beside(self, champion: str) -> dict[str, Mapping[str, Summary]]:
        """Return what stands beside the model, by name: it with training-only steps, the champion, the baselines."""
        named = {AS_TRAINED: AS_TRAINED, CHAMPION: champion}
        return {said: self.summaries[c] for c, said in named.items() if self.summaries.get(c)} | self.baselines

    def with_lesions(self, tests: Sequence[LesionTest], recipe: Recipe) -> DirectionResult:
        """Return the same with this direction's lesions among the model's cases and summaries, for the gate."""
        rows = [row for test in tests if test.direction is self.direction for row in test.measured]
        if not rows:
            return self
        name, section = rows[0].protocol.name, recipe.evaluate
        summary = summarise(rows, resamples=section.bootstrap, seed=section.seed)
        cases = self.measured.cases | {OWN: self.cases | {name: rows}}
        summaries = {**self.summaries, OWN: {**self.own, name: summary}}
        return replace(self, measured=replace(self.measured, cases=cases), summaries=summaries)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "direction": self.direction.value,
            "summaries": dicts(self.own),
            "baselines": {name: dicts(summaries) for name, summaries in self.baselines.items()},
            "tissues": table_to_dict(self.measured.tissues),
            "warnings": list(self.warnings),
        }


def dicts(summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """Return summaries in plain JSON types."""
    return {name: summary.to_dict() for name, summary in summaries.items()}


def measure_direction(
    test_set: TestSet,
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
    test_set, model
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
    indices = test_set.indices(recipe.evaluate.max_unpaired_images)
    indices = indices if most is None else spread(indices, most)
    _require_masks(test_set, recipe, indices)
    _require_room(test_set, recipe, indices)
    if not indices:
        raise InputError(
            f"the test split has no {test_set.direction.source} image; direction {test_set.direction} needs one"
        )
    candidates = [model.candidate()]
    if test_set.differs_as_trained:
        candidates.append(model.candidate_as_trained())
    if champion is not None:
        candidates.append(champion.candidate(CHAMPION))
    fitted = fit_all_baselines(test_set)
    if test_set.has_pairs:
        candidates += baseline_candidates(fitted)
    measured = compare(test_set, recipe, candidates, indices, tell)
    if not test_set.has_pairs:
        _merge(measured, measure_unpaired(test_set, model, recipe, indices, fitted))
        if champion is not None:
            others = measure_unpaired(test_set, champion, recipe, indices)
            _merge(measured, {CHAMPION: others[OWN]})
    section = recipe.evaluate
    summaries = {
        who: {n: summarise(c, resamples=section.bootstrap, seed=section.seed) for n, c in cases.items()}
        for who, cases in measured.cases.items()
    }
    alarm, warnings = _tissues(test_set, measured)
    if not test_set.has_pairs:
        warnings += _outdone(summaries, tuple(fitted))
    names = tuple(fitted)
    return DirectionResult(
        test_set.direction,
        test_set.target_unit,
        test_set.has_pairs,
        test_set.phantom,
        measured,
        summaries,
        alarm,
        warnings,
        names,
    )


def _require_masks(test_set: TestSet, recipe: Recipe, indices: Sequence[int]) -> None:
    """Refuse a test that lacks a mask before anything is translated."""
    names = recipe.evaluate.paired_protocols if test_set.target_unit is Unit.HU else ()
    if test_set.has_pairs and any(protocol(n).mask is Mask.GIVEN for n in names):
        for index in indices:
            test_set.require_mask(index)


def _require_room(test_set: TestSet, recipe: Recipe, indices: Sequence[int]) -> None:
    """Refuse a truth that is thinner than a protocol's window before anything is translated."""
    names = recipe.evaluate.paired_protocols if test_set.target_unit is Unit.HU else ()
    windowed = [n for n in names if protocol(n).ssim_window is SsimWindow.UNIFORM_7_3D]
    for index in indices if test_set.has_pairs and windowed else ():
        truth = test_set.target.volumes[test_set.pairs[index]]
        row = test_set.read.rows[truth.paths[0]]
        shape = [int(row[c]) for c in (Column.DEPTH, Column.HEIGHT, Column.WIDTH) if c in row]
        if shape and min(shape) < VOLUME_WINDOW_SIDE:
            raise InputError(
                f"the truth {truth.image} has {' × '.join(map(str, shape))} voxels, and the SSIM of {windowed[0]} "
                f"needs {VOLUME_WINDOW_SIDE} along each axis; leave the image out of the test, or {windowed[0]} out of "
                "evaluate.paired_protocols"
            )


def turn(test_set: TestSet, model: Model) -> tuple[TestSet, Model] | str:
    """Return test and model seen from the other direction, or a sentence why that cannot be."""
    direction = test_set.direction.reverse
    side = model.description.sides[direction.target]
    if side.target_range is None:
        return f"{direction} was not measured: it would have to write {side.channels} channels of {direction.target}"
    return test_set.turned(direction), Model.load(model.folder, direction)


def _merge(measured: MeasuredDirection, cases: Mapping[str, Cases]) -> None:
    for who, by_protocol in cases.items():
        measured.cases.setdefault(who, {}).update(by_protocol)


def _tissues(test_set: TestSet, measured: MeasuredDirection) -> tuple[str | None, tuple[str, ...]]:
    table = measured.tissues
    if not table:
        return None, ()
    if test_set.target_unit is Unit.HU:
        return order_alarm(table), order_warnings(table)
    sequences = test_set.target.volumes[0].sequences
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
    name, metric = "unpaired_distribution", KID.name
    own = summaries[OWN][name].mean(metric) if name in summaries[OWN] else None
    found = {t: summaries[t][name].mean(metric) for t in baselines if name in summaries.get(t, {})}
    nearer = sorted((kid, t) for t, kid in found.items() if own is not None and kid is not None and kid <= own)
    if not nearer:
        return ()
    named = ", ".join(f"{t} (KID {kid:.3g})" for kid, t in nearer)
    return (f"translators that never learned are nearer to real images than the model (KID {own:.3g}): {named}",)
