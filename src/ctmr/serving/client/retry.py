"""Retries of a translation: after what cannot have been answered, or may be answered twice without harm."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ctmr.errors import EnvironmentFault
from ctmr.serving.client.answers import Lost, NotServed, QueueFull
from ctmr.system.progress import Progress, silent

RETRY_PAUSE_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses while the queue is full or the server is gone; the last one repeats."""
VERSION_CHANGES = 5
"""Times a call waits for a model that is not served: one of another geometry takes its place in a moment."""

Retried = (QueueFull, NotServed, Lost)


class Attempts:
    """Attempts of one call.

    A translation changes nothing on the server, so the same one may be asked for again. What the server refused, or did
    not answer in time, is not: the answer would be the same.

    Parameters
    ----------
    deadline_s
        For everything together.
    patience_s
        How long a server that is gone is waited for; 0: not at all.
    follow
        The call names no version, so a model that is not served at this moment is waited for.
    report
        Told of every pause.
    """

    def __init__(
        self, deadline_s: float, *, patience_s: float = 0.0, follow: bool = False, report: Progress = silent
    ) -> None:
        self.end = time.monotonic() + deadline_s
        self._deadline_s, self._patience_s, self._report = deadline_s, patience_s, report
        self._changes = VERSION_CHANGES if follow else 0
        self._pauses = _pauses()
        self._lost_at: float | None = None

    @property
    def left_s(self) -> float:
        """Time until the deadline."""
        return max(0.001, self.end - time.monotonic())

    def pause_s(self, error: EnvironmentFault) -> float:
        """Return how long to wait before the next attempt, or raise the error."""
        now, pause = time.monotonic(), next(self._pauses)
        if isinstance(error, NotServed):
            if not self._changes:
                raise error
            pause = 0.05 * 2 ** (VERSION_CHANGES - self._changes)
            self._changes -= 1
        elif isinstance(error, Lost):
            self._lost_at = self._lost_at or now
            if now + pause > self._lost_at + self._patience_s:
                raise error
        if now + pause >= self.end:
            raise error
        why = "the server's queue is full" if isinstance(error, QueueFull) else "the model does not answer"
        self._report(f"{why}; again in {pause:g} s", 1 - self.left_s / self._deadline_s)
        return pause


def _pauses() -> Iterator[float]:
    yield from RETRY_PAUSE_S
    while True:
        yield RETRY_PAUSE_S[-1]
