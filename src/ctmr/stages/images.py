"""Reading one row of an inventory: the same path for fetch, preprocess and evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import InputError
from ctmr.manifest import Column
from ctmr.volume import Modality, Unit, Volume

if TYPE_CHECKING:
    import pandas as pd

_MR_WORDS = frozenset({"mr", "mri", "t1", "t2", "t1c", "t1w", "t2w", "flair", "pd"})
_SEQUENCES = {"t1": "T1", "t1w": "T1", "t2": "T2", "t2w": "T2", "flair": "FLAIR", "pd": "PD", "t1c": "T1C"}
HU_EVIDENCE = -500
"""A CT whose lowest value is above this shows no air in Hounsfield units (Cormack units, rescaled pictures)."""


def words(relative: Path) -> list[str]:
    """Return the lower-case words of a path's folders and file name."""
    text = relative.as_posix().lower()
    for mark in "/-. ":
        text = text.replace(mark, "_")
    return [w for w in text.split("_") if w]


def modality_of(relative: Path) -> Modality:
    """Guess the modality from folder and file names, or raise InputError saying which names are understood."""
    found = words(relative)
    is_ct, is_mr = "ct" in found, bool(_MR_WORDS & set(found))
    if is_ct == is_mr:
        raise InputError(
            f"the modality of {relative} cannot be told from its path; put CT images below a folder CT and MR below MR"
        )
    return Modality.CT if is_ct else Modality.MR


def sequence_of(relative: Path) -> str | None:
    """Guess the MR sequence from folder and file names."""
    return next((_SEQUENCES[w] for w in reversed(words(relative)) if w in _SEQUENCES), None)


def read(raw: Path, row: Mapping[str, Any]) -> Volume:
    """Return the volume of an inventory row: its path, format, modality and subject say how to read it."""
    from ctmr.io import dicom, nifti, raster

    folder, _, series = str(row[Column.PATH]).partition("#")
    path = raw / folder
    kind = row[Column.FORMAT]
    if kind == "dicom":
        return dicom.read_series(dicom.group_series(path)[series] if series else path)
    modality, subject = Modality(row[Column.MODALITY]), str(row[Column.SUBJECT])
    if kind == "raster":
        return raster.read(path, modality=modality, subject=subject)
    volume = nifti.read(path, modality=modality, unit=Unit.ARBITRARY, subject=subject, sequence=row[Column.SEQUENCE])
    if modality is Modality.CT and float(volume.array.min()) <= HU_EVIDENCE:
        return Volume(volume.array, volume.affine, modality, Unit.HU, subject, None, volume.uid)
    return volume


def rows(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    """Return a manifest's rows as mappings."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
