"""Between a run and its tasks: what these tell of themselves, a JSON line each in a file."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ctmr.errors import CtmrError
from ctmr.pipeline.stage import Result
from ctmr.system.environment import EVENTS
from ctmr.system.progress import Progress

TaskEvent = Mapping[str, Any]


def emit(stage: str, **fields: Any) -> None:
    """Append one event, or print it where nobody listens."""
    path = os.environ.get(EVENTS)
    if path:
        # One short write in append mode: lines of tasks that run side by side never mix.
        line = json.dumps({"stage": stage, **fields}, default=str) + "\n"
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(line)
    elif "message" in fields:
        print(f"{stage}: {fields['message']}", flush=True)


def started(stage: str) -> None:
    """Say that a stage begins."""
    emit(stage, started=datetime.now(UTC).isoformat(timespec="seconds"))


def ended(stage: str) -> None:
    """Say that a stage's task ends, well or not: one that was killed never says so."""
    emit(stage, ended=datetime.now(UTC).isoformat(timespec="seconds"))


def killed(path: Path) -> str:
    """Return the stage of a task that began and never ended; empty when there is none."""
    open_tasks = Counter[str]()
    for _, event in read(path):
        open_tasks[event["stage"]] += ("started" in event) - ("ended" in event)
    return next((stage for stage, count in open_tasks.items() if count > 0), "")


def progress(stage: str) -> Progress:
    """Return where a stage reports progress."""

    def report(message: str, fraction: float | None = None) -> None:
        emit(stage, message=message, fraction=fraction)

    return report


def finished(result: Result) -> None:
    """Say what a stage left."""
    emit(result.name, result={**asdict(result), "out": str(result.out)})


def failed(stage: str, error: CtmrError) -> None:
    """Say in one sentence why a stage ended, in the events and in the log."""
    emit(stage, error=str(error), kind=type(error).__name__, exit_code=error.exit_code)
    print(f"ctmr: {error}", file=sys.stderr, flush=True)


def result_of(event: TaskEvent) -> Result:
    """Return the result that an event of kind ``result`` carries."""
    fields = dict(event["result"])
    return Result(**{**fields, "out": Path(fields["out"])})


def read(path: Path, offset: int = 0) -> Iterator[tuple[int, TaskEvent]]:
    """Yield (offset after it, event) of every complete line from `offset` on; a torn last line waits for its rest."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "stage" in event:
                yield offset, event
