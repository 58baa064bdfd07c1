"""Figures of a finished study, and the importance of what it searched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ctmr.recipe.recipe import Recipe
from ctmr.recipe.tuning import Integers, LogUniform
from ctmr.tuning.trial import Slot, SlotState, distributions, inside, study_of

MIN_COMPLETE = 4
"""Complete trials from which importances are told."""
_SEED = 0
"""Of the random forest."""


def importances(recipe: Recipe, slots: Sequence[Slot]) -> dict[str, float]:
    """Return the share of the score's variance that each searched key explains, by fANOVA over the complete slots.

    Empty where fewer than `MIN_COMPLETE` slots inside the search space are complete, or all have one score.

    References
    ----------
    Hutter, Hoos, Leyton-Brown: An Efficient Approach for Assessing Hyperparameter Importance, ICML 2014.
    """
    import optuna

    space = distributions(recipe)
    known = [
        s for s in slots if s.state is SlotState.COMPLETE and all(inside(space[key], s.params[key]) for key in space)
    ]
    if not space or len(known) < MIN_COMPLETE or len({s.score for s in known}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=_SEED)
    found = optuna.importance.get_param_importances(study_of(known, space), evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}


def draw(
    folder: Path, recipe: Recipe, slots: Sequence[Slot], best: Slot, label: str, shares: Mapping[str, float]
) -> None:
    """Write ``history.png``, ``importance.png`` and ``slice.png``.

    Parameters
    ----------
    folder
        Where to.
    label
        What the score is.
    shares
        From `importances`.
    """
    from ctmr.reports.study import TrialView, history_chart, importance_chart, slice_chart

    views = [
        TrialView(s.number, s.state.value, math.nan if s.score is None else s.score, s.params, s.reports)
        for s in slots
        if s.finished
    ]
    logarithmic = {
        key: isinstance(space, LogUniform) or (isinstance(space, Integers) and space.log)
        for key, space in recipe.tune.space.items()
    }
    complete = sum(s.state is SlotState.COMPLETE for s in slots)
    (folder / "history.png").write_bytes(history_chart(views, best=best.number, label=label))
    (folder / "importance.png").write_bytes(importance_chart(shares, trials=complete))
    if logarithmic:
        (folder / "slice.png").write_bytes(slice_chart(views, logarithmic, best=best.number, label=label))
