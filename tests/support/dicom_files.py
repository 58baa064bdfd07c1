"""DICOM files made by hand, attribute by attribute, so that the readers' tests do not lean on the writer."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

SERIES = "1.2.826.0.1.3680043.8.498.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, -0.8)
MOSAIC = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]


def image(pixels: np.ndarray, position: Sequence[float] = (0, 0, 0), **attributes: Any) -> pydicom.Dataset:
    """Return one single-frame CT (or, with Modality="MR", MR) image; `attributes` replace or add, None removes."""
    dataset = _dataset(pixels, attributes.get("Modality", "CT"))
    is_ct = dataset.Modality == "CT"
    dataset.SOPClassUID = CTImageStorage if is_ct else MRImageStorage
    dataset.ImagePositionPatient = [f"{x:.10g}"[:16] for x in position]
    dataset.ImageOrientationPatient = list(AXIAL)
    dataset.PixelSpacing = [1.5, 1.25]
    dataset.SliceThickness = 2
    if is_ct:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    return _finished(dataset, attributes)


def enhanced(
    frames: np.ndarray,
    positions: Sequence[Sequence[float]],
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: Sequence[float] = (1.5, 1.25),
    transforms: Sequence[tuple[float, float]] = ((1.0, 0.0),),
    own: Sequence[dict[str, dict[str, Any]]] = (),
    **attributes: Any,
) -> pydicom.Dataset:
    """Return one enhanced multi-frame image.

    `transforms` are slope and intercept, shared when there is one; `own` are functional groups a frame,
    sequence → keyword → value.
    """
    dataset = _dataset(frames, attributes.get("Modality", "MR"))
    dataset.SOPClassUID = EnhancedMRImageStorage if dataset.Modality == "MR" else EnhancedCTImageStorage
    dataset.NumberOfFrames = len(frames)
    shared = pydicom.Dataset()
    add_group(shared, "PlaneOrientationSequence", ImageOrientationPatient=list(orientation))
    add_group(shared, "PixelMeasuresSequence", PixelSpacing=list(spacing), SliceThickness=2)
    if len(transforms) == 1:
        _add_transform(shared, transforms[0], dataset.Modality)
    dataset.SharedFunctionalGroupsSequence = [shared]
    items = []
    for k, position in enumerate(positions):
        item = pydicom.Dataset()
        add_group(item, "PlanePositionSequence", ImagePositionPatient=[f"{x:.10g}"[:16] for x in position])
        if len(transforms) > 1:
            _add_transform(item, transforms[k], dataset.Modality)
        for sequence, values in (own[k] if own else {}).items():
            add_group(item, sequence, **values)
        items.append(item)
    dataset.PerFrameFunctionalGroupsSequence = items
    return _finished(dataset, attributes)


def csa(**tags: Sequence[str]) -> bytes:
    """Return a private header of Siemens, version 2, as nibabel and SPM describe it."""
    out = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for name, items in tags.items():
        vr = {"N": b"IS", "S": b"FD"}.get(name[0], b"LO")
        out += struct.pack("<64si4s3i", name.encode(), len(items), vr, 0, len(items), 77)
        for item in items:
            text = item.encode() + b"\0"
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return out


def mosaic(volume: np.ndarray, normal: Sequence[float] | None = None, count: int | None = None) -> pydicom.Dataset:
    """Return the mosaic of a volume's slices, as a scanner writes it."""
    slices, rows, columns = volume.shape
    side = math.ceil(math.sqrt(slices))
    whole = np.zeros((side * rows, side * columns), volume.dtype)
    for k, plane in enumerate(volume):
        down, across = divmod(k, side)
        whole[down * rows : (down + 1) * rows, across * columns : (across + 1) * columns] = plane
    made = image(whole, (10, -20, 30), Modality="MR", ImageType=MOSAIC, ImageOrientationPatient=list(OBLIQUE))
    made.SpacingBetweenSlices = 3.3
    block = made.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    along = np.cross(OBLIQUE[:3], OBLIQUE[3:]) if normal is None else normal
    tags = {"NumberOfImagesInMosaic": [str(count or slices)], "SliceNormalVector": [f"{x:.8f}" for x in along]}
    block.add_new(0x10, "OB", csa(AcquisitionMatrixText=["x"], **tags))
    return made


def add_group(item: pydicom.Dataset, sequence: str, **values: Any) -> None:
    """Add a functional group of one item."""
    group = pydicom.Dataset()
    group.update(values)
    setattr(item, sequence, [group])


def stream(dataset: pydicom.Dataset, syntax: str | None = None, *, preamble: bool = True) -> io.BytesIO:
    """Return the file's bytes; without a preamble there is no file meta information either."""
    out = io.BytesIO()
    syntax = syntax or dataset.file_meta.TransferSyntaxUID
    if preamble:
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    else:
        bare = pydicom.Dataset(dataset)
        uid = pydicom.uid.UID(syntax)
        pydicom.dcmwrite(out, bare, implicit_vr=uid.is_implicit_VR, little_endian=uid.is_little_endian)
    out.seek(0)
    return out


def streams(datasets: Sequence[pydicom.Dataset]) -> list[io.BytesIO]:
    """Return the bytes of several files."""
    return [stream(d) for d in datasets]


def save(folder: Path, datasets: Sequence[pydicom.Dataset], prefix: str = "IM_") -> list[Path]:
    """Write the files ``IM_0001.dcm``, …"""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}{k:04d}.dcm" for k in range(1, len(datasets) + 1)]
    for path, dataset in zip(paths, datasets, strict=True):
        path.write_bytes(stream(dataset).getvalue())
    return paths


def _dataset(pixels: np.ndarray, modality: str) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Modality = modality
    dataset.PatientID = "P1"
    dataset.StudyInstanceUID = f"{SERIES}.1"
    dataset.SeriesInstanceUID = SERIES
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    dataset.add_new("PixelData", "OB" if pixels.dtype.itemsize == 1 else "OW", content + b"\0" * (len(content) % 2))
    return dataset


def _add_transform(item: pydicom.Dataset, transform: tuple[float, float], modality: str) -> None:
    slope, intercept = transform
    kind = "HU" if modality == "CT" else "US"
    add_group(
        item, "PixelValueTransformationSequence", RescaleSlope=slope, RescaleIntercept=intercept, RescaleType=kind
    )


def _finished(dataset: pydicom.Dataset, attributes: dict[str, Any]) -> pydicom.Dataset:
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset
