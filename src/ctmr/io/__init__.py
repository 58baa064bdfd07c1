"""Readers and writers of medical and raster images, one row a format; `read_image` finds the right one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io.signature import DICOM_SUFFIXES, is_dicom


class Holds(StrEnum):
    """Kind of image that a format holds."""

    SERIES = "series"
    """Many files, whose headers say what the image is: DICOM, read by `ctmr.io.dicom.read_series`."""
    VOLUME = "volume"
    """A file with geometry."""
    PICTURE = "picture"
    """A file of 8-bit grey levels without geometry."""


class Reader(Protocol):
    """Functions that the module of a format defines; `write` only where the row names a suffix that is written."""

    def read(self, path: Path, *, modality: Modality, unit: Unit | None = None, subject: str = "") -> Volume:
        """Read one file; InputError, naming it, when it is damaged. Without `unit` the reader knows or guesses it."""

    def write(self, path: Path, volume: Volume, *, text: Mapping[str, str] | None = None) -> Path:
        """Write one new file, with keyword → text where the format holds text."""


@dataclass(frozen=True)
class Format:
    """A file format: all that the package knows of it.

    Attributes
    ----------
    title
        Its name in a sentence.
    holds
        What one image is.
    suffixes
        Of its files, lower case.
    module
        Where its `Reader` is; imported with the first file.
    written
        Suffix that its writer gives; empty: it is only read.
    begins
        True of a file of any name that begins as this format does.
    imported
        Suffixes that `ctmr dataset add` converts to this format; they are not read otherwise.
    """

    title: str
    holds: Holds
    suffixes: tuple[str, ...]
    module: str
    written: str = ""
    begins: Callable[[Path], bool] | None = None
    imported: tuple[str, ...] = ()

    @property
    def reader(self) -> Reader:
        """The module of the format."""
        return cast(Reader, import_module(self.module))


FORMATS: dict[str, Format] = {
    "dicom": Format("DICOM", Holds.SERIES, DICOM_SUFFIXES, "ctmr.io.dicom", begins=is_dicom),
    "nifti": Format("NIfTI", Holds.VOLUME, (".nii", ".nii.gz"), "ctmr.io.nifti", ".nii.gz", imported=(".mha",)),
    "raster": Format("PNG or JPEG", Holds.PICTURE, (".png", ".jpg", ".jpeg"), "ctmr.io.raster", ".png"),
}
"""Format, as the inventory names it → its row. A folder is a DICOM series."""


def format_of(path: Path) -> str | None:
    """Return the format of a folder or file by its name, or by how it begins; ``None`` when it is none."""
    if path.is_dir():
        return "dicom"
    if named := format_named(path.name):
        return named
    return next((k for k, f in FORMATS.items() if f.begins is not None and path.is_file() and f.begins(path)), None)


def format_named(name: str, *, imported: bool = False) -> str | None:
    """Return the format that a file's name says, with `imported` also one that it is converted to."""
    suffixes = {kind: row.suffixes + (row.imported if imported else ()) for kind, row in FORMATS.items()}
    return next((kind for kind, some in suffixes.items() if name.lower().endswith(some)), None)


def known_suffixes(*, imported: bool = False) -> str:
    """Return the suffixes of all formats, for a sentence."""
    return ", ".join(s for row in FORMATS.values() for s in row.suffixes + (row.imported if imported else ()))


def read_image(path: Path, *, modality: Modality | None = None, unit: Unit | None = None, subject: str = "") -> Volume:
    """Read a DICOM folder or file, or a file of any other of `FORMATS`.

    Parameters
    ----------
    path
        What to read.
    modality
        Needed for all but DICOM, whose headers tell; for DICOM, refuses any other.
    unit
        Unit of a NIfTI file; ``None``: HU for a CT that shows air in Hounsfield units, else arbitrary. Where given,
        other formats must agree.
    subject
        Pseudonym; empty keeps what a DICOM header says.

    Raises
    ------
    InputError
        A path that is not there or of no known format, a missing modality, or as the reader of the format.

    Examples
    --------
    >>> import numpy as np
    >>> ct = Volume(np.full((4, 8, 8), -1000, np.int16), np.eye(4), Modality.CT, Unit.HU)
    >>> path = FORMATS["nifti"].reader.write(Path("head.nii.gz"), ct)
    >>> head = read_image(path, modality=Modality.CT)
    >>> head.array.shape, head.unit.value
    ((4, 8, 8), 'HU')
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}; check the path")
    kind = format_of(path)
    if kind is None:
        raise InputError(f"{path} is of no known format; give a DICOM folder or a file ending in {known_suffixes()}")
    if FORMATS[kind].holds is Holds.SERIES:
        from ctmr.io.dicom import read_series

        volume = read_series(path if path.is_dir() else [path], modality=modality)
        volume = replace(volume, subject=subject or volume.subject)
    elif modality is None:
        raise InputError(f"{path} does not say its modality; give CT or MR")
    else:
        volume = FORMATS[kind].reader.read(path, modality=modality, unit=unit, subject=subject)
    if unit is not None and volume.unit is not unit:
        raise InputError(f"{path} is in unit {volume.unit}, not {unit}; only a NIfTI file can be told its unit")
    return volume
