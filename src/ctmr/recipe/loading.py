"""Recipes on disk: YAML files under ``recipes/`` that override the defaults of `ctmr.recipe.recipe.Recipe`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ctmr.errors import InputError
from ctmr.recipe.recipe import Recipe, override, parse


def recipe_folder() -> Path:
    """Return the folder of the shipped recipes: ``recipes/`` of the working directory, else of the checkout."""
    here = Path("recipes")
    return here if here.is_dir() else Path(__file__).resolve().parents[3] / "recipes"


def recipe_names() -> list[str]:
    """Return the names that `load` takes, ``default`` first."""
    return ["default", *sorted(p.stem for p in recipe_folder().glob("*.yaml"))]


def load(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name, by path of a YAML file, or from YAML text, with ``key=value`` assignments applied.

    Parameters
    ----------
    name
        What holds a line break is the text itself: a cluster has no files of the person who submits a run.

    Raises
    ------
    InputError
        Unknown name, unreadable YAML, unknown key or impossible value.
    """
    if name == "default":
        recipe = Recipe()
    elif "\n" in name:
        recipe = _read(name, "the recipe given as text")
    else:
        path = recipe_path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"recipe {path} is not readable YAML: {error}") from None
        recipe = _read(text, f"recipe {path.name}")
    return override(recipe, [_assignment(text) for text in assignments])


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given by name or path; InputError when there is none."""
    path = Path(name) if is_file_name(name) else recipe_folder() / f"{name}.yaml"
    if not path.is_file():
        raise InputError(
            f"there is no recipe {name!r}; the recipes are {', '.join(recipe_names())}, or give a YAML file"
        )
    return path


def is_file_name(name: str) -> bool:
    """True when a recipe is given by the path of its file."""
    return name.endswith((".yaml", ".yml"))


def _read(text: str, source: str) -> Recipe:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{source} holds {type(tree).__name__}; a mapping of sections is needed")
    return parse(tree, source=source)


def render(recipe: Recipe) -> str:
    """Return the whole recipe as YAML, every default filled in."""
    text: str = yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True, width=110)
    return text


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r} is not key=value; an example is --set train.steps=500")
    try:
        return key.strip(), _number(yaml.safe_load(value) if value else None)
    except yaml.YAMLError:
        raise InputError(
            f"--set {key}: {value!r} is not a YAML value; quote text that holds colons or brackets"
        ) from None


def _number(value: Any) -> Any:
    """Read 1e-3 as a number: YAML 1.1 wants 1.0e-3, people do not."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
