"""Writing a translation as a derived DICOM series that says it is synthetic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.valuerep import validate_value

from ctmr.errors import InputError
from ctmr.imaging.volume import Volume
from ctmr.io.dicom.frames import frames_of, is_enhanced
from ctmr.io.dicom.geometry import SlicePlane, planes_of
from ctmr.io.dicom.headers import TYPE_2, read_header
from ctmr.io.dicom.provenance import MANUFACTURER, PRIVATE_CREATOR, PRIVATE_GROUP, SyntheticProvenance
from ctmr.io.dicom.writing import (
    MrParameters,
    content_seed,
    frame_of_its_own,
    seeded_uid,
    set_display,
    set_modality_module,
    slice_images,
    stored_values,
    write_images,
)
from ctmr.io.signature import is_dicom

SERIES_NUMBER_OFFSET = 9000
"""Added to the source's SeriesNumber, so that viewers list the synthetic series after the acquired ones."""

LONGEST_TEXT = 10240
"""Characters of a value of VR LT."""

_PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "PatientPosition",
    "BodyPartExamined",
    "Laterality",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
"""Taken over: what must be one in a study (or a PACS splits the patient), the frame of reference, and past losses."""
_KEPT_EMPTY = (*TYPE_2, "PatientPosition")


def write_synthetic_series(
    folder: Path, volume: Volume, source: Sequence[pydicom.Dataset] | Path, provenance: SyntheticProvenance
) -> list[Path]:
    """Write a translation as a derived series of the source's study.

    Parameters
    ----------
    folder
        New or empty; appears complete or not at all.
    volume
        The translation, on any straight grid in the source's frame of reference. Its notes become ImageComments.
    source
        Datasets, folder or one multi-frame file of the series that was translated.
    provenance
        Written into a private block (group 0099, creator ``ctmr``) and, in words, into DerivationDescription.

    Returns
    -------
    list of Path
        Files in ascending order along the slice normal.

    Raises
    ------
    InputError
        When the modalities contradict the direction, or as `ctmr.io.dicom.write_series`.

    Notes
    -----
    Patient, study and frame of reference are the source's; nothing of the acquisition is taken over or made up:
    attributes such as KVP or EchoTime that must be there are empty. UIDs follow from source, provenance and voxels, so
    sending a translation twice does not make two series.

    Examples
    --------
    >>> from ctmr.imaging.volume import Modality, Unit
    >>> from ctmr.imaging.volume import Direction
    >>> from ctmr.io.dicom import read_provenance, read_series, write_series
    >>> mr = Volume(np.full((4, 8, 8), 300, np.uint16), np.eye(4), Modality.MR, Unit.ARBITRARY, subject="S01")
    >>> source = write_series(Path("mr"), mr)
    >>> ct = Volume(np.full((4, 8, 8), 40, np.int16), mr.affine, Modality.CT, Unit.HU)
    >>> model = SyntheticProvenance("head", "7", "ab" * 32, "run-1", "v1.0", "cd" * 16, "deadbeef", Direction.MR2CT)
    >>> files = write_synthetic_series(Path("ct"), ct, Path("mr"), model)
    >>> len(files), read_series(Path("ct")).subject, read_provenance(files[0]) == model
    (4, 'S01', True)
    """
    headers = _headers(source)
    first = headers[0]
    _check_direction(volume, str(first.get("Modality", "")), provenance)
    target, origin = provenance.direction.target.value, provenance.direction.source.value
    name = f"synthetic {target} of series {first.get('SeriesInstanceUID', '')}"
    stored = stored_values(volume, name)
    planes, order = planes_of(volume.require_affine(), stored.shape, name)
    slices = [stored[d] for d in order]
    words = [str(v) for v in asdict(provenance).values()]
    geometry = np.array2string(np.round(volume.require_affine(), 4))
    seed = content_seed(str(first.get("SeriesInstanceUID", "")), *words, geometry, array=stored)

    series = pydicom.Dataset()
    series.SpecificCharacterSet = "ISO_IR 192"
    _take_over(series, first)
    series.SeriesInstanceUID = seeded_uid(seed, "series")
    series.SeriesNumber = SERIES_NUMBER_OFFSET + _series_number(first)
    series.SeriesDescription = f"SYNTHETIC {target} (from {origin}) {provenance.model_name}"[:64]
    series.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if target == "CT" else "OTHER"]
    series.SyntheticData = "YES"
    series.BurnedInAnnotation = "NO"
    series.Manufacturer = MANUFACTURER
    series.ManufacturerModelName = provenance.model_name[:64]
    series.SoftwareVersions = [provenance.model_version[:64], provenance.code_revision[:64]]
    series.DerivationDescription = (
        f"Synthetic {target} computed from {origin} by ctmr model {provenance.model_name} version "
        f"{provenance.model_version}; not acquired by a scanner. ONNX sha256 {provenance.onnx_sha256}; training data "
        f"revision {provenance.dataset_revision}, md5 {provenance.dataset_md5}; run {provenance.run_id}"
    )[:1024]
    if volume.notes:
        # What the grid did not reach must be read by whoever looks at the image, not only by whoever made it.
        series.ImageComments = "; ".join(volume.notes)[:LONGEST_TEXT]
    series.ContributingEquipmentSequence = [_equipment(provenance)]
    set_modality_module(series, volume, MrParameters())
    set_display(series, volume, stored)
    _set_private_block(series, provenance)
    return write_images(folder, _with_sources(slice_images(series, planes, slices, seed), planes, headers))


def _headers(source: Sequence[pydicom.Dataset] | Path) -> list[pydicom.Dataset]:
    headers = list(source) if not isinstance(source, Path) else []
    if isinstance(source, Path):
        files = sorted(source.iterdir()) if source.is_dir() else [source]
        headers = [read_header(p) for p in files if p.is_file() and is_dicom(p)]
    if not headers:
        raise InputError(f"{source or 'the source'} holds no DICOM image; give the series that was translated")
    if 1 < len({str(h.get("SeriesInstanceUID", "")) for h in headers}) < len(headers):
        raise InputError("the source holds several series; give the one series that was translated")
    return headers


def _check_direction(volume: Volume, source_modality: str, provenance: SyntheticProvenance) -> None:
    direction = provenance.direction
    if source_modality != direction.source.value or volume.modality is not direction.target:
        raise InputError(
            f"the provenance says {direction}, but a {source_modality or 'nameless'} series was translated into a "
            f"{volume.modality}; give the matching source, volume and direction"
        )


def _take_over(series: pydicom.Dataset, source: pydicom.Dataset) -> None:
    for keyword in _PATIENT_AND_STUDY:
        if keyword in source:
            vr = dictionary_VR(keyword)
            values = [_valid(vr, text) for text in _stated(source, keyword)]
            if all(values) and values:
                # Without validation: an identifier that is too long must stay the one that the study has.
                value = values[0] if len(values) == 1 else values
                series.add(pydicom.DataElement(tag_for_keyword(keyword) or 0, vr, value, validation_mode=config.IGNORE))
                continue
        if keyword in _KEPT_EMPTY:
            setattr(series, keyword, "")
    if not series.get("FrameOfReferenceUID"):
        # The translation lies where its source does, and no other series says that it lies there too.
        series.FrameOfReferenceUID = frame_of_its_own(str(source.get("SeriesInstanceUID") or "").strip())
    if "BodyPartExamined" not in series and "Laterality" not in series:
        # Type 2C: without a body part nobody knows whether it is a paired one.
        series.Laterality = ""


def _stated(source: pydicom.Dataset, keyword: str) -> list[str]:
    """Return an attribute's values as text, also where they are not what its VR asks for."""
    try:
        value = source[keyword].value
    except Exception:
        # pydicom converts on access, and fails as variously as on a damaged file; the bytes still say something.
        raw = source.get_item(keyword).value
        value = raw.decode("latin-1").split("\\") if isinstance(raw, bytes) else raw
    several = value if isinstance(value, MultiValue | list) else [] if value is None else [value]
    return [str(v).strip(" \0") for v in several]


def _valid(vr: str, text: str) -> str:
    """Return a value as its VR asks for it, empty when it cannot be told.

    Names and identifiers stay as they are: they are what makes the study one. Dates with points are ACR-NEMA's.
    """
    match vr:
        case "LO" | "SH" | "PN" | "UI":
            return text
        case "CS":
            text = text.upper()
        case "DA":
            text = re.sub(r"^(\d{4})\.(\d\d)\.(\d\d)$", r"\1\2\3", text)
        case "DS":
            text = re.sub(r"^(\d+)(?:[.,](\d+))?(?::1)?$", lambda m: f"{m[1]}.{m[2] or 0}", text)
    try:
        validate_value(vr, text, config.RAISE)
    except ValueError:
        return ""
    return text


def _series_number(source: pydicom.Dataset) -> int:
    """Return SeriesNumber, 0 where it is none or leaves no room for `SERIES_NUMBER_OFFSET` in its 32 bits."""
    if "SeriesNumber" not in source:
        return 0
    text = "".join(_stated(source, "SeriesNumber"))
    number = int(text) if re.fullmatch(r"[+-]?\d{1,12}", text) else 0
    return number if 0 <= number < 2**31 - SERIES_NUMBER_OFFSET else 0


def _equipment(provenance: SyntheticProvenance) -> pydicom.Dataset:
    equipment = pydicom.Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code(codes.DCM.ProcessingEquipment)]
    equipment.Manufacturer = MANUFACTURER
    equipment.ManufacturerModelName = provenance.model_name[:64]
    equipment.SoftwareVersions = [provenance.model_version[:64], provenance.code_revision[:64]]
    equipment.ContributionDescription = f"image translation {provenance.direction.value}"
    return equipment


def _code(code: Any) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _set_private_block(series: pydicom.Dataset, provenance: SyntheticProvenance) -> None:
    block = series.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    for offset, value in enumerate(asdict(provenance).values()):
        block.add_new(offset, "LT", str(value))


def _with_sources(
    images: list[pydicom.Dataset], planes: list[SlicePlane], headers: list[pydicom.Dataset]
) -> list[pydicom.Dataset]:
    """Add to each image the source slice it lies nearest to; all source images when the planes differ in direction."""
    sources = [(h, f) for h in headers for f in frames_of(h, f"source {h.get('SOPInstanceUID', '')}")]
    parallel = abs(float(sources[0][1].plane.normal @ planes[0].normal)) > 1 - 1e-3
    along: NDArray[np.float64] = np.array([f.plane.position for _, f in sources]) @ planes[0].normal
    for image, plane in zip(images, planes, strict=True):
        if parallel:
            header, frame = sources[int(np.argmin(np.abs(along - plane.position @ plane.normal)))]
            image.SourceImageSequence = [_reference(header, frame.index + 1 if is_enhanced(header) else None)]
        else:
            image.SourceImageSequence = [_reference(h) for h in headers]
    return images


def _reference(header: pydicom.Dataset, frame: int | None = None) -> pydicom.Dataset:
    """Return the reference to an image, or to one frame of it, counted from 1."""
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.PurposeOfReferenceCodeSequence = [_code(codes.DCM.SourceImageForImageProcessingOperation)]
    return item
