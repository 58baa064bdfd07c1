"""Record of what the supervisor of the embedded Triton saw and did; it outlives the supervisor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ctmr.system.files import write_file

KEPT = 50
"""Restarts that are kept; all are counted."""
FILE = "supervision.json"


@dataclass(frozen=True)
class Restart:
    """One thing that was started again.

    Attributes
    ----------
    at
        Time, ISO 8601, UTC.
    what, why
        The server or a model with its version, and what it was noticed by.
    seconds
        From the attempt to an answer.
    """

    at: str
    what: str
    why: str
    seconds: float


@dataclass(frozen=True)
class Supervision:
    """All that is recorded.

    Attributes
    ----------
    checked_at
        Last time when every model was asked; empty before the first.
    models
        Model → what came of it then: ``answers``, ``busy`` or ``dead``.
    count
        How often something was started again.
    restarts
        The latest of them, newest last.
    trouble
        What could not be started again; empty once all answers.
    """

    checked_at: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    count: int = 0
    restarts: tuple[Restart, ...] = ()
    trouble: str = ""

    @staticmethod
    def read(folder: Path) -> Supervision:
        """Return the record of a server's state folder; an empty one where there is none, or a damaged one."""
        try:
            tree: dict[str, Any] = json.loads((folder / FILE).read_text())
            return Supervision(**{**tree, "restarts": tuple(Restart(**entry) for entry in tree["restarts"])})
        except (OSError, ValueError, TypeError, KeyError):
            return Supervision()

    @staticmethod
    def checked(folder: Path, models: Mapping[str, str]) -> None:
        """Record that every model was asked."""
        now = {**asdict(Supervision.read(folder)), "checked_at": _now(), "models": dict(models)}
        if "dead" not in models.values():
            now["trouble"] = ""
        _write(folder, now)

    @staticmethod
    def restarted(folder: Path, what: str, why: str, seconds: float) -> None:
        """Record that something was started again."""
        before = Supervision.read(folder)
        entry = Restart(_now(), what, why, round(seconds, 1))
        kept = [asdict(restart) for restart in (*before.restarts, entry)[-KEPT:]]
        _write(folder, {**asdict(before), "restarts": kept, "count": before.count + 1, "trouble": ""})

    @staticmethod
    def failed(folder: Path, words: str) -> None:
        """Record that something could not be started again."""
        _write(folder, {**asdict(Supervision.read(folder)), "trouble": words})

    def sentence(self) -> str:
        """Return it in one line, for a person; empty when there is nothing yet."""
        said = [f"models asked last at {self.checked_at}"] if self.checked_at else []
        if self.restarts:
            last = self.restarts[-1]
            times = "once" if self.count == 1 else f"{self.count} times"
            said.append(f"started again {times}, last {last.what} at {last.at} in {last.seconds:g} s ({last.why})")
        if self.trouble:
            said.append(self.trouble)
        return "; ".join(said)


def _write(folder: Path, tree: Mapping[str, Any]) -> None:
    write_file(folder / FILE, (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode(), replace=True, mode=0o600)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
