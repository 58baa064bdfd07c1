"""Reading a DICOM series into a Volume."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import HU_EVIDENCE, OUTSIDE_VALUE, outside_of
from ctmr.imaging.volume import UNEVEN_LIMIT, Modality, Unit, Volume
from ctmr.io.dicom.frames import Frame, frames_of, place, told_apart, traits_of
from ctmr.io.dicom.geometry import sort_along_normal, stack_affine, stack_faults, stack_of
from ctmr.io.dicom.headers import (
    DICOMDIR_CLASS,
    GREY,
    DicomSource,
    Header,
    name_of,
    open_header,
    photometric_of,
    printable,
)
from ctmr.io.dicom.identity import Copies, by_acquisition, identity_of, images_of, interleaved, side_by_side, told_by
from ctmr.io.dicom.mosaic import is_mosaic, tiles
from ctmr.io.dicom.pixels import stored_frames
from ctmr.io.dicom.provenance import is_phantom, origin_of
from ctmr.io.dicom.series_kind import guess_sequence
from ctmr.io.dicom.straighten import straighten
from ctmr.io.signature import DICOM_SUFFIXES, is_dicom
from ctmr.io.values import Collector, rescaled, without_padding
from ctmr.system.walk import files_of_images, is_companion

TISSUE_HU = (-900.0, 3000.0)
"""A padding value in here is a value that tissue has too."""
UNSPECIFIED = ("US", "UNSPECIFIED")
"""RescaleType of a writer that leaves the unit open (PS3.3 C.11.1.1.2)."""


def read_series(
    source: Path | Sequence[DicomSource], *, modality: Modality | None = None, uneven_limit: float = UNEVEN_LIMIT
) -> Volume:
    """Read one CT or MR series, of single-frame or enhanced multi-frame files.

    Parameters
    ----------
    source
        Folder with the files of one series (others that are not DICOM are ignored), itself or, where it has none of
        its own, in folders below; or the files.
    modality
        Refuse any other; ``None`` takes what the header says.
    uneven_limit
        Gaps between slices may differ from the usual one by this share of it; up to there they are resampled to even
        ones, beyond they are refused. ``inf`` resamples any stack, 0 none. A missing slice differs by 1.

    Returns
    -------
    Volume
        Slices in ascending order along the slice normal, rows, columns; RAS affine with right angles. CT: Hounsfield
        units, int16 when that is exact, padding as -1024, whether PixelPaddingValue names it or
        `ctmr.io.values.without_padding` knows it. MR: stored values, with each slice's rescale where a header
        gives one, padding as 0. A gantry tilt (and what `uneven_limit` allows) is resampled linearly, and `notes` says
        so; slices that need no resampling keep their values exactly.

    Raises
    ------
    InputError
        One sentence with every reason: several series, no CT or MR image, several images of one place (echoes, phases),
        missing, duplicate or unevenly spaced slices, unlike orientation, spacing or shape, compression without a
        decoder, damaged files.
    """
    with warnings.catch_warnings():
        # pydicom warns of values that are not what their VR asks for; each value that is used is checked here.
        warnings.simplefilter("ignore")
        return _read(source, modality, uneven_limit)


@dataclass(frozen=True)
class _File:
    header: Header
    frames: list[Frame]


def _read(source: Path | Sequence[DicomSource], modality: Modality | None, uneven_limit: float) -> Volume:
    where, root, sources = _sources(source)
    headers = [open_header(s) for s in sources]
    objects = [h for h in headers if h.text("SOPClassUID") != DICOMDIR_CLASS]
    if not objects:
        raise InputError(f"{where} holds no DICOM image; give a folder with the files of one CT or MR series")
    known, images = Copies(), images_of(objects)
    headers = [h for h in images if not known.holds(h)]
    _refuse(where, root, _series_faults(headers, modality))
    files = [_File(h, frames_of(h.dataset, h.name)) for h in headers]
    found = Modality(headers[0].text("Modality"))
    _refuse(where, root, _image_faults(files, found))
    _refuse(where, root, _several_images(files))
    frames = [f for file in files for f in file.frames]
    order = sort_along_normal([f.plane for f in frames])
    planes = [frames[i].plane for i in order]
    _refuse(where, root, stack_faults(planes, uneven_limit))

    unit = Unit.HU if found is Modality.CT else Unit.ARBITRARY
    array, notes = _values(files, order, unit)
    uids = {h.text("SeriesInstanceUID") for h in headers}
    if len(uids) > 1:
        notes += (f"{len(uids)} series of one slice each, side by side in one frame of reference, were joined",)
    if len(images) > len(headers):
        notes += (f"{len(images) - len(headers)} of its files were copies of others, byte for byte",)
    if len(objects) > len(images):
        notes += (_left_out(len(objects) - len(images)),)
    stack = stack_of(planes)
    first = files[0].header
    if len(planes) > 1 and (stack.tilted or not stack.even):
        array, affine, done = straighten(array, stack, outside_of(array, unit))
        notes += done
    else:
        affine = stack_affine(planes, _extent_mm(first))
    return Volume(
        array=array,
        affine=affine,
        modality=found,
        unit=unit,
        subject=first.text("PatientID"),
        sequence=guess_sequence(first.dataset) if found is Modality.MR else None,
        uid=first.text("SeriesInstanceUID"),
        notes=notes,
        synthetic=next((said for h in headers if (said := origin_of(h.dataset))), None),
        phantom=is_phantom(first.dataset),
    )


def _sources(source: Path | Sequence[DicomSource]) -> tuple[str, str, list[DicomSource]]:
    """Return what messages call the series, the folder whose name they need not repeat, and the files."""
    if not isinstance(source, Path):
        sources = list(source)
        folders = {p.parent for p in sources if isinstance(p, Path)}
        try:
            root = os.path.commonpath(folders)
        except ValueError:  # none, or absolute and relative paths
            root = ""
        if len(sources) == 1:
            return name_of(sources[0]), root, sources
        return f"the series of {len(sources)} files{f' in {root}' if root else ''}", root, sources
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; give the folder of one DICOM series or a list of its files")
    try:
        here = [p for p in sorted(source.iterdir()) if p.is_file() and _is_meant(p)]
        # Exports put a series below folders of patient and study; beside files of its own, a folder is another series.
        return str(source), str(source), [*(here or (p for p in files_of_images(source) if _is_meant(p)))]
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error}); check its rights and its disk") from error


def _left_out(count: int) -> str:
    """Return that a series held more than its images."""
    objects = "an object" if count == 1 else f"{count} objects"
    return f"{objects} beside its images (raw data or a report) left out"


def _is_meant(path: Path) -> bool:
    """True for what is DICOM or whose name says that it is; the latter is refused by name when it is opened."""
    return not is_companion(Path(path.name)) and (path.name.lower().endswith(DICOM_SUFFIXES) or is_dicom(path))


def _refuse(where: str, root: str, faults: list[str]) -> None:
    if faults:
        reasons = printable("; ".join(faults), 2000)
        raise InputError(
            f"{where} cannot be read as one volume ({reasons.replace(root + os.sep, '') if root else reasons}); "
            "give all slices of one straight, evenly spaced CT or MR series"
        )


def _series_faults(headers: list[Header], modality: Modality | None) -> list[str]:
    """Return why the files are not one CT or MR series, before any geometry."""
    faults = []
    series = sorted({h.text("SeriesInstanceUID") for h in headers})
    if len(series) > 1 and not _are_slices_of_one(headers):
        faults.append(f"mixed series: {len(series)} SeriesInstanceUIDs ({', '.join(series[:2])}, …)")
    differ = told_by(sorted({identity_of(h) for h in headers}))
    if differ and len(series) == 1:
        faults.append(f"mixed {' and '.join(differ)}: one SeriesInstanceUID, but not one {differ[0]}")
    found = sorted({h.text("Modality") for h in headers})
    allowed = sorted(Modality) if modality is None else [modality]
    if not set(found) <= set(allowed):
        wrong = " and ".join(repr(printable(m, 20)) for m in found[:4])
        faults.append(f"wrong modality: {wrong}, allowed is {' or '.join(allowed)}")
    elif len(found) > 1:
        faults.append("wrong modality: CT and MR in one series")
    seen: dict[str, str] = {}
    for header in headers:
        uid = header.text("SOPInstanceUID")
        if uid in seen:
            faults.append(f"duplicates: {seen[uid]} and {header.name} are one image (SOPInstanceUID {uid})")
            break
        seen[uid] = header.name
    return faults


def _are_slices_of_one(headers: list[Header]) -> bool:
    """True for series of one slice each that lie side by side in one frame of reference."""
    uids = {h.text("SeriesInstanceUID") for h in headers}
    if len(uids) < len(headers) or len({identity_of(h) for h in headers}) > 1 or not identity_of(headers[0])[-1]:
        return False
    frames = [f for h in headers for f in frames_of(h.dataset, h.name)]
    return len(frames) == len(headers) and side_by_side([place(f.plane) for f in frames])


def _image_faults(files: list[_File], modality: Modality) -> list[str]:
    """Return why the pixels of a file do not mean what a volume's voxels mean; the first file's fault is enough."""
    for file in files:
        fault = _header_fault(file.header, modality)
        for frame in file.frames:
            fault = fault or _frame_fault(frame, modality)
        if fault:
            return [f"{file.header.name} {fault}"]
    return []


def _header_fault(header: Header, modality: Modality) -> str:
    samples = header.number("SamplesPerPixel") or 1
    if samples != 1:
        return f"holds {samples:g} samples a pixel; greyscale is needed"
    grey = photometric_of(header.dataset)
    if grey not in GREY or (grey == GREY[0] and modality is Modality.MR):
        return f"has PhotometricInterpretation {printable(grey, 40)!r}; {GREY[1]} is needed"
    stored, high = header.number("BitsStored"), header.number("HighBit")
    if stored is not None and high is not None and high != stored - 1:
        return f"has HighBit {high:g} with BitsStored {stored:g}; the highest bit must be the last of those stored"
    if "ModalityLUTSequence" in header.dataset:
        return "has a Modality LUT, which no CT or MR image has; RescaleSlope and RescaleIntercept are read"
    return ""


def _frame_fault(frame: Frame, modality: Modality) -> str:
    if frame.is_localizer:
        return "is a localizer, not a cross-section"
    slope, intercept = frame.slope, frame.intercept
    if not np.isfinite([slope or 1.0, intercept or 0.0]).all() or slope == 0:
        return f"has RescaleSlope {slope} and RescaleIntercept {intercept}; finite numbers and a slope are needed"
    if modality is Modality.CT:
        if slope is None or intercept is None:
            return "has no RescaleSlope and RescaleIntercept, so its values are not Hounsfield units"
        if frame.rescale_type.upper() not in ("", "HU", *UNSPECIFIED):
            return f"has RescaleType {printable(frame.rescale_type, 40)!r}; Hounsfield units (HU) are needed"
    return ""


def _several_images(files: list[_File]) -> list[str]:
    """Return that a series holds echoes, phases or the like, which are several images of the same places."""
    places = [place(f.plane) for file in files for f in file.frames]
    traits = [traits_of(file.header.dataset, f.index) for file in files for f in file.frames]
    if len(set(places)) == len(places):
        passes = by_acquisition(list(zip(places, traits, strict=True)))
        if interleaved(passes):
            return [f"{len(passes)} acquisitions whose slices interleave ({'; '.join(sorted(passes)[:4])}); give one"]
        return []
    names, values = told_apart(places, traits)
    if not names:
        return []
    found = sorted(set(values))
    shown = "; ".join(printable(value, 80) for value in found[:4]) + ("; …" if len(found) > 4 else "")
    kind = "multi-echo: " if "EchoTime" in names else ""
    return [f"{kind}{len(found)} images of each place ({shown}); give one of them"]


def _extent_mm(header: Header) -> float:
    """Extent of a lone slice along its normal."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = header.number(keyword)
        if value:
            return abs(value)
    return 1.0


def _values(files: list[_File], order: list[int], unit: Unit) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Return the physical values of all frames in `order`, and what a reader should know of them."""
    shape = files[0].frames[0].plane.shape
    slots = {frame: slot for slot, frame in enumerate(order)}
    collected, notes, number = Collector((len(order), *shape)), set(), 0
    gaps: dict[int, NDArray[np.bool_]] = {}
    for file in files:
        padding = _Padding.of(file.header, unit)
        if file.header.text("LossyImageCompression") == "01":
            notes.add("it was compressed lossily, so its values are not those of the scanner")
        for frame, stored in zip(file.frames, _stored(file, shape), strict=True):
            values = rescaled(stored, frame.slope or 1.0, frame.intercept or 0.0)
            padded = None if padding is None else padding.where(stored)
            if padded is not None and padding is not None:
                values = np.where(padded, np.int32(OUTSIDE_VALUE[unit]), values)
                notes.update(padding.notes(frame))
                gaps[slots[number]] = padded
            collected.put(slots[number], values)
            number += 1
    array = collected.array(file.header.name)
    background = outside_of(array, unit)
    if background != OUTSIDE_VALUE[unit]:
        for slot, padded in gaps.items():
            array[slot][padded] = background
    if unit is Unit.HU:
        if any(f.rescale_type.upper() in UNSPECIFIED for file in files for f in file.frames):
            notes.add(_hounsfield_after_all(array, files[0].header.name))
        array, padded_unsaid = without_padding(array)
        notes.update(padded_unsaid)
    return array, tuple(sorted(notes))


def _stored(file: _File, shape: tuple[int, int]) -> Iterator[NDArray[Any]]:
    """Yield the stored values of a file's planes."""
    dataset = file.header.dataset
    if not is_mosaic(dataset):
        yield from stored_frames(file.header, shape, len(file.frames))
        return
    (whole,) = stored_frames(file.header, (int(dataset.Rows), int(dataset.Columns)), 1)
    yield from tiles(whole, shape, len(file.frames))


def _hounsfield_after_all(array: NDArray[Any], name: str) -> str:
    """Return what a reader should know of a CT whose unit is unspecified; InputError where it shows no air."""
    if float(array.min()) > HU_EVIDENCE:
        raise InputError(
            f"{name} has the RescaleType 'unspecified' (US) and its lowest value is {array.min():g}, so nothing says "
            "that it is in Hounsfield units (HU); export it in HU"
        )
    return "its RescaleType is unspecified (US); it was read in HU, since it shows air in them"


@dataclass(frozen=True)
class _Padding:
    """Stored values that mean "no data here" (PS3.3 C.7.5.1.1.2)."""

    low: float
    high: float
    unit: Unit

    @classmethod
    def of(cls, header: Header, unit: Unit) -> _Padding | None:
        """Return what the header says, None when it names no padding value."""
        value, limit = header.number("PixelPaddingValue"), header.number("PixelPaddingRangeLimit")
        if value is None:
            return None
        ends = [value, value if limit is None else limit]
        if header.number("PixelRepresentation") == 1:
            # Some writers give the two's complement as an unsigned number.
            ends = [e - 65536 if e > 32767 else e for e in ends]
        return cls(min(ends), max(ends), unit)

    def where(self, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return where stored values are padding, None when nowhere."""
        if self.low == self.high:
            inside: NDArray[np.bool_] = stored == self.low
        else:
            inside = (stored >= self.low) & (stored <= self.high)
        return inside if inside.any() else None

    def notes(self, frame: Frame) -> set[str]:
        """Return a doubt about the value: padding that looks like tissue may be tissue."""
        ends = [e * (frame.slope or 1.0) + (frame.intercept or 0.0) for e in (self.low, self.high)]
        if self.unit is Unit.HU and TISSUE_HU[0] < max(ends) and min(ends) < TISSUE_HU[1]:
            return {f"its PixelPaddingValue means {ends[0]:g} HU, which tissue has too; such voxels became background"}
        return set()
