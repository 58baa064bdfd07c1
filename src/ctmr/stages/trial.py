"""One trial of the tuning study: what its slot tries, when it is pruned, how it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.digest import tree_digest
from ctmr.recipe import Choice, LogUniform, Recipe, override

if TYPE_CHECKING:
    import optuna


class SlotState(StrEnum):
    """How far a slot is."""

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
    """

    number: int
    state: SlotState = SlotState.WAITING
    params: Mapping[str, Any] = field(default_factory=dict)
    reports: Mapping[int, float] = field(default_factory=dict)
    score: float | None = None
    error: str = ""

    @property
    def finished(self) -> bool:
        """True when nothing will change it any more."""
        return self.scored or self.state is SlotState.FAILED

    @property
    def scored(self) -> bool:
        """True when it taught the study something."""
        return self.state in (SlotState.COMPLETE, SlotState.PRUNED)


class StoppedError(Exception):
    """The trial was asked to stop before its end."""


def propose(recipe: Recipe, number: int, slots: Sequence[Slot]) -> dict[str, Any]:
    """Return the parameters of a slot: dotted recipe key → value.

    Slot 0 is the recipe itself. The others come from a TPE sampler that is seeded by ``tune.seed`` and the slot and
    that knows the scored slots of earlier waves. So the parameters depend on nothing else: not on the process that
    asks, not on when it asks.

    Parameters
    ----------
    slots
        The study; those of earlier waves are finished.
    """
    if number == 0:
        return _own_values(recipe)
    import optuna

    seed = int(tree_digest({"seed": recipe.tune.seed, "slot": number})[:8], 16)
    space = distributions(recipe)
    known = [slot for slot in _earlier(recipe, number, slots) if all(map(inside, space.values(), _values(slot, space)))]
    study = _study(known, space)
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    return dict(study.ask(space).params)


def should_prune(recipe: Recipe, number: int, slots: Sequence[Slot], reports: Mapping[int, float]) -> bool:
    """True when a trial's best report is worse than the median, at its last step, of earlier waves' complete slots.

    Parameters
    ----------
    slots
        The study; those of earlier waves are finished.
    reports
        The trial's own finite reports: training step → validation score.
    """
    import optuna

    pruner = optuna.pruners.MedianPruner(n_startup_trials=recipe.tune.workers, n_warmup_steps=0)
    trial = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values=dict(reports))
    return bool(pruner.prune(_study(_earlier(recipe, number, slots), {}), trial))


def distributions(recipe: Recipe) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return ``tune.space`` in Optuna's terms, by name: samplers draw in this order, and files do not keep one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    out: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, space in sorted(recipe.tune.space.items()):
        if isinstance(space, Choice):
            out[key] = CategoricalDistribution(space.values)
        else:
            out[key] = FloatDistribution(space.low, space.high, log=isinstance(space, LogUniform))
    return out


def inside(distribution: optuna.distributions.BaseDistribution, value: Any) -> bool:
    """True when a search range holds a value; the recipe's own value may lie outside."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return bool(distribution.low <= value <= distribution.high)


def trial_recipe(recipe: Recipe, params: Mapping[str, Any]) -> Recipe:
    """Return the recipe a trial trains: its parameters, its budget, no checkpoints of samples."""
    tuned = override(recipe, list(params.items()), source="tune.space")
    train = tuned.train.model_copy(update={"steps": recipe.tune.steps, "threads": recipe.tune.threads})
    return tuned.model_copy(update={"train": train})


def scores(preprocessed: Path, recipe: Recipe, stopped: Callable[[], bool]) -> Iterator[tuple[int, float]]:
    """Train a trial, yielding training step and validation score ``tune.reports`` times.

    Parameters
    ----------
    preprocessed
        Output of preprocess.
    recipe
        Of `trial_recipe`.
    stopped
        Asked after every training step.

    Raises
    ------
    StoppedError
        When `stopped` said so.
    """
    from ctmr.gan.trainer import Trainer
    from ctmr.stages.scoring import Scorer
    from ctmr.stages.training import describe, training_data

    data = training_data(preprocessed / "shards", recipe)
    trainer = Trainer(recipe.network, recipe.loss, recipe.train, data, samples=0)
    scorer = Scorer.make(preprocessed / "shards", recipe, describe(preprocessed, recipe))
    for k in range(1, recipe.tune.reports + 1):
        target = max(1, k * recipe.train.steps // recipe.tune.reports)
        while trainer.step < target:
            for _ in trainer.run(until_step=trainer.step + 1):
                pass
            if stopped():
                raise StoppedError
        yield target, scorer(trainer.generator(recipe.directions[0]))


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


def _study(slots: Sequence[Slot], space: Mapping[str, optuna.distributions.BaseDistribution]) -> optuna.Study:
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
