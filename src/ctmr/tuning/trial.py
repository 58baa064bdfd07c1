"""One trial of the tuning study: what its slot tries, when it is pruned, how it trains."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ctmr.errors import InputError
from ctmr.imaging.volume import Direction
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.tuning import Choice, Integers, LogUniform, Pruner, Sampler
from ctmr.system.digest import tree_digest
from ctmr.system.home import Home
from ctmr.tuning.hyperband import bracket_of, bracket_sizes, goes_on, rungs

if TYPE_CHECKING:
    import optuna

    from ctmr.tuning.objective import Pictures

CURVE_POINTS = 50
"""Points of a trial's loss curves."""
PICTURES = 3
"""Validation images that a trial's sample shows."""
_DRAWS = 50
"""Times that a slot is drawn for, when what was drawn contradicts itself; the last is taken as it is, and fails."""


class SlotState(StrEnum):
    """Progress of a slot."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True)
class Slot:
    """One of the ``tune.trials`` places of a study; a trial that is tried again keeps its slot.

    Attributes
    ----------
    number
        From 0; its wave is ``number // tune.workers``.
    params
        Dotted recipe key → value; empty before a worker took it.
    reports
        Training step → validation score.
    score
        Of a complete or pruned slot; lower is better.
    error
        Why it failed.
    trial
        Optuna's number of the trial that this is told from; ``None`` while it waits.
    """

    number: int
    state: SlotState = SlotState.WAITING
    params: Mapping[str, Any] = field(default_factory=dict)
    reports: Mapping[int, float] = field(default_factory=dict)
    score: float | None = None
    error: str = ""
    trial: int | None = None

    @property
    def finished(self) -> bool:
        """True when nothing will change it any more."""
        return self.scored or self.state is SlotState.FAILED

    @property
    def scored(self) -> bool:
        """True when it taught the study something."""
        return self.state in (SlotState.COMPLETE, SlotState.PRUNED)


class Reported(NamedTuple):
    """Report of a trial.

    Attributes
    ----------
    step
        Training steps done.
    score
        On the validation split; lower is better.
    losses
        Training step → loss → mean since the point before; of the steps since the last report.
    pictures
        Validation images and their translations.
    """

    step: int
    score: float
    losses: Mapping[int, Mapping[str, float]] = {}
    pictures: Pictures | None = None


def report_steps(recipe: Recipe) -> list[int]:
    """Return the training steps at which a trial reports; the last is its last step."""
    tune = recipe.tune
    return sorted({max(1, k * tune.steps // tune.reports) for k in range(1, tune.reports + 1)})


def bracket(recipe: Recipe, number: int) -> int | None:
    """Return the Hyperband bracket of a slot; ``None`` under another pruner."""
    if recipe.tune.pruner is not Pruner.HYPERBAND:
        return None
    return bracket_of(number, bracket_sizes(len(report_steps(recipe)), recipe.tune.reduction))


def propose(recipe: Recipe, number: int, slots: Sequence[Slot]) -> dict[str, Any]:
    """Return the parameters of a slot: dotted recipe key → value.

    Slot 0 is the recipe itself. The others come from a sampler that is seeded by ``tune.seed`` and the slot and that
    knows the scored slots of earlier waves, of all brackets. So the parameters depend on nothing else: not on the
    process that asks, not on when it asks.

    Parameters
    ----------
    slots
        The study; those of earlier waves are finished.
    """
    if number == 0:
        return _own_values(recipe)
    import optuna

    space = distributions(recipe)
    known = [slot for slot in _earlier(recipe, number, slots) if all(map(inside, space.values(), _values(slot, space)))]
    make = optuna.samplers.TPESampler if recipe.tune.sampler is Sampler.TPE else optuna.samplers.RandomSampler
    for attempt in range(_DRAWS):
        seeds = {"seed": recipe.tune.seed, "slot": number, **({"attempt": attempt} if attempt else {})}
        study = study_of(known, space)
        study.sampler = make(seed=int(tree_digest(seeds)[:8], 16))
        params = dict(study.ask(space).params)
        with contextlib.suppress(InputError):
            trial_recipe(recipe, params)
            break
    return params


def should_prune(recipe: Recipe, number: int, slots: Sequence[Slot], reports: Mapping[int, float]) -> bool:
    """True when a trial's reports are too bad, beside those of earlier waves, for it to go on.

    Under ``hyperband``: its newest report is at a rung of its bracket and not within the best 1/η there. Under
    ``median``: its best report is worse than the median, at its last step, of earlier waves' complete slots.

    Parameters
    ----------
    slots
        The study; those of earlier waves are finished.
    reports
        The trial's own finite reports: training step → validation score.
    """
    match recipe.tune.pruner:
        case Pruner.HYPERBAND:
            return _loses_its_rung(recipe, number, slots, reports)
        case Pruner.MEDIAN:
            return _is_worse_than_the_median(recipe, number, slots, reports)
        case Pruner.NONE:
            return False


def _loses_its_rung(recipe: Recipe, number: int, slots: Sequence[Slot], reports: Mapping[int, float]) -> bool:
    steps, mine, reduction = report_steps(recipe), bracket(recipe, number), recipe.tune.reduction
    assert mine is not None
    newest = max(reports, default=0)
    if newest not in [steps[rung - 1] for rung in rungs(mine, len(steps), reduction)]:
        return False
    earlier = (slot for slot in _earlier(recipe, number, slots) if bracket(recipe, slot.number) == mine)
    rivals = [slot.reports[newest] for slot in earlier if newest in slot.reports]
    return not goes_on(reports[newest], rivals, reduction)


def _is_worse_than_the_median(recipe: Recipe, number: int, slots: Sequence[Slot], reports: Mapping[int, float]) -> bool:
    import optuna

    pruner = optuna.pruners.MedianPruner(n_startup_trials=recipe.tune.workers, n_warmup_steps=0)
    trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values=dict(reports))
    return bool(pruner.prune(study_of(_earlier(recipe, number, slots), {}), trial))


def distributions(recipe: Recipe) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return ``tune.space`` in Optuna's terms, by name: samplers draw in this order, and files do not keep one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    out: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, space in sorted(recipe.tune.space.items()):
        if isinstance(space, Choice):
            out[key] = CategoricalDistribution(space.values)
        elif isinstance(space, Integers):
            out[key] = IntDistribution(space.low, space.high, log=space.log, step=space.step)
        else:
            out[key] = FloatDistribution(space.low, space.high, log=isinstance(space, LogUniform))
    return out


def inside(distribution: optuna.distributions.BaseDistribution, value: Any) -> bool:
    """True when a search range holds a value; the recipe's own value may lie outside."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if value is None or not distribution.low <= value <= distribution.high:
        return False
    return not isinstance(distribution, IntDistribution) or (value - distribution.low) % distribution.step == 0


def trial_recipe(recipe: Recipe, params: Mapping[str, Any]) -> Recipe:
    """Return the recipe a trial trains: its parameters, its budget, its subset.

    Raises
    ------
    InputError
        When the parameters contradict each other.
    """
    tuned, tune = override(recipe, list(params.items()), source="tune.space"), recipe.tune
    changed: dict[str, Any] = {"steps": tune.steps, "threads": tune.threads}
    if tune.subset_images:
        # Half a step less, so that rounding never adds one.
        share = (report_steps(recipe)[0] - 0.5) / tune.steps
        changed |= {"subset_images": tune.subset_images, "subset_fraction": share}
    # A registration is worth its time in a training that goes on from it.
    warmup = tuned.loss.warmup.model_copy(update={"refine": ()})
    loss = tuned.loss.model_copy(update={"warmup": warmup})
    return tuned.model_copy(update={"train": tuned.train.model_copy(update=changed), "loss": loss})


def scores(preprocessed: Path, recipe: Recipe) -> Iterator[Reported]:
    """Train a trial, yielding what it reports after each of `report_steps`.

    Parameters
    ----------
    preprocessed
        Output of preprocess.
    recipe
        Of `trial_recipe`.
    """
    from ctmr.training.events import StepEvent
    from ctmr.training.setup import describe, training_data
    from ctmr.training.trainer import Trainer
    from ctmr.tuning.objective import Scorer

    data = training_data(preprocessed / "shards", recipe)
    train, direction = recipe.train, recipe.direction
    other = next(d for d in Direction if d is not direction)
    # No shorter than the rarest update, so that every point holds every loss.
    every = max(train.generator_every, train.discriminator_every, train.steps // CURVE_POINTS, 1)
    speeds = Home.current().speeds
    trainer = Trainer(recipe.network, recipe.loss, train, data, report_every=every, samples=0, speeds=speeds)
    scorer = Scorer.make(preprocessed / "shards", recipe, describe(preprocessed, recipe))
    for target in report_steps(recipe):
        events = trainer.run(until_step=target)
        losses = {event.step: dict(event.losses) for event in events if isinstance(event, StepEvent)}
        forward, backward = (trainer.generator(d) for d in (direction, other))
        last = target == train.steps
        score = scorer(forward, backward, 0 if last else recipe.tune.subset_cases)
        yield Reported(target, score, losses, scorer.pictures(forward, backward, PICTURES))


def _own_values(recipe: Recipe) -> dict[str, Any]:
    tree = recipe.dump()
    out = {}
    for key in recipe.tune.space:
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        out[key] = value
    return out


def _earlier(recipe: Recipe, number: int, slots: Sequence[Slot]) -> list[Slot]:
    first_of_wave = number // recipe.tune.workers * recipe.tune.workers
    return sorted((s for s in slots if s.number < first_of_wave and s.scored), key=lambda s: s.number)


def _values(slot: Slot, space: Mapping[str, Any]) -> list[Any]:
    return [slot.params[key] for key in space]


def study_of(slots: Sequence[Slot], space: Mapping[str, optuna.distributions.BaseDistribution]) -> optuna.Study:
    """Return a study in memory that holds slots in their order."""
    import optuna

    states = {SlotState.COMPLETE: optuna.trial.TrialState.COMPLETE, SlotState.PRUNED: optuna.trial.TrialState.PRUNED}
    study = optuna.create_study(direction="minimize")
    for slot in slots:
        study.add_trial(
            optuna.trial.create_trial(
                state=states[slot.state],
                value=slot.score,
                params={key: slot.params[key] for key in space},
                distributions=dict(space),
                intermediate_values={k: v for k, v in slot.reports.items() if math.isfinite(v)},
            )
        )
    return study
