"""Writing a Volume as a DICOM series: CT Image Storage or MR Image Storage, one file a slice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io.dicom.geometry import SlicePlane, planes_of
from ctmr.io.dicom.provenance import MANUFACTURER
from ctmr.io.values import hounsfield_int16, require_finite
from ctmr.system.files import new_folder

IMPLEMENTATION_VERSION = "CTMR_0_1"
RESCALED_MAXIMUM = 60000
"""Where the maximum of an MR volume goes that 16 unsigned bits cannot hold as it is; an MR scale means nothing."""
DEIDENTIFICATION_METHOD = "ctmr: every attribute written anew, none taken over"

CT_WINDOW_HU = (40.0, 400.0)
"""Centre and width that a viewer opens a CT with."""


@dataclass(frozen=True)
class MrParameters:
    """Acquisition as an MR header has it; ``None`` and empty stay empty.

    Attributes
    ----------
    repetition_time_ms, echo_time_ms, inversion_time_ms
        TR, TE, TI.
    flip_angle_deg
        Flip angle.
    magnetic_field_t
        Field strength.
    scanning_sequence, sequence_variant
        Defined terms of PS3.3 C.8.3.1: SE, IR, GR, EP, RM and SK, MTC, SS, TRSS, SP, MP, OSP, NONE.
    sequence_name
        Free name, e.g. ``T1``; goes to SequenceName and, when the volume names no sequence, to ProtocolName.
    """

    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    magnetic_field_t: float | None = None
    scanning_sequence: str = "RM"
    sequence_variant: str = "NONE"
    sequence_name: str = ""


def seeded_uid(*parts: str) -> str:
    """Return the UID that belongs to these words: always the same."""
    return str(generate_uid(entropy_srcs=["\x1f".join(parts)]))


def frame_of_its_own(series_uid: str) -> str:
    """Return the FrameOfReferenceUID of a series whose source had none: the standard asks for one.

    It follows from the SeriesInstanceUID beside it, so whoever reads it knows that it says nothing of other series.
    """
    return seeded_uid(series_uid, "frame of reference")


def frame_told(header: pydicom.Dataset) -> str:
    """Return the frame of reference that a header names; empty where it names none, or only its own."""
    named = str(header.get("FrameOfReferenceUID") or "").strip()
    return "" if named == frame_of_its_own(str(header.get("SeriesInstanceUID") or "").strip()) else named


def write_series(
    folder: Path,
    volume: Volume,
    *,
    uid_seed: str | None = None,
    study_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    study_date: date | None = None,
    series_number: int = 1,
    description: str = "",
    body_part: str = "HEAD",
    mr: MrParameters | None = None,
    synthetic_data: bool = False,
) -> list[Path]:
    """Write a volume as one de-identified series, Explicit VR Little Endian.

    Parameters
    ----------
    folder
        New or empty; appears complete or not at all.
    volume
        CT in HU (rounded to int16) or MR in arbitrary units (stored as it is where 16 bits hold it, otherwise mapped
        linearly to 0…60000: an MR image has no rescale), with an affine of any straight orientation.
    uid_seed
        Makes every UID, and so every byte, a function of the input; ``None`` draws random UIDs.
    study_uid, frame_of_reference_uid
        Given by who writes several series of one study; otherwise new.
    study_date
        Date of study, series and content; ``None`` leaves them empty.
    series_number, description
        SeriesNumber, SeriesDescription (at most 64 characters).
    body_part
        BodyPartExamined, a defined term of PS3.16 Annex L.
    mr
        Acquisition parameters of an MR.
    synthetic_data
        True for a phantom: SyntheticData (0008,001C) YES.

    Returns
    -------
    list of Path
        Files in ascending order along the slice normal. Where D runs against rows × columns, that is reverse order.

    Raises
    ------
    InputError
        Sheared affine, no geometry, grey levels, values beyond 16 bits, or a folder that is in use.
    """
    name = f"series {volume.uid or description or volume.subject or folder.name!r}"
    stored = stored_values(volume, name)
    planes, order = planes_of(volume.require_affine(), stored.shape, name)

    def uid(kind: str) -> str:
        return str(generate_uid()) if uid_seed is None else seeded_uid(uid_seed, kind)

    series = pydicom.Dataset()
    series.SpecificCharacterSet = "ISO_IR 192"
    series.PatientName = ""
    series.PatientID = volume.subject
    series.PatientBirthDate = ""
    series.PatientSex = ""
    series.PatientIdentityRemoved = "YES"
    series.DeidentificationMethod = DEIDENTIFICATION_METHOD
    series.StudyInstanceUID = study_uid or uid("study")
    series.StudyDate = series.SeriesDate = series.ContentDate = "" if study_date is None else f"{study_date:%Y%m%d}"
    series.StudyTime = series.SeriesTime = series.ContentTime = "" if study_date is None else "000000"
    series.StudyID = ""
    series.AccessionNumber = ""
    series.ReferringPhysicianName = ""
    series.SeriesInstanceUID = uid("series")
    series.SeriesNumber = series_number
    series.SeriesDescription = description[:64]
    series.FrameOfReferenceUID = frame_of_reference_uid or uid("frame of reference")
    series.PositionReferenceIndicator = ""
    series.PatientPosition = ""
    series.Manufacturer = MANUFACTURER
    series.BodyPartExamined = body_part
    series.BurnedInAnnotation = "NO"
    if synthetic_data:
        series.SyntheticData = "YES"
    series.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if volume.modality is Modality.CT else "OTHER"]
    set_modality_module(series, volume, mr or MrParameters())
    set_display(series, volume, stored)

    seed = None if uid_seed is None else f"{uid_seed}\x1fimage"
    return write_images(folder, slice_images(series, planes, [stored[d] for d in order], seed))


def stored_values(volume: Volume, name: str) -> NDArray[Any]:
    """Return what PixelData will hold: int16 HU, or int16 or uint16 for MR."""
    array = volume.array
    if volume.unit is Unit.HU:
        return hounsfield_int16(array, name)
    if volume.modality is Modality.CT or volume.unit is Unit.GREY8:
        raise InputError(
            f"{name} is a {volume.modality} in unit {volume.unit}; a DICOM series holds CT in HU or MR in "
            "arbitrary units"
        )
    if array.dtype in (np.dtype(np.int16), np.dtype(np.uint16)):
        return array
    require_finite(array, name)
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > np.iinfo(np.uint16).max or (array.dtype.kind == "f" and high < 256):
        offset = min(low, 0.0)
        array = (array.astype(np.float64) - offset) * (RESCALED_MAXIMUM / (high - offset) if high > offset else 1.0)
    rounded: NDArray[np.uint16] = np.rint(array).astype(np.uint16)
    return rounded


def set_modality_module(series: pydicom.Dataset, volume: Volume, mr: MrParameters) -> None:
    """Set the SOP class and the CT Image (C.8.2.1) or MR Image (C.8.3.1) module; what is unknown stays empty."""
    series.Modality = volume.modality.value
    series.AcquisitionNumber = None
    if volume.modality is Modality.CT:
        series.SOPClassUID = CTImageStorage
        series.KVP = None
        series.RescaleIntercept = 0
        series.RescaleSlope = 1
        series.RescaleType = "HU"
        return
    series.SOPClassUID = MRImageStorage
    series.ScanningSequence = mr.scanning_sequence.split("\\")
    series.SequenceVariant = mr.sequence_variant.split("\\")
    series.ScanOptions = ""
    series.MRAcquisitionType = ""
    series.RepetitionTime = decimal(mr.repetition_time_ms)
    series.EchoTime = decimal(mr.echo_time_ms)
    series.EchoTrainLength = None
    if mr.inversion_time_ms is not None or "IR" in mr.scanning_sequence:
        series.InversionTime = decimal(mr.inversion_time_ms)
    if mr.flip_angle_deg is not None:
        series.FlipAngle = decimal(mr.flip_angle_deg)
    if mr.magnetic_field_t is not None:
        series.MagneticFieldStrength = decimal(mr.magnetic_field_t)
    if mr.sequence_name:
        series.SequenceName = mr.sequence_name[:16]
    if volume.sequence or mr.sequence_name:
        series.ProtocolName = (volume.sequence or mr.sequence_name)[:64]


def set_display(series: pydicom.Dataset, volume: Volume, stored: NDArray[Any]) -> None:
    """Set slice thickness and spacing, and a window: soft tissue for CT, up to the 99.5th percentile for MR."""
    series.SliceThickness = series.SpacingBetweenSlices = decimal(volume.spacing_mm[0])
    centre, width = CT_WINDOW_HU
    if volume.modality is Modality.MR:
        low, high = float(stored.min()), float(np.percentile(stored, 99.5))
        centre, width = (low + high) / 2, max(high - low, 1.0)
    series.WindowCenter = decimal(centre)
    series.WindowWidth = decimal(width)


def slice_images(
    series: pydicom.Dataset, planes: list[SlicePlane], slices: list[NDArray[Any]], uid_seed: str | None
) -> list[pydicom.Dataset]:
    """Return one image a plane, numbered from 1: the series' attributes, its own UID, image plane and pixels."""
    pairs = enumerate(zip(planes, slices, strict=True), start=1)
    return [_slice_image(series, plane, pixels, n, uid_seed) for n, (plane, pixels) in pairs]


def _slice_image(
    series: pydicom.Dataset, plane: SlicePlane, pixels: NDArray[Any], instance: int, uid_seed: str | None
) -> pydicom.Dataset:
    image = pydicom.Dataset()
    image.update(series)
    image.SOPInstanceUID = str(generate_uid()) if uid_seed is None else seeded_uid(uid_seed, str(instance))
    image.InstanceNumber = instance
    image.ImagePositionPatient = [decimal(x) for x in plane.position]
    image.ImageOrientationPatient = [decimal(x) for x in (*plane.across, *plane.down)]
    image.PixelSpacing = [decimal(x) for x in plane.spacing]
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit = 15
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.add_new("PixelData", "OW", np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes())
    return image


def write_images(folder: Path, images: list[pydicom.Dataset]) -> list[Path]:
    """Write the images as ``IM_0001.dcm``, … into a folder that appears complete or not at all."""
    names = [f"IM_{k:04d}.dcm" for k in range(1, len(images) + 1)]
    with new_folder(folder) as temporary:
        for name, image in zip(names, images, strict=True):
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION
            pydicom.dcmwrite(temporary / name, image, enforce_file_format=True)
    return [folder / name for name in names]


def decimal(value: float | None) -> DSfloat | None:
    """Return a Decimal String of at most 16 characters, as precise as they allow."""
    return None if value is None else DSfloat(float(value), auto_format=True)


def content_seed(*parts: str, array: NDArray[Any]) -> str:
    """Return a seed that changes with the words and with any voxel."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return "\x1f".join((*parts, digest))
