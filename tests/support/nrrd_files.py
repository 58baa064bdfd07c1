"""A format that the package does not have, NRRD by SimpleITK: the example of docs/extending.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ctmr.errors import InputError
from ctmr.imaging.steps.itk import RAS_LPS, simple_itk, to_itk
from ctmr.imaging.volume import Modality, Unit, Volume


def read(path: Path, *, modality: Modality, unit: Unit | None = None, subject: str = "") -> Volume:
    """Read one NRRD file; a CT is in Hounsfield units."""
    sitk = simple_itk()
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as NRRD; export it again") from error
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = axes[:, ::-1], image.GetOrigin()
    unit = unit or (Unit.HU if modality is Modality.CT else Unit.ARBITRARY)
    return Volume(sitk.GetArrayFromImage(image), RAS_LPS @ lps, modality, unit, subject)


def write(path: Path, volume: Volume, *, text: Mapping[str, str] | None = None) -> Path:
    """Write a volume, with each keyword as a field of the header."""
    image = to_itk(volume)
    for keyword, value in (text or {}).items():
        image.SetMetaData(keyword, value)
    simple_itk().WriteImage(image, str(path))
    return path


def identifying(path: Path) -> set[str]:
    """Return the names of fields that tell who the patient is."""
    image = simple_itk().ReadImage(str(path))
    return {key for key in image.GetMetaDataKeys() if "patient" in key.lower()}
