"""The stages, a file each, and the finding of them: whoever lists them need not import what they compute with."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ctmr.errors import InputError

if TYPE_CHECKING:
    from ctmr.pipeline.stage import Stage


_READ = ("help", "takes", "options")


@dataclass(frozen=True)
class Declaration:
    """A stage as it declares itself; see `ctmr.pipeline.stage.Stage` for the fields."""

    name: str
    help: str
    takes: Mapping[str, str]
    options: Mapping[str, str]


def declared() -> Mapping[str, Declaration]:
    """Return name → declaration of every stage, in the order in which data goes through them.

    A stage is a file in a folder of this package's ``__path__`` that ends with ``STAGE = Stage(…)``; name, help, takes
    and options stand there as literals, because they are read without importing the file: PyTorch takes seconds.

    Raises
    ------
    ValueError
        A file declares no stage so, or a stage takes what no stage leaves.
    """
    return _declared(tuple(__path__))


def names() -> tuple[str, ...]:
    """Return the names of the stages, in order."""
    return tuple(declared())


def load(name: str) -> Stage:
    """Return a stage by name; imports only that stage."""
    if name not in names():
        raise InputError(f"there is no stage {name!r}; the stages are {', '.join(names())}")
    found: Stage = import_module(f"{__name__}.{name}").STAGE
    return found


@cache
def _declared(folders: tuple[str, ...]) -> Mapping[str, Declaration]:
    files = [path for folder in folders for path in sorted(Path(folder).glob("[!_]*.py"))]
    found = {path.stem: _read(path) for path in files}
    after = {name: {where.partition("/")[0] for where in stage.takes.values()} for name, stage in found.items()}
    if strange := {earlier for takes in after.values() for earlier in takes} - set(found):
        raise ValueError(f"stages take what {sorted(strange)} leave, and there is no such stage")
    order, steps = list[str](), TopologicalSorter(after)
    steps.prepare()
    while steps.is_active():
        # Those that wait for the same ones come by name: the order must not depend on the file system.
        ready = sorted(steps.get_ready())
        order += ready
        steps.done(*ready)
    return {name: found[name] for name in order}


def _read(path: Path) -> Declaration:
    _, begin, rest = path.read_text(encoding="utf-8").rpartition("\nSTAGE = ")
    try:
        call = ast.parse(begin + rest).body[0].value  # type: ignore[attr-defined]
        name = ast.literal_eval(call.args[0])
        literal = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg in _READ}
    except (ValueError, SyntaxError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} does not end with STAGE = Stage(name, help=…, takes=…) of literals") from error
    if name != path.stem:
        raise ValueError(f"{path} declares the stage {name!r}; the file and its stage have one name")
    return Declaration(name, literal.get("help", ""), literal.get("takes", {}), literal.get("options", {}))
