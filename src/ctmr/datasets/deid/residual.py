"""Search for what in a file still identifies a patient: names of attributes, never their values."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from ctmr.data.manifest import RECOGNIZABLE_FACES
from ctmr.io import FORMATS

IDENTIFYING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientMotherBirthName",
    "PatientBirthName",
    "OtherPatientIDs",
    "OtherPatientNames",
    "OtherPatientIDsSequence",
    "MilitaryRank",
    "MedicalRecordLocator",
    "PatientComments",
    "PatientInsurancePlanCodeSequence",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "NameOfPhysiciansReadingStudy",
    "RequestingPhysician",
    "InstitutionName",
    "InstitutionAddress",
    "ResponsiblePerson",
    "RequestAttributesSequence",
)
"""Attributes that tell who a patient is; they may be filled only where (0012,0062) says that the identity is gone."""
NEVER = frozenset(
    {
        "PatientAddress",
        "PatientTelephoneNumbers",
        "PatientMotherBirthName",
        "PatientBirthName",
        "OtherPatientNames",
        "OtherPatientIDs",
    }
)
"""Attributes that no de-identified file has, whatever it says of itself."""
_EXIF = {
    270: "ImageDescription",
    315: "Artist",
    33432: "Copyright",
    37510: "UserComment",
    40091: "XPTitle",
    40092: "XPComment",
    40093: "XPAuthor",
    40094: "XPKeywords",
    40095: "XPSubject",
    42032: "CameraOwnerName",
    34853: "GPSInfo",
}
_EXIF_IFD = 34665
_HARMLESS_PNG_TEXT = frozenset({"Software", "Creation Time", "date:create", "date:modify", "date:timestamp"})
_BLOCKS = {"comment": "comment", "photoshop": "photoshop", "xmp": "xmp", "XML:com.adobe.xmp": "xmp"}
_NIFTI_START_BYTES = 544
_MOST_EXTENSIONS = 10_000
"""More than any file has; damaged sizes would else make millions of them."""
_EXTENSIONS = {2: "DICOM extension", 6: "comment extension", 4: "AFNI extension", 10: "XCEDE extension"}


def remaining(kind: str, files: Iterable[Path]) -> tuple[str, ...]:
    """Return the names of attributes that identify a patient, sorted, in a series or file.

    Parameters
    ----------
    kind
        A key of `ctmr.io.FORMATS`. Of a format that is not known here its module's ``identifying`` is asked.
    files
        All files of the series, or the file. What cannot be read has nothing to say.
    """
    look: Callable[[Path], set[str]] | None = _LOOK.get(kind) or getattr(FORMATS[kind].reader, "identifying", None)
    if look is None:
        return ()
    found: set[str] = set()
    for file in files:
        try:
            found |= look(file)
        except Exception:
            # A damaged file is another finding, and its reader names the reason.
            continue
    return tuple(sorted(found))


def _in_dicom(file: Path) -> set[str]:
    import pydicom

    from ctmr.datasets.deid.dicom import quiet_pydicom
    from ctmr.io.dicom.headers import opened

    with quiet_pydicom():
        wanted = [*IDENTIFYING, "PatientIdentityRemoved", RECOGNIZABLE_FACES]
        with opened(file) as stream:
            header = pydicom.dcmread(stream, force=True, stop_before_pixels=True, specific_tags=wanted)
        removed = str(header.get("PatientIdentityRemoved", "")).strip().upper() == "YES"
        found = {k for k in (NEVER if removed else IDENTIFYING) if _filled(header, k)}
        if str(header.get(RECOGNIZABLE_FACES, "")).strip().upper() == "YES":
            found.add(RECOGNIZABLE_FACES)
        return found


def _filled(header: object, keyword: str) -> bool:
    value = getattr(header, keyword, None)
    if value is None:
        return False
    return bool(len(value)) if keyword.endswith("Sequence") else bool(str(value).strip(" ^\0"))


def _in_nifti(file: Path) -> set[str]:
    from ctmr.io.nifti import MAXIMUM_OFFSET, header_of

    with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as stream:
        header = header_of(stream.read(_NIFTI_START_BYTES))
        offset, end = header.template_dtype.itemsize, min(int(header["vox_offset"]), MAXIMUM_OFFSET)
        stream.seek(offset)
        codes = set()
        # NIfTI-1 "extension": a flag, then size and code of one after the other up to the voxels.
        more, offset = stream.read(4)[:1] != b"\0", offset + 4
        for _ in range(_MOST_EXTENSIONS):
            if not more or offset + 8 > end:
                break
            size, code = struct.unpack(f"{header.endianness}2i", stream.read(8))
            codes.add(code)
            offset += max(size, 8)
            stream.seek(offset)
    found = {_EXTENSIONS[code] for code in codes if code in _EXTENSIONS}
    if "db_name" in header.keys() and bytes(header["db_name"]).strip(b"\0 "):  # noqa: SIM118 (a header is no mapping)
        found.add("db_name")
    return found


def _in_picture(file: Path) -> set[str]:
    from PIL import Image

    from ctmr.io.raster import MAXIMUM_PIXELS

    with Image.open(file, formats=("PNG", "JPEG")) as image:
        if image.width * image.height > MAXIMUM_PIXELS:
            # Its text may stand behind the pixels, which would be decoded; the reader refuses it anyway.
            return set()
        exif = image.getexif()
        tags = {*exif, *exif.get_ifd(_EXIF_IFD)}
        found = {f"EXIF {_EXIF[t]}" for t in tags if t in _EXIF}
        found |= {_BLOCKS[k] for k in image.info if k in _BLOCKS}
        text = getattr(image, "text", {}) if image.format == "PNG" else {}
        return found | {f"PNG {_safe(k)}" for k in text if k not in _HARMLESS_PNG_TEXT and k not in _BLOCKS}


def _safe(keyword: str) -> str:
    """A PNG keyword is free text too: only the registered ones are repeated."""
    registered = ("Title", "Author", "Description", "Copyright", "Disclaimer", "Warning", "Source", "Comment")
    return keyword if keyword in registered else "text"


_LOOK: dict[str, Callable[[Path], set[str]]] = {"dicom": _in_dicom, "nifti": _in_nifti, "raster": _in_picture}
