"""Identity of an image's content: a digest of its decoded values, which a new name, header or compression keep."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import FORMATS, Holds, format_of, read_image

_BEGINNINGS = (
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x1f\x8b", ".nii.gz"),
    (344, b"n+1\0", ".nii"),
    (4, b"n+2\0", ".nii"),
)
"""Where a file holds which bytes → the suffix of its format."""


def content_digest(array: NDArray[np.generic]) -> str:
    """Return the sha256 of an image's values and shape, whichever type holds them."""
    digest = hashlib.sha256(repr(array.shape).encode())
    for part in array:
        digest.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
    return digest.hexdigest()


def read_whatever(path: Path) -> Volume:
    """Read an image of any name; one that does not say its modality comes as MR in arbitrary units.

    Raises
    ------
    InputError
        Nothing that `ctmr.io.read_image` reads.
    """
    with _named(path) as readable:
        kind = format_of(readable)
        if kind is None or FORMATS[kind].holds is Holds.SERIES:
            return read_image(readable)
        unit = Unit.ARBITRARY if FORMATS[kind].holds is Holds.VOLUME else None
        return read_image(readable, modality=Modality.MR, unit=unit)


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """Yield the path; for a file whose name does not tell its format, a link whose name does."""
    suffix = "" if path.is_dir() or not path.exists() else _suffix_of(path)
    if not suffix:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ctmr-") as folder:
        link = Path(folder) / f"image{suffix}"
        link.symlink_to(path.absolute())
        yield link


def _suffix_of(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(512)
    suffix = next((s for at, mark, s in _BEGINNINGS if start[at : at + len(mark)] == mark), "")
    return "" if path.name.lower().endswith(suffix) else suffix
