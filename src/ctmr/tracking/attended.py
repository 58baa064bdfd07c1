"""Attended runs: MLflow calls a run RUNNING only while a process of ours works on it.

Whoever works on a run holds the lock of a file that bears its id. The kernel releases the lock of a process that is
killed, so that the next command sees a run which nobody attends, and closes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ctmr.errors import CtmrError, EnvironmentFault
from ctmr.system.home import Home
from ctmr.system.locks import locked

if TYPE_CHECKING:
    from ctmr.tracking.mlflow import Tracking

_BUSY = "another process works on the run"


@contextmanager
def attended(tracking: Tracking, run_id: str, *, fault: str = "FAILED") -> Iterator[None]:
    """Call the run RUNNING inside, then FINISHED; after an error `fault`, after an interrupt KILLED.

    A run that somebody else opened (``MLFLOW_RUN_ID``), or that another process works on, is left as it is, and so is
    the status that was set inside.
    """
    from ctmr.tracking.mlflow import GIVEN

    folder = _folder(tracking.home)
    with ExitStack() as stack:
        if run_id == os.environ.get(GIVEN) or not _held(stack, folder / run_id):
            yield
            return
        tracking.reopen(run_id)
        try:
            yield
        except BaseException as error:
            # What went wrong is what a person must read; the file stays for the next command where MLflow is silent.
            with suppress(CtmrError):
                _close(tracking, run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else fault)
            raise
        _close(tracking, run_id, "FINISHED")


def close_left(tracking: Tracking) -> None:
    """Close as KILLED what a killed process was working on."""
    folder = _folder(tracking.home)
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        with ExitStack() as stack:
            if _held(stack, file):
                _close(tracking, file.name, "KILLED")


def _held(stack: ExitStack, file: Path) -> bool:
    """Take the file's lock until the stack ends; False when another process has it."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        stack.enter_context(locked(file, busy=_BUSY, mode=0o600))
    except EnvironmentFault as error:
        if str(error) != _BUSY:
            raise
        return False
    return True


def _close(tracking: Tracking, run_id: str, status: str) -> None:
    if tracking.is_open(run_id):
        tracking.end(run_id, status)
    (_folder(tracking.home) / run_id).unlink(missing_ok=True)


def _folder(home: Home) -> Path:
    return home.root / "attended"
