"""Registries: the names that a recipe may give to a key, and the code behind each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class Registry(Mapping[str, Any]):
    """Name → code, one row each.

    Parameters
    ----------
    rows
        Code as ``module:name``, which is imported when it is asked for: reading a recipe needs none of it.
    """

    def __init__(self, rows: Mapping[str, str]) -> None:
        self._rows: dict[str, Any] = dict(rows)

    def __getitem__(self, name: str) -> Any:
        row = self._rows[name]
        if not isinstance(row, str):
            return row
        module, _, attribute = row.partition(":")
        return getattr(import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def require(self, name: str) -> str:
        """Return a name that has a row; ValueError, for pydantic, where it has none."""
        if name not in self._rows:
            raise ValueError(f"should be one of {', '.join(self._rows)}")
        return name

    @contextmanager
    def added(self, name: str, code: Any) -> Iterator[None]:
        """Hold one more row for a while: code itself, or ``module:name``."""
        if name in self._rows:
            raise ValueError(f"{name} has a row already")
        self._rows[name] = code
        try:
            yield
        finally:
            del self._rows[name]
