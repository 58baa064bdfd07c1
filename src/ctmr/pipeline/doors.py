"""The doors that are files, written from the stages: the stages of dvc.yaml, the entry points of MLproject."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from ctmr.errors import EnvironmentFault
from ctmr.pipeline import stages
from ctmr.pipeline.parameters import DATASET, OUT, PARAMETERS, PATH, RECIPE, REVISION
from ctmr.pipeline.stage import Stage

_OUTPUTS = "outputs"
"""Folder of the stages' outputs where DVC runs them."""
_IN_DVC = {"champion": "none"}
"""Options of a stage whose default is looked up where DVC does not look."""
_WIDTH = 120


def written(root: Path) -> dict[Path, str]:
    """Return each file of a checkout that is such a door → its text; what stands around the stages there stays.

    Raises
    ------
    EnvironmentFault
        `root` is no checkout.
    """
    blocks = {"dvc.yaml": ("stages", _dvc()), "MLproject": ("entry_points", _mlproject())}
    for name in blocks:
        if not (root / name).is_file():
            raise EnvironmentFault(f"there is no {name} in {root}; write it in a checkout of ctmr")
    return {root / name: _with((root / name).read_text(encoding="utf-8"), *block) for name, block in blocks.items()}


def _with(text: str, key: str, block: str) -> str:
    """Return YAML text with another block below a key of its top level."""
    before, head, rest = re.split(rf"^({key}:\n)", text, maxsplit=1, flags=re.MULTILINE)
    after = re.split(r"^(?=[^\s])", rest, maxsplit=1, flags=re.MULTILINE)[1:]
    return "".join([before, head, block, *("\n" + text for text in after)])


def _dvc() -> str:
    """DVC runs the stages whose whole effect is a folder."""
    found = (stages.load(name) for name in stages.names())
    return "\n".join(_dvc_stage(stage) for stage in found if not stage.side_effects)


def _dvc_stage(stage: Stage) -> str:
    pinned = (DATASET, PATH, REVISION) if "dataset" in stage.options else ()
    words = [f"${{ctmr}} {stage.name}"]
    words += [f"{parameter.option} '${{{parameter.name}}}'" for parameter in pinned]
    words += [f"--{option} {value}" for option, value in _IN_DVC.items() if option in stage.options]
    words += [f"{RECIPE.option} params.yaml {OUT.option} {_OUTPUTS}"]
    lines = [f"  {stage.name}:", f"    cmd: {' '.join(words)}"]
    if stage.takes:
        lines += ["    deps:", *_items(f"{_OUTPUTS}/{where}" for where in stage.takes.values())]
    lines += ["    params:"]
    if pinned:
        lines += ["      - dataset.yaml:", *(f"          - {parameter.name}" for parameter in pinned)]
    lines += [*_items(stage.sections), "    outs:"]
    if pinned:
        lines += ["      # The dataset has a remote of its own, with its own readers."]
        lines += [f"      - {_OUTPUTS}/{stage.name}:", "          push: false"]
    else:
        lines += _items([f"{_OUTPUTS}/{stage.name}"])
    return "\n".join(lines) + "\n"


def _items(values: Iterable[str]) -> list[str]:
    return [f"      - {value}" for value in values]


def _mlproject() -> str:
    """MLflow Projects has an entry point for each stage, and `main` for all of them."""
    default = [f"      {p.name}: {{type: string, default: {p.default or repr('')}}}" for p in PARAMETERS]
    values = " ".join(f"{p.option}={{{p.name}}}" for p in PARAMETERS)
    blocks: list[str] = []
    for point, command in [("main", "run"), *((name, name) for name in stages.names())]:
        given = ["    parameters: *parameters"] if blocks else ["    parameters: &parameters", *default]
        words = f'PATH="$PATH:$PWD/.venv/bin" ctmr {command} {values}'
        indent = " " * 6
        folded = textwrap.fill(
            words,
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        blocks += ["\n".join([f"  {point}:", *given, "    command: >-", folded]) + "\n"]
    return "".join(blocks)
