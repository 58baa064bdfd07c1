"""Reading a DICOM series into a Volume, and sorting a folder's files into series."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from ctmr.errors import InputError
from ctmr.io.dicom.geometry import SlicePlane, sort_along_normal, stack_affine, stack_faults
from ctmr.io.values import compact
from ctmr.volume import HOUNSFIELD_FLOOR_HU, Modality, Unit, Volume

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: a table of contents, not an image."""

Source = Path | BinaryIO


class SeriesGroups(dict[str, list[Path]]):
    """SeriesInstanceUID → files sorted by path.

    Attributes
    ----------
    unreadable
        DICOM files that could not be read → why.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: dict[Path, str] = {}


def group_series(folder: Path) -> SeriesGroups:
    """Sort every DICOM file under `folder` by series, reading headers only.

    Files that are not DICOM are skipped; damaged DICOM files are listed in ``unreadable``.
    """
    groups = SeriesGroups()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if not is_dicom(path):
            continue
        try:
            header = read_header(path)
        except InputError as error:
            groups.unreadable[path] = str(error)
            continue
        if header.SOPClassUID != DICOMDIR_CLASS:
            groups.setdefault(str(header.SeriesInstanceUID), []).append(path)
    return groups


def is_dicom(path: Path) -> bool:
    """True when the file carries the DICOM prefix (PS3.10: ``DICM`` after 128 bytes)."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_header(source: Source) -> pydicom.Dataset:
    """Return a file's attributes without its pixels; InputError when it is not DICOM or is damaged."""
    return _read(source, pixels=False)


def read_series(source: Path | Sequence[Source], *, modality: Modality | None = None) -> Volume:
    """Read one CT or MR series.

    Parameters
    ----------
    source
        Folder with the files of one series (others that are not DICOM are ignored), or the files.
    modality
        Refuse any other; ``None`` takes what the header says.

    Returns
    -------
    Volume
        Slices in ascending order along the slice normal, rows, columns; RAS affine. CT: Hounsfield units, int16 when
        that is exact, padding as -1024. MR: stored values, with the rescale where a header gives one.

    Raises
    ------
    InputError
        One sentence with every reason: several series, no CT or MR image, missing, duplicate, sheared or unevenly
        spaced slices, unlike orientation, spacing or shape, compression without a decoder, damaged files.
    """
    where, sources = _sources(source)
    slices = [_Slice(s, read_header(s)) for s in sources]
    slices = [s for s in slices if s.text("SOPClassUID") != DICOMDIR_CLASS]
    if not slices:
        raise InputError(f"{where} holds no DICOM image; give a folder with the files of one CT or MR series")
    _refuse(where, _series_faults(slices, modality))
    planes = [s.plane() for s in slices]
    order = sort_along_normal(planes)
    slices, planes = [slices[i] for i in order], [planes[i] for i in order]
    _refuse(where, stack_faults(planes))

    found = Modality(slices[0].text("Modality"))
    array = np.stack([_physical_values(s, found) for s in slices])
    return Volume(
        array=compact(array),
        affine=stack_affine(planes, slices[0].extent_mm()),
        modality=found,
        unit=Unit.HU if found is Modality.CT else Unit.ARBITRARY,
        subject=slices[0].text("PatientID"),
        sequence=guess_sequence(slices[0].header) if found is Modality.MR else None,
        uid=slices[0].text("SeriesInstanceUID"),
    )


_NAMED_SEQUENCE = (
    ("FLAIR", r"(?<!t1)(?<!t1[ _-])(flair|dark[ _-]?fluid)"),
    ("T1", r"t1|mp2?rage|bravo|spgr|tfl3d|fspgr"),
    ("T2", r"t2(?![ _-]?(\*|star))"),
    ("PD", r"(?<![a-z])pd(?![a-z])|proton[ _-]?density"),
)


def guess_sequence(header: pydicom.Dataset) -> str | None:
    """Guess ``T1``, ``T2``, ``FLAIR`` or ``PD`` from an MR header; ``None`` when nothing tells.

    Names (ProtocolName, SeriesDescription) come first; otherwise ScanningSequence with TR, TE and TI in ms, by the
    usual limits of spin-echo weighting (short TR < 1000 and TE < 30: T1; long TR and TE > 60: T2).
    """
    for keyword in ("ProtocolName", "SeriesDescription"):
        name = str(header.get(keyword, "")).lower()
        for sequence, pattern in _NAMED_SEQUENCE:
            if re.search(pattern, name):
                return sequence
    kind = str(header.get("ScanningSequence", "")).upper()
    tr, te, ti = (_number(header, k) for k in ("RepetitionTime", "EchoTime", "InversionTime"))
    if tr is None or te is None:
        return None
    if "IR" in kind and ti is not None and ti > 1500 and te > 60:
        return "FLAIR"
    if "GR" in kind:
        return "T1" if te < 10 and (tr < 50 or (ti is not None and ti < 1500)) else None
    if "SE" not in kind:
        return None
    if tr < 1000:
        return "T1" if te < 30 else None
    return "T2" if te > 60 else "PD" if te < 40 and tr > 1500 else None


@dataclass(frozen=True)
class _Slice:
    """One file of a series: where it comes from and its attributes."""

    source: Source
    header: pydicom.Dataset

    @property
    def name(self) -> str:
        return _name(self.source)

    def text(self, keyword: str) -> str:
        """Return an attribute as text, empty when absent."""
        value = self.header.get(keyword)
        return "" if value is None else str(value)

    def plane(self) -> SlicePlane:
        """Return the image plane; InputError when an attribute is absent or damaged."""
        numbers = {}
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
            try:
                numbers[keyword] = np.array([float(x) for x in self.header[keyword].value], dtype=np.float64)
            except (KeyError, TypeError, ValueError):
                numbers[keyword] = np.empty(0)
            if numbers[keyword].size != count:
                raise InputError(
                    f"{self.name} has no usable {keyword} ({self.text(keyword) or 'absent'}), {count} numbers are "
                    "needed; give an original cross-sectional CT or MR series"
                )
        orientation, spacing = numbers["ImageOrientationPatient"], numbers["PixelSpacing"]
        return SlicePlane(
            name=self.name,
            position=numbers["ImagePositionPatient"],
            across=orientation[:3],
            down=orientation[3:],
            spacing=(float(spacing[0]), float(spacing[1])),
            shape=(int(self.header.get("Rows") or 0), int(self.header.get("Columns") or 0)),
        )

    def extent_mm(self) -> float:
        """Extent of a lone slice along its normal."""
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            value = _number(self.header, keyword)
            if value:
                return abs(value)
        return 1.0


def _sources(source: Path | Sequence[Source]) -> tuple[str, list[Source]]:
    if not isinstance(source, Path):
        sources = list(source)
        return (_name(sources[0]) if len(sources) == 1 else f"the series of {len(sources)} files"), sources
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give the folder of one DICOM series or a list of its files")
    return str(source), [p for p in sorted(source.iterdir()) if p.is_file() and is_dicom(p)]


def _series_faults(slices: list[_Slice], modality: Modality | None) -> list[str]:
    """Return why the files are not one readable CT or MR series, before any geometry."""
    faults = []
    series = sorted({s.text("SeriesInstanceUID") for s in slices})
    if len(series) > 1:
        faults.append(f"mixed series: {len(series)} SeriesInstanceUIDs ({series[0]}, {series[1]}, …)")
    found = sorted({s.text("Modality") for s in slices})
    allowed = sorted(Modality) if modality is None else [modality]
    if not set(found) <= set(allowed):
        faults.append(f"wrong modality: {' and '.join(repr(m) for m in found)}, allowed is {' or '.join(allowed)}")
    elif len(found) > 1:
        faults.append("wrong modality: CT and MR in one series")
    seen: dict[str, str] = {}
    for s in slices:
        uid = s.text("SOPInstanceUID")
        if uid in seen:
            faults.append(f"duplicates: {seen[uid]} and {s.name} are one image (SOPInstanceUID {uid})")
            break
        seen[uid] = s.name
    for s in slices:
        fault = _image_fault(s)
        if fault:
            faults.append(f"{s.name} {fault}")
            break
    return faults


def _image_fault(s: _Slice) -> str:
    frames, samples = _number(s.header, "NumberOfFrames") or 1, _number(s.header, "SamplesPerPixel") or 1
    if frames > 1:
        return f"holds {frames:g} frames; single-frame CT or MR Image Storage is read"
    if samples != 1:
        return f"holds {samples:g} samples a pixel; greyscale is needed"
    if "LOCALIZER" in [str(v).upper() for v in s.header.get("ImageType") or []]:
        return "is a localizer, not a cross-section"
    if s.text("Modality") == Modality.CT:
        if _number(s.header, "RescaleSlope") is None or _number(s.header, "RescaleIntercept") is None:
            return "has no RescaleSlope and RescaleIntercept, so its values are not Hounsfield units"
        kind = s.text("RescaleType").strip()
        if kind not in ("", "HU"):
            return f"has RescaleType {kind!r}; Hounsfield units (HU) are needed"
    return ""


def _refuse(where: str, faults: list[str]) -> None:
    if faults:
        raise InputError(
            f"{where} cannot be read as one volume ({'; '.join(faults)}); "
            "give all slices of one straight, evenly spaced CT or MR series"
        )


def _physical_values(s: _Slice, modality: Modality) -> NDArray[Any]:
    """Return a slice in HU (CT) or as stored, rescaled where a header says so (MR)."""
    dataset = _read(s.source, pixels=True)
    try:
        stored: NDArray[Any] = dataset.pixel_array
    except Exception as error:
        # pydicom raises many types here, by transfer syntax and decoder; each means that this file gives no pixels.
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax is not None and syntax.is_compressed and not isinstance(error, (ValueError, EOFError)):
            raise InputError(
                f"{s.name} is compressed ({syntax.name}) and no decoder here reads it; "
                "install pylibjpeg with its plugins or export the series uncompressed"
            ) from error
        raise InputError(f"{s.name} has damaged pixel data ({_short(error)}); export the series again") from error
    slope = _number(dataset, "RescaleSlope")
    intercept = _number(dataset, "RescaleIntercept")
    values = stored
    if (slope or 1.0) != 1.0 or intercept:
        values = stored * np.float64(slope or 1.0) + np.float64(intercept or 0.0)
    if modality is Modality.CT:
        padded = _padding(dataset, stored)
        if padded is not None and padded.any():
            values = np.where(padded, HOUNSFIELD_FLOOR_HU, values)
    return values


def _padding(dataset: pydicom.Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return where pixels are padding (PS3.3 C.7.5.1.1.2), or None when the header names no padding value."""
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    if dataset.get("PixelRepresentation") == 1:
        # Some writers give the two's complement as an unsigned number.
        ends = [e - 65536 if e > 32767 else e for e in ends]
    inside: NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return inside


def _read(source: Source, *, pixels: bool) -> pydicom.Dataset:
    name = _name(source)
    try:
        if not isinstance(source, Path):
            source.seek(0)
        dataset = pydicom.dcmread(source, stop_before_pixels=not pixels)
        # Values are converted on access; asking for these now finds damage while the file's name is at hand.
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns"):
            dataset.get(keyword)
    except InvalidDicomError as error:
        raise InputError(f"{name} is not a DICOM file (no DICM prefix); give DICOM Part 10 files") from error
    except Exception as error:
        # A damaged file makes pydicom fail anywhere: struct.error, EOFError, ValueError, NotImplementedError, …
        raise InputError(f"{name} is a damaged DICOM file ({_short(error)}); export it again") from error
    if dataset.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR_CLASS:
        # A table of contents has its class in the file meta information only, and belongs to no series.
        dataset.SOPClassUID = DICOMDIR_CLASS
        return dataset
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality"):
        if not dataset.get(keyword):
            raise InputError(f"{name} is a damaged DICOM file (no {keyword}); export it again")
    return dataset


def _number(header: pydicom.Dataset, keyword: str) -> float | None:
    """Return an attribute as a number; None when it is absent, empty or not one number."""
    try:
        value = header.get(keyword)
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None


def _name(source: Source) -> str:
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "a stream"))


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
