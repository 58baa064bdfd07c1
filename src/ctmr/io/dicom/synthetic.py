"""Writing a translation as a derived DICOM series that says it is synthetic, and reading its provenance back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Volume
from ctmr.io.dicom.frames import frames_of, is_enhanced
from ctmr.io.dicom.geometry import SlicePlane, planes_of
from ctmr.io.dicom.headers import TYPE_2, read_header
from ctmr.io.dicom.writing import (
    MANUFACTURER,
    MrParameters,
    content_seed,
    seeded_uid,
    set_display,
    set_modality_module,
    slice_images,
    stored_values,
    write_images,
)
from ctmr.io.signature import is_dicom

PRIVATE_GROUP = 0x0099
PRIVATE_CREATOR = "ctmr"
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
        Datasets or folder of the series that was translated.
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
    >>> from ctmr.io.dicom import read_series, write_series
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
    series.SeriesNumber = SERIES_NUMBER_OFFSET + int(first.get("SeriesNumber") or 0)
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


def read_provenance(path: Path) -> SyntheticProvenance:
    """Return the provenance of a synthetic file, or of the first file of a folder.

    Raises
    ------
    InputError
        When the file was not written by `write_synthetic_series`.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and is_dicom(p))
        if not files:
            raise InputError(f"{path} holds no DICOM file; give a synthetic series that ctmr wrote")
        path = files[0]
    header = read_header(path)
    try:
        block = header.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
        values = {f.name: str(block[k].value) for k, f in enumerate(fields(SyntheticProvenance))}
        direction = Direction(values.pop("direction"))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} carries no provenance of ctmr (private block {PRIVATE_GROUP:04X} {PRIVATE_CREATOR!r}); "
            "give a synthetic series that ctmr wrote"
        ) from error
    return SyntheticProvenance(**values, direction=direction)


def _headers(source: Sequence[pydicom.Dataset] | Path) -> list[pydicom.Dataset]:
    headers = list(source) if not isinstance(source, Path) else []
    if isinstance(source, Path):
        if not source.is_dir():
            raise InputError(f"{source} is not a folder; give the folder of the series that was translated")
        headers = [read_header(p) for p in sorted(source.iterdir()) if p.is_file() and is_dicom(p)]
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
            value = source[keyword].value
            # Text goes through str, so that names in another character set are encoded anew as UTF-8.
            multiple = isinstance(value, pydicom.multival.MultiValue)
            setattr(series, keyword, list(value) if multiple else "" if value is None else str(value))
        elif keyword in _KEPT_EMPTY:
            setattr(series, keyword, "")
    if "BodyPartExamined" not in series and "Laterality" not in series:
        # Type 2C: without a body part nobody knows whether it is a paired one.
        series.Laterality = ""


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
