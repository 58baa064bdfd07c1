"""Digests: what a file, a folder or a plain tree contains, as one sha256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctmr.errors import InputError

PROVENANCE = "provenance"
"""Folder of a stage's output that never counts: seconds, host, run ids, HTML, signatures."""


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """Return the sha256 over the sorted relative paths and bytes of a folder's files, or of one file.

    The top-level folder `PROVENANCE` does not count, so a rerun with equal content stops the cascade.

    Raises
    ------
    InputError
        When the path does not exist, or the folder holds a link, which could point anywhere.
    """
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        raise InputError(f"there is nothing at {path}; a file or folder was expected")
    total = hashlib.sha256()
    for entry in sorted(path.rglob("*"), key=lambda p: p.relative_to(path).as_posix()):
        relative = entry.relative_to(path)
        if relative.parts[0] == PROVENANCE:
            continue
        if entry.is_symlink():
            raise InputError(f"{entry} is a symbolic link; a stage's output holds plain files only")
        if entry.is_file():
            name = os.fsencode(relative.as_posix())
            total.update(f"{len(name)}:".encode() + name + b"\0" + bytes.fromhex(file_digest(entry)))
    return total.hexdigest()


def tree_digest(tree: Any) -> str:
    """Return the sha256 of a tree of plain JSON types, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree's leaves by dotted path."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{key}."))
        else:
            out[prefix + key] = value
    return out
