"""The child process of one run: executes a compiled pipeline with kfp.local, and writes down how it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.pipeline import events
from ctmr.pipeline.kfp_local import EVENTS, FAILED, LOG, PARAMETERS, PIPELINE, SUCCEEDED, RunOutcome
from ctmr.system.files import require_temporary
from ctmr.system.processes import when_parent_ends

Tree = dict[str, Any]

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_QUOTED = re.compile(r"'([^']+)'")


def main(folder: Path) -> int:
    """Run the pipeline of a folder; return the exit code."""
    # Should the process that started this run be gone, nobody would stop it and what it started.
    when_parent_ends(lambda: os.killpg(0, signal.SIGKILL), os.getppid())
    try:
        require_temporary()
        _execute(folder)
        how = RunOutcome(SUCCEEDED)
    except CtmrError as error:
        how = _outcome(error)
    except Exception as error:
        how = _why(folder, error)
    how.write(folder)
    return how.exit_code


def _outcome(error: CtmrError) -> RunOutcome:
    return RunOutcome(FAILED, str(error), error.exit_code, type(error).__name__)


def _execute(folder: Path) -> None:
    import logging

    from kfp import components, local

    tree = pipeline_of(folder / PIPELINE)
    arguments = typed(tree, json.loads((folder / PARAMETERS).read_text()))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "root"))
    logging.getLogger("kfp").setLevel(logging.WARNING)
    components.load_component_from_text(yaml.safe_dump(tree))(**arguments)


def pipeline_of(path: Path) -> Tree:
    """Return the pipeline of a compiled file, without its platform part and without retries.

    kfp.local would try a task again, minutes apart, whose one fault is a mistyped path.
    """
    tree: Tree = next(iter(yaml.safe_load_all(path.read_text(encoding="utf-8"))))
    for task in _tasks(tree):
        task.pop("retryPolicy", None)
    return tree


def _tasks(tree: Tree) -> Iterator[Tree]:
    for dag in [tree["root"], *tree.get("components", {}).values()]:
        yield from dag.get("dag", {}).get("tasks", {}).values()


def typed(tree: Tree, values: Mapping[str, Any]) -> Tree:
    """Return parameters with numbers as the pipeline declares them: kfp.local finds 1 and 1.0 different."""
    declared = tree["root"].get("inputDefinitions", {}).get("parameters", {})
    unknown = sorted(set(values) - set(declared))
    if unknown:
        raise InputError(f"the pipeline has no parameters {unknown}; it has {sorted(declared)}")
    cast = {"NUMBER_DOUBLE": float, "NUMBER_INTEGER": int}
    return {k: cast.get(declared[k]["parameterType"], lambda v: v)(v) for k, v in values.items()}


def _why(folder: Path, error: Exception) -> RunOutcome:
    """Return the failed task's own sentence, else the last line that the log has."""
    last: Mapping[str, Any] = {}
    for _, event in events.read(folder / EVENTS):
        if "error" in event:
            last = event
    if last:
        return RunOutcome(FAILED, str(last["error"]), int(last["exit_code"]), str(last.get("kind", "")))
    if stage := events.killed(folder / EVENTS):
        said = (
            f"the process of stage {stage} was killed before it could say why, perhaps because memory ran out; start "
            f"the run again, finished stages are reused (log: {folder / LOG})"
        )
        return RunOutcome(FAILED, said, EnvironmentFault.exit_code, EnvironmentFault.__name__)
    try:
        require_temporary()
    except EnvironmentFault as fault:
        return _outcome(fault)
    task = _QUOTED.findall(_plain(str(error)))
    where = f"task {task[-1]}" if task else "it"
    said = f"the run failed, {where} said: {_last_words(folder / LOG)} (log: {folder / LOG})"
    return RunOutcome(FAILED, said, 1, "CtmrError")


def _last_words(log: Path) -> str:
    """Return the last line that a task printed; what kfp.local adds after it says nothing."""
    sys.stdout.flush()
    for line in reversed(_plain(log.read_text(errors="replace")).splitlines()):
        if line.strip(" -") and "finished with status" not in line:
            return line.strip()
    return "nothing"


def _plain(text: str) -> str:
    return _COLOUR.sub("", text)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
