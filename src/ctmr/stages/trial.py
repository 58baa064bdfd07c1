"""One tuning trial in a process of its own: trains, reports its score, stops when told."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ctmr.recipe import Recipe, override

REPORT, DONE, FAILED = "report", "done", "failed"
GO, STOP = "go", "stop"


def trial_recipe(recipe: Recipe, params: Mapping[str, Any]) -> Recipe:
    """Return the recipe a trial trains: its parameters, its budget, no checkpoints of samples."""
    tuned = override(recipe, list(params.items()), source="tune.space")
    train = tuned.train.model_copy(update={"steps": recipe.tune.steps, "threads": recipe.tune.threads})
    return tuned.model_copy(update={"train": train})


def run_trial(channel: Connection, preprocessed: Path, tree: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Train a trial and talk to the study: (report, step, score) → go or stop; then (done, score).

    Parameters
    ----------
    channel
        To the process that owns the study; when that is gone, the trial ends.
    preprocessed
        Output of preprocess.
    tree
        The recipe as plain types.
    params
        Dotted recipe key → value.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        recipe = trial_recipe(Recipe.model_validate(tree), params)
        score = _train(channel, preprocessed, recipe)
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        channel.send((FAILED, f"{type(error).__name__}: {error}"))
        return
    if score is not None:
        channel.send((DONE, score))


def _train(channel: Connection, preprocessed: Path, recipe: Recipe) -> float | None:
    from ctmr.gan.trainer import Trainer
    from ctmr.stages.scoring import Scorer
    from ctmr.stages.training import describe, training_data

    data = training_data(preprocessed / "shards", recipe)
    trainer = Trainer(recipe.network, recipe.loss, recipe.train, data, samples=0)
    scorer = Scorer.make(preprocessed / "shards", recipe, describe(preprocessed, recipe))
    score = float("inf")
    for k in range(1, recipe.tune.reports + 1):
        step = max(1, k * recipe.train.steps // recipe.tune.reports)
        for _ in trainer.run(until_step=step):
            pass
        score = scorer(trainer.generator(recipe.directions[0]))
        channel.send((REPORT, step, score))
        if channel.recv() == STOP:
            return None
    return score
