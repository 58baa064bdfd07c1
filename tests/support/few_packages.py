"""Which packages a GPU machine lacks: all but a few and what those need."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

ALLOWED = ("torch", "numpy", "scipy", "pydantic")


def distributions_of(names: Iterable[str]) -> set[str]:
    """The distributions and everything that they need."""
    seen, waiting = set(), list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        seen.add(name)
        waiting += [re.match(r"[\w.-]+", text).group() for text in needed if "extra ==" not in text]
    return seen


def blocked_packages(*besides: str) -> list[str]:
    """Return the installed modules that do not belong to the allowed packages, nor to those given besides."""
    allowed = distributions_of((*ALLOWED, *besides))
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if module not in ("ctmr", "_distutils_hack")
        and not allowed & {re.sub(r"[-_.]+", "-", o).lower() for o in owners}
    )
