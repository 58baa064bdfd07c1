"""Files below a folder: no deeper than folders of images are, and without what macOS leaves beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from ctmr.errors import InputError

MAXIMUM_DEPTH = 64
"""More folders in each other than any archive of images has; beyond, a program that follows them would end."""
_RESOURCE_FORKS = "__MACOSX"
_APPLE_DOUBLE = "._"


def is_companion(relative: PurePath) -> bool:
    """True for what macOS keeps beside a file, on foreign disks (``._name``) and in zip archives (``__MACOSX/``).

    It has the file's name and suffix and is no image.
    """
    return any(part == _RESOURCE_FORKS or part.startswith(_APPLE_DOUBLE) for part in relative.parts)


def entries_below(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder that is no folder itself, in no order; links to folders are not followed.

    Raises
    ------
    InputError
        Folders nested deeper than `MAXIMUM_DEPTH`.
    """
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        if depth > MAXIMUM_DEPTH:
            raise InputError(
                f"{folder} holds folders nested more than {MAXIMUM_DEPTH} deep; give the folder of images itself"
            )
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((Path(entry.path), depth + 1))
                else:
                    yield Path(entry.path)


def files_of_images(folder: Path) -> list[Path]:
    """Return every file below a folder that could belong to an image, sorted; InputError as `entries_below`."""
    return sorted(p for p in entries_below(folder) if p.is_file() and not is_companion(p.relative_to(folder)))
