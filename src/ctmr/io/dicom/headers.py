"""Opening DICOM files: attributes without pixels, and where the pixels begin; damage becomes one sentence."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian
from pydicom.uid import ImplicitVRLittleEndian as ImplicitVR

from ctmr.errors import InputError, visible
from ctmr.io.bounds import inflate
from ctmr.io.signature import PREFIX, PREFIX_AT, START_BYTES, begins_as_dataset, has_prefix

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
"""Media Storage Directory Storage: a table of contents, not an image."""
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
"""Attributes of patient, study and frame of reference that every image has, empty or not (PS3.3 C.7.1 to C.7.4)."""
GREY = ("MONOCHROME1", "MONOCHROME2")
"""PhotometricInterpretation of images without colour; the first shows the lowest value white."""
_PIXEL_DATA = (0x7FE0, 0x0010)
_META_GROUP = 0x0002
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality")

DicomSource = Path | BinaryIO


@dataclass(frozen=True)
class Header:
    """One file without its pixels.

    Attributes
    ----------
    source, name
        Where it comes from, and what messages call it.
    dataset
        Every attribute before PixelData.
    syntax
        Transfer syntax; deduced from the encoding when the file has no meta information. Of a deflated file, that of
        what it holds.
    pixels_at, pixels_length
        Where the value of PixelData begins in the file and how many bytes it has; -1 when there is none or when it is
        not in the file as it is (compressed). Of a deflated file, in what it holds (`opened`).
    """

    source: DicomSource
    name: str
    dataset: pydicom.Dataset
    syntax: UID
    pixels_at: int = -1
    pixels_length: int = -1

    def text(self, keyword: str) -> str:
        """Return an attribute as text, empty when absent; InputError when its bytes are damaged."""
        value = self._value(keyword)
        return "" if value is None else str(value)

    def number(self, keyword: str) -> float | None:
        """Return an attribute as a number, None when it is absent, empty or not one; InputError when damaged."""
        return _number(self._value(keyword))

    def _value(self, keyword: str) -> Any:
        try:
            return self.dataset.get(keyword)
        except Exception as error:
            # Values are converted when they are asked for, and that fails as variously as reading does.
            raise InputError(
                f"{self.name} is a damaged DICOM file ({keyword}: {short(error)}); export it again"
            ) from error


def read_header(source: DicomSource) -> pydicom.Dataset:
    """Return a file's attributes without its pixels; InputError when it is not DICOM or is damaged."""
    return open_header(source).dataset


def open_header(source: DicomSource, name: str = "") -> Header:
    """Read one file up to its pixels.

    Parameters
    ----------
    source
        File or stream; Part 10, or a bare data set as old exports leave it.
    name
        What messages call it; by default its path.

    Raises
    ------
    InputError
        No DICOM, damaged, or without the UIDs and the modality that every composite object has.
    """
    name = name or name_of(source)
    try:
        with opened(source) as stream, warnings.catch_warnings():
            # pydicom warns of each value that is not what its VR asks for; each that is used is checked where it is.
            warnings.simplefilter("ignore")
            header = _parse(stream, source, name)
            _complete_from_meta(header.dataset)
            # Values are converted on access; asking for these now finds damage while the file's name is at hand.
            for keyword in (*_NEEDED, "Rows", "Columns", "PhotometricInterpretation"):
                header.dataset.get(keyword)
            if getattr(header.dataset, "file_meta", {}).get("MediaStorageSOPClassUID") == DICOMDIR_CLASS:
                # A table of contents has its class in the file meta information only, and belongs to no series.
                header.dataset.SOPClassUID = DICOMDIR_CLASS
                return header
    except InputError:
        raise
    except InvalidDicomError as error:
        raise InputError(f"{name} is not a DICOM file (no DICM prefix); give DICOM Part 10 files") from error
    except Exception as error:
        # A damaged file makes pydicom fail anywhere: struct.error, EOFError, ValueError, NotImplementedError, …
        raise InputError(f"{name} is a damaged DICOM file ({short(error)}); export it again") from error
    for keyword in _NEEDED:
        value = header.dataset.get(keyword)
        if not value or not isinstance(value, str):
            fault = f"several values of {keyword}" if value else f"no {keyword}"
            raise InputError(f"{name} is a damaged DICOM file ({fault}); export it again")
    return header


@contextmanager
def opened(source: DicomSource) -> Iterator[BinaryIO]:
    """Yield the bytes of a source from their beginning; a deflated file as it would be uncompressed.

    Raises
    ------
    InputError
        It inflates to more than an image has (`ctmr.io.bounds`).
    """
    if isinstance(source, Path):
        with source.open("rb") as stream:
            yield _uncompressed(stream, str(source))
    else:
        source.seek(0)
        yield _uncompressed(source, name_of(source))


def _uncompressed(stream: BinaryIO, name: str) -> BinaryIO:
    start = stream.read(START_BYTES)
    if has_prefix(start):
        stream.seek(PREFIX_AT + len(PREFIX))
        try:
            meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != _META_GROUP)
            is_deflated = meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
        except Exception:
            # pydicom is about to fail in the same way, and then it becomes a sentence.
            is_deflated = False
        if is_deflated:
            # pydicom would inflate it without a limit. The shorter UID, padded, makes it a plain file.
            meta_end = stream.tell()
            stream.seek(0)
            uid = DeflatedExplicitVRLittleEndian.encode()
            plain = ExplicitVRLittleEndian.encode().ljust(len(uid), b"\0")
            whole = io.BytesIO()
            whole.write(stream.read(meta_end).replace(uid, plain))
            inflate(stream.read(), whole, name)
            whole.seek(0)
            return whole
    stream.seek(0)
    return stream


def number_of(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """Return an attribute as a number; None when it is absent, empty or not one number."""
    return _number(dataset.get(keyword))


def photometric_of(dataset: pydicom.Dataset) -> str:
    """Return PhotometricInterpretation; an image of one sample a pixel that has none is MONOCHROME2."""
    return str(dataset.get("PhotometricInterpretation", "") or "").strip().upper() or GREY[1]


def terms_of(dataset: pydicom.Dataset, keyword: str) -> list[str]:
    """Return the values of an attribute, upper case; some writers put several into one, with a blank between."""
    value = dataset.get(keyword)
    several = value if isinstance(value, MultiValue | list | tuple) else () if value is None else (value,)
    return [str(v).strip().upper() for v in several if str(v).strip()]


def private_number(dataset: pydicom.Dataset, group: int, creator: str, element: int) -> float | None:
    """Return a number in a scanner's private block, ``None`` without it."""
    try:
        value = dataset.private_block(group, creator)[element].value
    except KeyError:
        return None
    if isinstance(value, bytes):
        # Implicit VR: nobody knows the type, and scanners write integers as text here, or as two bytes.
        text = value.strip(b" \0")
        return float(text) if text.isdigit() else float(int.from_bytes(value[:2], "little"))
    return _number(value[0] if isinstance(value, MultiValue | list | tuple) and len(value) else value)


def _number(value: Any) -> float | None:
    try:
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None


def name_of(source: DicomSource) -> str:
    """Return what messages call a file or stream."""
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "a stream"))


def short(error: BaseException) -> str:
    """Return the first line of an error, as `printable` makes it."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str, limit: int = 160) -> str:
    """Return what a message can show of a damaged file's text: one line, no control characters, not too long."""
    kept = "".join(c if c.isprintable() else "?" for c in visible(text[: limit + 1]))
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def _complete_from_meta(dataset: pydicom.Dataset) -> None:
    """Set an image's class and UID where some anonymisers emptied them, but not in the file meta information."""
    meta = getattr(dataset, "file_meta", {})
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        kept = meta.get(f"MediaStorage{keyword}")
        if kept and not dataset.get(keyword):
            setattr(dataset, keyword, kept)


def _parse(stream: BinaryIO, source: DicomSource, name: str) -> Header:
    start = stream.read(START_BYTES)
    stream.seek(0)
    bare = not has_prefix(start) and begins_as_dataset(start)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=bare)
    syntax = UID(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
    implicit, little = dataset.original_encoding
    if not syntax:
        syntax = ImplicitVR if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    if not syntax.is_transfer_syntax or syntax.is_encapsulated:
        return Header(source, name, dataset, syntax)
    order: Literal["little", "big"] = "little" if little else "big"
    at, element = stream.tell(), stream.read(12)
    if tuple(int.from_bytes(element[k : k + 2], order) for k in (0, 2)) != _PIXEL_DATA:
        return Header(source, name, dataset, syntax)
    head = 8 if implicit else 12
    return Header(source, name, dataset, syntax, at + head, int.from_bytes(element[head - 4 : head], order))
