"""Plain folders: which files count, their md5 as DVC computes it, and a copy of exactly these files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ctmr.errors import InputError


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """Return (path relative to the folder, file) of every file below it, sorted; links are followed.

    Raises
    ------
    InputError
        A link that leads nowhere or back to a folder above it, a name that is not UTF-8, or what is no file (a
        socket, a device).
    """
    return sorted(_walk(folder, "", frozenset({folder.resolve()})))


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


def _walk(folder: Path, prefix: str, above: frozenset[Path]) -> Iterator[tuple[str, Path]]:
    for entry in os.scandir(folder):
        path, relative = Path(entry.path), prefix + entry.name
        try:
            relative.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(relative).decode("utf-8", "replace")
            raise InputError(f"the name of {shown} in {folder} is not UTF-8; rename the file") from None
        if entry.is_dir():
            real = path.resolve()
            if entry.is_symlink() and real in above:
                raise InputError(f"{path} is a link to {real}, a folder that holds it; remove the link")
            yield from _walk(path, relative + "/", above | {real})
        elif entry.is_file():
            yield relative, path
        elif entry.is_symlink():
            raise InputError(f"{path} is a link to {path.readlink()}, which is not there; remove or mend the link")
        else:
            raise InputError(f"{path} is neither a file nor a folder; remove it from the dataset")
