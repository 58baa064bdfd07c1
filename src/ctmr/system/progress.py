"""Progress: where long work says what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Callback by which long work says what it is doing; `fraction` in [0, 1] drives a progress bar."""

    def __call__(self, message: str, fraction: float | None = None) -> None: ...


def silent(message: str, fraction: float | None = None) -> None:
    """Tell nobody."""
