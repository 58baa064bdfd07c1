"""Name of the study that a recipe means, and the words for how its search space differs from another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctmr.recipe.recipe import Recipe
from ctmr.system.digest import tree_digest


def study_folder(parts: Mapping[str, str], work: Path, recipe: Recipe) -> Path:
    """Return the folder of a study: one for all recipes that differ in nothing but the search space.

    So a changed search space meets the study that was begun with the old one, and is refused by name, where it would
    else begin another without a word.

    Parameters
    ----------
    parts, work
        What the stage's output depends on, and its work folder; see `ctmr.pipeline.stage.locate`.
    """
    tune = recipe.dump()["tune"]
    del tune["space"]
    key = tree_digest({"stage": "tune", **parts, "recipe.tune": tree_digest(tune)})
    return work.parent / "-".join(filter(None, (recipe.tune.study, key[:16])))


def space_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return, a key a sentence, how two search spaces differ; each is dotted recipe key → range, as plain types."""
    return [
        f"tune.space.{key} was {_words(before.get(key))} and is {_words(now.get(key))}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def _words(space: Mapping[str, Any] | None) -> str:
    """Return an entry of a search space as a person writes it; what is as it is anyhow is left out."""
    if space is None:
        return "not searched"
    match space["kind"]:
        case "choice":
            return f"choice of {', '.join(map(str, space['values']))}"
        case "int":
            more = f" in steps of {space['step']}" if space["step"] != 1 else ", logarithmic" if space["log"] else ""
            return f"int {space['low']} to {space['high']}{more}"
        case kind:
            return f"{kind} {space['low']:g} to {space['high']:g}"
