"""train in several processes where nobody typed torchrun: the stage starts its own command under it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from typing import Any

import yaml

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.pipeline.stage import RECORD, Context
from ctmr.system.environment import HOME, TRAIN_PROCESSES, count_of
from ctmr.system.processes import start, torchrun_rank

_KEPT_LINES = 200
_SENTENCE = "ctmr: "


def wanted() -> int:
    """Return how many processes this stage must start: 1 where it is one of several already.

    Raises
    ------
    InputError
        ``CTMR_TRAIN_PROCESSES`` is no number of processes.
    """
    asked = count_of(TRAIN_PROCESSES) or 1
    return asked if torchrun_rank()[1] == 1 else 1


def run(context: Context, processes: int) -> dict[str, Any]:
    """Run ``ctmr train`` under torchrun, take over what it left, and return its summary.

    It has this stage's key, so it goes on from the same checkpoints.

    Raises
    ------
    CtmrError
        What ended the command, in its own words.
    """
    folder = context.work / "torchrun"
    recipe = context.work / "torchrun.yaml"
    recipe.write_text(yaml.safe_dump(context.recipe.dump(), sort_keys=False), encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "ctmr.cli",
        "train",
        "--recipe",
        str(recipe),
        "--out",
        str(folder),
        *(f"--input={name}={path.absolute()}" for name, path in context.inputs.items()),
    ]
    environment = {**os.environ, HOME: str(context.home.root)}
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    # Without its parent torchrun would go on training.
    with start(
        words,
        ends_by=signal.SIGTERM,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as launcher:
        assert launcher.stdout is not None
        try:
            for line in launcher.stdout:
                last.append(line.rstrip())
                if line.startswith("  train"):
                    context.report(line.split("train", 1)[1].strip())
        except BaseException:
            launcher.send_signal(signal.SIGTERM)
            raise
    if launcher.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise _error(list(last), launcher.returncode)
    left = folder / "train"
    summary: dict[str, Any] = json.loads((left / RECORD).read_text())["summary"]
    (left / RECORD).unlink()
    for entry in left.iterdir():
        shutil.move(entry, context.out / entry.name)
    shutil.rmtree(folder)
    return summary


def _error(lines: list[str], code: int) -> CtmrError:
    """Return the sentence of the process that failed, with its kind."""
    said = [line.removeprefix(_SENTENCE) for line in lines if line.startswith(_SENTENCE)]
    if not said:
        end = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return EnvironmentFault(f"torchrun ended with exit code {code}: {end[:300]}")
    # Its own exit code is always 1; the processes' stand in its report.
    # A process that lost the others for one's bad input reports a fault of the environment: a consequence.
    for kind in (InputError, EnvironmentFault):
        if any(re.search(rf"exitcode\s*: {kind.exit_code}\b", line) for line in lines):
            return kind(said[0])
    return CtmrError(said[0])
