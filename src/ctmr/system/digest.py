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
    return file_digest(path) if path.is_file() else combined(content_digests(path))


def content_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file that counts for a folder's `content_digest`, by relative path.

    Raises
    ------
    InputError
        As of `content_digest`.
    """
    if not folder.is_dir():
        raise InputError(f"there is nothing at {folder}; a file or folder was expected")
    found = {}
    for entry in folder.rglob("*"):
        relative = entry.relative_to(folder)
        if relative.parts[0] == PROVENANCE:
            continue
        if entry.is_symlink():
            raise InputError(f"{entry} is a symbolic link; a stage's output holds plain files only")
        if entry.is_file():
            found[relative.as_posix()] = file_digest(entry)
    return found


def combined(digests: Mapping[str, str]) -> str:
    """Return the `content_digest` of a folder that holds these files.

    Raises
    ------
    ValueError
        Something is no sha256.
    """
    total = hashlib.sha256()
    for path, digest in sorted(digests.items()):
        name = os.fsencode(path)
        total.update(f"{len(name)}:".encode() + name + b"\0" + bytes.fromhex(digest))
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
