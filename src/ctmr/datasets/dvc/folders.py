"""Plain folders: which files count, their md5 as DVC computes it, and a copy of exactly these files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from ctmr.errors import InputError
from ctmr.system.walk import entries_below


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """Return (path relative to the folder, file) of every file below it, sorted; a link to one of them is a file too.

    Raises
    ------
    InputError
        A link that leads nowhere, out of the folder or to a folder, a name that is not UTF-8, what is no file (a
        socket, a device), or folders nested too deep.
    """
    return sorted((_checked(folder, path), path) for path in entries_below(folder))


def folder_md5(folder: Path) -> str:
    """Return the md5 that DVC gives a folder: over the sorted JSON list of its files' md5s."""
    entries = [{"md5": file_md5(file), "relpath": relative} for relative, file in files_below(folder)]
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def copy_folder(folder: Path, target: Path) -> None:
    """Copy the files of `files_below`, linked ones as files, into a new folder."""
    target.mkdir(parents=True)
    for relative, file in files_below(folder):
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / relative)


def file_md5(file: Path) -> str:
    """Return the md5 of a file's bytes, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def refuse_link(folder: Path, path: Path) -> None:
    """Raise InputError when a path below a folder is a link, unless to a file of that folder."""
    if not path.is_symlink():
        return
    if not path.exists():
        raise InputError(f"{path} is a link to {path.readlink()}, which is not there; remove or mend the link")
    real, root = path.resolve(), folder.resolve()
    if real in (root, *path.parent.resolve().parents):
        raise InputError(f"{path} is a link to {real}, a folder that holds it; remove the link")
    if not real.is_relative_to(root):
        raise InputError(f"{path} is a link to {real}, outside {folder}; copy what it leads to, or remove the link")
    if real.is_dir():
        raise InputError(f"{path} is a link to a folder, which would be taken in twice; remove the link")


def _checked(folder: Path, path: Path) -> str:
    """Return a path relative to the dataset; InputError unless it is a file of it."""
    relative = path.relative_to(folder).as_posix()
    try:
        relative.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(relative).decode("utf-8", "replace")
        raise InputError(f"the name of {shown} in {folder} is not UTF-8; rename the file") from None
    refuse_link(folder, path)
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder; remove it from the dataset")
    return relative
