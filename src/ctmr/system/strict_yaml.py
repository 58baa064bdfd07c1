"""YAML from a person or a stranger: plain types, no key twice, no aliases, bounded, faults in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from ctmr.errors import InputError

MAXIMUM_CHARACTERS = 2**20
MAXIMUM_DIGITS = 400


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's numbers, without what silently loses or multiplies content."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read here")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _short(node: Any) -> Any:
    """Return a number's node; an error beyond the digits that any number here has, which Python may neither print."""
    if len(node.value) > MAXIMUM_DIGITS:
        problem = f"a number of {len(node.value)} digits; at most {MAXIMUM_DIGITS} are read"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return node


def _integer(loader: _Loader, node: Any) -> int:
    _short(node)
    return int(node.value, 0) if node.value[:2].lower() in ("0x", "0o") else int(node.value)


_INTEGER, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
# YAML 1.1 reads 010 as 8 and 1:30 as 90, and 1e-3 as text; YAML 1.2 and people do not.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_INTEGER, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INTEGER, re.compile(r"^(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(?:e[-+]?[0-9]+)?|[-+]?\.inf|\.nan)$", re.IGNORECASE
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(_INTEGER, _integer)


class _WrittenLoader(_Loader):
    """The same with YAML 1.1's numbers: a writer of that version leaves text such as 1e-3 without quotes."""

    yaml_implicit_resolvers = yaml.SafeLoader.yaml_implicit_resolvers.copy()

    def construct_yaml_int(self, node: Any) -> int:
        return int(super().construct_yaml_int(_short(node)))


_WrittenLoader.add_constructor(_INTEGER, _WrittenLoader.construct_yaml_int)


def read(text: str, source: str) -> Any:
    """Return the tree of one YAML document.

    Parameters
    ----------
    text
        At most `MAXIMUM_CHARACTERS`.
    source
        What messages call it.

    Raises
    ------
    InputError
        No YAML, a key given twice, an alias, or nested or grown beyond what a recipe can be.

    Examples
    --------
    >>> read("train: {lr_generator: 1e-4}", "a recipe")
    {'train': {'lr_generator': 0.0001}}
    """
    with _faults(text, source):
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)


def documents(text: str, source: str) -> list[Any]:
    """Return the trees of all documents that a program wrote by the rules of YAML 1.1, as PyYAML does; else as `read`.

    Raises
    ------
    InputError
        As `read`.
    """
    with _faults(text, source):
        return [tree for tree in yaml.load_all(text, _WrittenLoader) if tree is not None]


@contextmanager
def _faults(text: str, source: str) -> Iterator[None]:
    """Turn what makes YAML unreadable into one sentence."""
    if len(text) > MAXIMUM_CHARACTERS:
        raise InputError(f"{source} has {len(text)} characters; at most {MAXIMUM_CHARACTERS} are read")
    try:
        yield
    except yaml.MarkedYAMLError as error:
        said = " ".join(f"{error.context or ''} {error.problem or ''}".split())[:300]
        at = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise InputError(f"{source} is not readable YAML: {said}{at}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not readable YAML: {' '.join(str(error).split())[:300]}") from None
    except (RecursionError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise InputError(f"{source} is not readable YAML: {reason}") from None
