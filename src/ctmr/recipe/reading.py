"""Reading recipes: trees merged over the defaults, dotted keys set, and errors told in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ctmr.errors import InputError

if TYPE_CHECKING:
    from ctmr.recipe.recipe import Recipe

_UNION_TAGS = frozenset({
    "window", "percentile", "log_uniform", "uniform", "int", "choice",
    "head_mask", "table_removal", "bias_field", "registration",
})  # fmt: skip
"""Values of ``kind`` that pydantic puts into the place of an error; a reader knows them from their own file."""


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
    from ctmr.recipe.recipe import Recipe

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
