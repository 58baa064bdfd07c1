"""Readers and writers of medical and raster images; `read_image` finds the right one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io.signature import DICOM_SUFFIXES, is_dicom

FORMATS: dict[str, tuple[str, ...]] = {
    "dicom": DICOM_SUFFIXES,
    "nifti": (".nii", ".nii.gz"),
    "raster": (".png", ".jpg", ".jpeg"),
}
"""Format → suffixes of its files. A folder is a DICOM series; so is a file that begins as one, whatever its name."""


def format_of(path: Path) -> str | None:
    """Return the format of a folder or file by its name, or by how it begins; ``None`` when it is none."""
    if path.is_dir():
        return "dicom"
    for name, suffixes in FORMATS.items():
        if path.name.lower().endswith(suffixes):
            return name
    return "dicom" if path.is_file() and is_dicom(path) else None


def read_image(path: Path, *, modality: Modality | None = None, unit: Unit | None = None, subject: str = "") -> Volume:
    """Read a DICOM folder or file, a NIfTI file or a picture.

    Parameters
    ----------
    path
        What to read.
    modality
        Needed for NIfTI and pictures, whose headers do not tell; for DICOM, refuses any other.
    unit
        Unit of a NIfTI file; ``None``: HU for a CT that shows air in Hounsfield units, else arbitrary. Where given,
        other formats must agree.
    subject
        Pseudonym; empty keeps what a DICOM header says.

    Raises
    ------
    InputError
        A path that is not there or of no known format, a missing modality, or as the reader of the format.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}; check the path")
    kind = format_of(path)
    if kind is None:
        known = ", ".join(s for suffixes in FORMATS.values() for s in suffixes)
        raise InputError(f"{path} is of no known format; give a DICOM folder or a file ending in {known}")
    if kind == "dicom":
        from ctmr.io.dicom import read_series

        volume = read_series(path if path.is_dir() else [path], modality=modality)
        volume = replace(volume, subject=subject or volume.subject)
    elif modality is None:
        raise InputError(f"{path} does not say its modality; give CT or MR")
    elif kind == "nifti":
        from ctmr.io import nifti

        volume = nifti.read(path, modality=modality, unit=unit, subject=subject)
    else:
        from ctmr.io import raster

        volume = raster.read(path, modality=modality, subject=subject)
    if unit is not None and volume.unit is not unit:
        raise InputError(f"{path} is in unit {volume.unit}, not {unit}; only a NIfTI file can be told its unit")
    return volume
