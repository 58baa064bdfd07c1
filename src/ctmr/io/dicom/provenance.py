"""Origin of a DICOM image: a model that says so, a phantom, or a scanner."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pydicom

from ctmr.errors import InputError
from ctmr.imaging.origin import PHANTOM_PREFIX, Synthetic, says_synthetic
from ctmr.imaging.volume import Direction
from ctmr.io.dicom.headers import read_header
from ctmr.io.signature import is_dicom

PRIVATE_GROUP = 0x0099
PRIVATE_CREATOR = "ctmr"
MANUFACTURER = "ctmr"
PHANTOM_WORD = "PHANTOM"
"""First word of the SeriesDescription of a phantom."""
_DESCRIPTIONS = ("SeriesDescription", "DerivationDescription", "ImageComments", "ProtocolName")


@dataclass(frozen=True)
class SyntheticProvenance:
    """Origin of a synthetic series: the model, the data that made it and the code.

    Attributes
    ----------
    model_name, model_version
        Registered model.
    onnx_sha256
        Of the generator's ONNX file.
    run_id
        Tracking run that trained it.
    dataset_revision, dataset_md5
        Version of the training data.
    code_revision
        Of ctmr.
    direction
        Which modality was translated into which.
    """

    model_name: str
    model_version: str
    onnx_sha256: str
    run_id: str
    dataset_revision: str
    dataset_md5: str
    code_revision: str
    direction: Direction


def read_provenance(path: Path) -> SyntheticProvenance:
    """Return the provenance of a synthetic file, or of the first file of a folder.

    Raises
    ------
    InputError
        When the file was not written by `ctmr.io.dicom.write_synthetic_series`.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and is_dicom(p))
        if not files:
            raise InputError(f"{path} holds no DICOM file; give a synthetic series that ctmr wrote")
        path = files[0]
    provenance = provenance_of(read_header(path))
    if provenance is None:
        raise InputError(
            f"{path} carries no provenance of ctmr (private block {PRIVATE_GROUP:04X} {PRIVATE_CREATOR!r}); "
            "give a synthetic series that ctmr wrote"
        )
    return provenance


def provenance_of(header: pydicom.Dataset) -> SyntheticProvenance | None:
    """Return the provenance that ctmr wrote into a header, ``None`` when it has none."""
    try:
        block = header.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
        values = {f.name: _plain(block[k].value) for k, f in enumerate(fields(SyntheticProvenance))}
        return SyntheticProvenance(**{**values, "direction": Direction(values["direction"])})  # type: ignore[arg-type]
    except (KeyError, ValueError):
        return None


def origin_of(header: pydicom.Dataset) -> Synthetic | None:
    """Return what a header says when a model made the image, ``None`` for what was acquired and for phantoms.

    An archive keeps what it likes: the private block first, then SyntheticData (0008,001C), then descriptions, then
    that ctmr derived it.
    """
    provenance = provenance_of(header)
    if provenance is not None:
        target = provenance.direction.target
        words = f"SYNTHETIC {target} by {provenance.model_name} version {provenance.model_version}"
        return Synthetic(words, {k: str(v) for k, v in vars(provenance).items()})
    if is_phantom(header):
        return None
    if _text(header, "SyntheticData").upper() == "YES":
        return Synthetic("SyntheticData YES")
    for keyword in _DESCRIPTIONS:
        if says_synthetic(_text(header, keyword), _text(header, "Modality")):
            # The text itself may name a patient.
            return Synthetic(f"its {keyword} says so")
    derived = _text(header, "ImageType").upper().startswith("DERIVED")
    if derived and _text(header, "Manufacturer") == MANUFACTURER:
        return Synthetic(f"derived by {MANUFACTURER}")
    return None


def is_phantom(header: pydicom.Dataset) -> bool:
    """Return whether a header says that the image shows a phantom.

    QualityControlImage (0028,0300) says so by the standard; a phantom that ctmr drew also has SyntheticData YES and its
    name for one.
    """
    if _text(header, "QualityControlImage").upper() == "YES":
        return True
    named = _text(header, "PatientID").startswith(PHANTOM_PREFIX)
    described = _text(header, "SeriesDescription").upper().startswith(PHANTOM_WORD)
    return _text(header, "SyntheticData").upper() == "YES" and (named or described)


def _text(header: pydicom.Dataset, keyword: str) -> str:
    """Return an attribute as text, several values with backslashes; empty where its bytes are damaged."""
    try:
        value = header.get(keyword)
    except Exception:
        # Values are converted on access, and that fails as variously as reading does.
        return ""
    return "" if value is None else _plain(value)


def _plain(value: object) -> str:
    several = isinstance(value, pydicom.multival.MultiValue)
    return "\\".join(str(v) for v in value).strip() if several else str(value).strip()  # type: ignore[attr-defined]
