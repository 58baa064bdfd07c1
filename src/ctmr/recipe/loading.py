"""Recipes from YAML and ``key=value``, merged over the defaults; each fault is one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ctmr.errors import InputError
from ctmr.recipe.recipe import Recipe
from ctmr.system import strict_yaml

_UNION_TAGS = frozenset(
    {
        "window",
        "percentile",
        "log_uniform",
        "uniform",
        "int",
        "choice",
    }
)
"""Values of ``kind`` that pydantic puts into the place of an error; a reader knows them from their own file."""


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
            with path.open(encoding="utf-8") as stream:
                # One character more than is allowed, so that the reader of YAML refuses it.
                text = stream.read(strict_yaml.MAXIMUM_CHARACTERS + 1)
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
    tree = strict_yaml.read(text, source)
    if not isinstance(tree, dict):
        raise InputError(f"{source} holds {type(tree).__name__}; a mapping of sections is needed")
    return parse(tree, source=source)


def render(recipe: Recipe) -> str:
    """Return the whole recipe as YAML, every default filled in."""
    text: str = yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True, width=110)
    return text


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` overridden by `over`: mappings merged key by key, everything else and search spaces replaced."""
    out = dict(base)
    for key, value in over.items():
        if (
            key != "space"
            and isinstance(value, Mapping)
            and isinstance(out.get(key), Mapping)
            and value.get("kind", out[key].get("kind")) == out[key].get("kind")
        ):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def parse(tree: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Return the recipe of a plain tree, or raise InputError with one sentence naming the key and what is allowed."""
    try:
        return Recipe.model_validate(merge(Recipe().dump(), tree))
    except ValidationError as error:
        raise InputError(f"{source}: {_sentence(error)}") from None


def set_key(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``a.b.c`` in a plain tree. Keys that contain dots themselves (``tune.space``) are matched longest first."""
    parts = dotted.split(".")
    node, path = tree, list[str]()
    while len(parts) > 1:
        if "space" in path or ".".join(parts) in node:
            whole = ".".join(parts)
            # A range below a search space has a dotted name itself; only its own fields lie deeper.
            if whole in node or not any(whole.startswith(f"{key}.") for key in node):
                node[whole] = value
                return
        for take in range(len(parts) - 1, 0, -1):
            key = ".".join(parts[:take])
            if isinstance(node.get(key), dict):
                node, parts, path = node[key], parts[take:], [*path, key]
                break
        else:
            node = node.setdefault(parts[0], {})
            if not isinstance(node, dict):
                raise InputError(
                    f"--set {dotted}: {parts[0]!r} is a value, not a section, so nothing can be set below it"
                )
            parts, path = parts[1:], [*path, parts[0]]
    node[parts[0]] = value


def override(recipe: Recipe, assignments: Iterable[tuple[str, Any]], *, source: str = "--set") -> Recipe:
    """Return a copy with dotted keys replaced; unknown keys and impossible values raise InputError."""
    tree = recipe.dump()
    for dotted, value in assignments:
        set_key(tree, dotted, value)
    try:
        return type(recipe).model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{source}: {_sentence(error)}") from None


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {text!r} is not key=value; an example is --set train.steps=500")
    try:
        return key.strip(), strict_yaml.read(value, "it") if value else None
    except InputError:
        raise InputError(
            f"--set {key}: {value[:200]!r} is not a YAML value; quote text that holds colons or brackets"
        ) from None


def _sentence(error: ValidationError) -> str:
    parts = []
    for item in error.errors()[:3]:
        where = ".".join(str(p) for p in item["loc"] if p not in _UNION_TAGS)
        if item["type"] == "extra_forbidden":
            parts.append(f"there is no key {where!r}; `ctmr recipe resolve default` prints all keys")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if isinstance(item["input"], dict) else f" (found {item['input']!r})"
            parts.append(f"{where or 'recipe'}: {message[0].lower()}{message[1:]}{found}")
    return "; ".join(parts)
