"""De-identification of a DICOM image by PS3.15 Annex E, stricter: what no list names is removed."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)
from pydicom.valuerep import DSfloat

from ctmr.datasets.deid import profile
from ctmr.datasets.deid.profile import Action
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.names import Dates
from ctmr.errors import InputError
from ctmr.imaging.origin import NO_TRUTH
from ctmr.imaging.volume import Modality
from ctmr.io.dicom.headers import GREY, Header, number_of, open_header, photometric_of
from ctmr.io.dicom.mosaic import is_mosaic
from ctmr.io.dicom.pixels import stored_frames
from ctmr.io.dicom.provenance import PHANTOM_WORD, origin_of
from ctmr.io.dicom.series_kind import classify
from ctmr.io.dicom.writing import frame_of_its_own
from ctmr.io.series_kinds import Kind

ENHANCED: dict[str, Modality] = {
    EnhancedCTImageStorage: Modality.CT,
    LegacyConvertedEnhancedCTImageStorage: Modality.CT,
    EnhancedMRImageStorage: Modality.MR,
    LegacyConvertedEnhancedMRImageStorage: Modality.MR,
}
IMAGES: dict[str, Modality] = ENHANCED | {CTImageStorage: Modality.CT, MRImageStorage: Modality.MR}
"""SOP classes that are taken in; reports, presentation states and secondary captures are not."""
METHOD = "ctmr: PS3.15 Annex E basic profile; only needed attributes kept"
"""DeidentificationMethod: an LO, of which a value has at most 64 characters."""
_IMAGE_TYPE_VALUES = 3
_DUMMY = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}
_DECIMAL = re.compile(r"[+-]?\d{0,5}(\.\d{0,14})?([eE][+-]?\d{1,2})?")


@dataclass(frozen=True)
class Cleaner:
    """De-identifies images of one subject.

    Attributes
    ----------
    key
        Makes pseudonym and UIDs.
    subject
        Identifier in the source.
    series
        Key of the series (`ctmr.io.dicom.group_series`): where one UID holds several images, each becomes a series.
    sequence
        MR sequence, written where descriptions stood.
    phantom
        Whether it shows a phantom, which the result says in its identifier, its description and QualityControlImage.
    """

    key: Key
    subject: str
    series: str
    sequence: str
    dates: Dates = Dates.REMOVE
    phantom: bool = False

    def clean(self, file: Path, number: int) -> tuple[pydicom.Dataset, dict[str, str]]:
        """Return a new image with nothing that identifies the patient, and its UIDs: new → original.

        Parameters
        ----------
        file
            DICOM, with or without preamble.
        number
            InstanceNumber of the result.

        Raises
        ------
        InputError
            A damaged file, burned-in annotation, no single-channel CT or MR image, or pixels that cannot be decoded;
            the sentence lacks its subject, the file.
        """
        with quiet_pydicom():
            try:
                header = open_header(file)
            except InputError:
                # The reader's sentence may repeat a value of the header.
                raise InputError("is a damaged DICOM file; export it again") from None
            try:
                return self._cleaned(header, number)
            except (InputError, OSError, MemoryError):
                raise
            except Exception:
                # Values are converted when they are asked for, and a damaged one fails anywhere.
                raise InputError("is a damaged DICOM file; export it again") from None

    def _cleaned(self, header: Header, number: int) -> tuple[pydicom.Dataset, dict[str, str]]:
        source = header.dataset
        refuse(source)
        uids: dict[str, str] = {}
        image = self._kept(source, source.SOPClassUID in ENHANCED, uids)
        image.SOPClassUID = source.SOPClassUID
        image.Modality = IMAGES[source.SOPClassUID].value
        self._identify(image)
        if source.SOPClassUID not in ENHANCED:
            _complete(image)
        uids[self.key.uid(self.series)] = self.series
        image.InstanceNumber = number
        faces = str(source.get("RecognizableVisualFeatures", "")).strip().upper()
        image.RecognizableVisualFeatures = "NO" if faces == "NO" else "YES"
        _set_pixels(image, header)
        image.preamble = bytes(128)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        return image, uids

    def _kept(
        self, source: pydicom.Dataset, enhanced: bool, uids: dict[str, str], inner: bool = False
    ) -> pydicom.Dataset:
        """Return the attributes of a dataset or sequence item that stay, as they stay."""
        kept = pydicom.Dataset()
        for tag in source.keys():  # noqa: SIM118 (iterating the dataset converts every element and may fail)
            keyword = keyword_for_tag(tag)
            try:
                value = source[tag].value
            except Exception:
                # A damaged element makes pydicom raise anything; what cannot be understood is not kept.
                continue
            if keyword in profile.SEQUENCES:
                items = [self._kept(item, enhanced, uids, inner=True) for item in value or []]
                if items:
                    setattr(kept, keyword, items)
                continue
            action = profile.action_for(int(tag), keyword, enhanced=enhanced, inner=inner)
            new = self._value(int(tag), keyword, value, action, uids)
            if new is not None:
                kept.add_new(tag, dictionary_VR(tag), new)
        return kept

    def _value(self, tag: int, keyword: str, value: Any, action: Action | None, uids: dict[str, str]) -> Any:
        """Return an attribute's new value, ``None`` to remove it."""
        if self.dates is Dates.SHIFT and profile.keeps_modified_date(tag):
            moved = _moved(dictionary_VR(tag), str(value or ""), self.key.shift_days(self.subject))
            if moved is not None:
                return moved
        match action:
            case Action.REMOVE:
                return None
            case Action.EMPTY:
                return ""
            case Action.DUMMY:
                return _DUMMY.get(dictionary_VR(tag))
            case Action.MAP_UID:
                return self._mapped(value, uids) if dictionary_VR(tag) == "UI" else None
        if keyword in profile.NUMBERS:
            return _numbers(dictionary_VR(tag), value)
        if keyword in profile.TERMS:
            return _terms(keyword, value)
        if keyword == "Manufacturer":
            return next((m for m in profile.MAKERS if str(value).upper().split(maxsplit=1)[:1] == [m]), "")
        if keyword in profile.POINTERS and isinstance(value, int):
            return value
        return None

    def _mapped(self, value: Any, uids: dict[str, str]) -> Any:
        originals = [str(v) for v in _values(value) if str(v)]
        new = [self.key.uid(v) for v in originals]
        uids.update(zip(new, originals, strict=True))
        return new[0] if len(new) == 1 else new or None

    def _identify(self, image: pydicom.Dataset) -> None:
        """Set who and what the image is, and that it was de-identified."""
        for keyword in profile.IMAGE_TYPE_2:
            if keyword not in image:
                image.add_new(tag_for_keyword(keyword) or 0, dictionary_VR(keyword), None)
        image.PatientName = image.PatientID = self.key.pseudonym(self.subject, phantom=self.phantom)
        if self.phantom:
            image.QualityControlImage = "YES"
        image.SeriesInstanceUID = self.key.uid(self.series)
        if not image.get("FrameOfReferenceUID"):
            image.FrameOfReferenceUID = frame_of_its_own(image.SeriesInstanceUID)
        image.PatientIdentityRemoved = "YES"
        image.DeidentificationMethod = METHOD
        used = [codes.DCM.BasicApplicationConfidentialityProfile, codes.DCM.CleanDescriptorsOption]
        if self.dates is Dates.SHIFT:
            used.append(codes.DCM.RetainLongitudinalTemporalInformationModifiedDatesOption)
        image.DeidentificationMethodCodeSequence = [_code(c) for c in used]
        shifted = self.dates is Dates.SHIFT
        image.LongitudinalTemporalInformationModified = "MODIFIED" if shifted else "REMOVED"
        label = f"{PHANTOM_WORD} " if self.phantom else ""
        image.SeriesDescription = f"{label}{image.Modality} {self.sequence}".strip()
        if self.sequence:
            image.ProtocolName = self.sequence


def _complete(image: pydicom.Dataset) -> None:
    """Add what a single-frame image must have and the source had not, or had with values that do not stay.

    Empty where the standard allows that, else the term that claims least.
    """
    ct = image.Modality == Modality.CT
    kind = [str(v) for v in _values(image.get("ImageType"))] or ["ORIGINAL", "PRIMARY"]
    if len(kind) < _IMAGE_TYPE_VALUES:
        image.ImageType = [*kind, "AXIAL" if ct else "OTHER"]
    for keyword, term in profile.MODULE_TYPE_1[image.Modality].items():
        if not image.get(keyword):
            setattr(image, keyword, term)
    for keyword in profile.MODULE_TYPE_2[image.Modality]:
        if keyword not in image:
            setattr(image, keyword, None)
    if "IR" in _values(image.get("ScanningSequence")) and "InversionTime" not in image:
        image.InversionTime = None
    if "BodyPartExamined" not in image and "Laterality" not in image:
        # Type 2C: without a body part nobody knows whether it is a paired one.
        image.Laterality = None


def not_an_image(header: pydicom.Dataset, part: str = "", keep: Collection[Kind] = ()) -> str:
    """Return why a series is nothing to train on, empty when it is an anatomical CT or MR image of a head.

    Parameters
    ----------
    header
        Of one of its files.
    part
        Its key, as `ctmr.io.dicom.group_series` gives it.
    keep
        Kinds that are wanted all the same.
    """
    if header.get("SOPClassUID") not in IMAGES:
        # The name of a class that the standard does not know could be anything.
        known = header.SOPClassUID.name != str(header.SOPClassUID)
        return f"not CT or MR ({header.SOPClassUID.name})" if known else "not CT or MR"
    answer = classify(header, part)
    # What says by which model it was made is no mistake of filing: it is dropped or refused by name, not passed over.
    if answer.kind in keep or (answer.kind is Kind.SYNTHETIC and origin_of(header) is not None):
        return ""
    return answer.reason


def refuse(header: pydicom.Dataset) -> None:
    """Raise InputError when an image cannot be de-identified or was not acquired, without naming the file."""
    synthetic = origin_of(header)
    if synthetic is not None:
        raise InputError(f"is synthetic ({synthetic.words}); {NO_TRUTH}")
    if header.get("SOPClassUID") not in IMAGES:
        raise InputError("is no CT or MR image")
    if is_mosaic(header):
        raise InputError(
            "is a mosaic, whose tiles only the scanner's private header parts, and that does not stay; convert it to "
            "NIfTI, or export it as single slices"
        )
    if str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise InputError("says BurnedInAnnotation YES: text in the pixels may name the patient; blank it out first")
    samples = number_of(header, "SamplesPerPixel") or 1
    if samples != 1 or photometric_of(header) not in GREY:
        raise InputError("is a colour image, a screen shot perhaps, whose pixels may name the patient")
    if photometric_of(header) == GREY[0] and IMAGES[header.SOPClassUID] is Modality.MR:
        raise InputError(f"has PhotometricInterpretation {GREY[0]}, and an MR needs {GREY[1]}; export it again")


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from printing values that it finds faulty: they may be names."""
    before, logger = config.settings.reading_validation_mode, logging.getLogger("pydicom")
    level = logger.level
    config.settings.reading_validation_mode = config.IGNORE
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = before
        logger.setLevel(level)


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _numbers(vr: str, value: Any) -> Any:
    """Return the numbers as their VR has them; None unless all are finite and below `profile.LARGEST`."""
    new: list[Any] = []
    for v in _values(value):
        try:
            number = float(v)
        except (TypeError, ValueError):
            return None
        if not math.isfinite(number) or abs(number) >= profile.LARGEST:
            return None
        if vr == "DS":
            text = str(v).strip()
            new.append(DSfloat(text) if len(text) <= 16 and _DECIMAL.fullmatch(text) else DSfloat(number, True))
        else:
            new.append(number if vr in ("FD", "FL") else int(number))
    return new[0] if len(new) == 1 else new or None


def _terms(keyword: str, value: Any) -> Any:
    """Return the values that are defined terms; for an image type, which counts positions, OTHER in place of others."""
    allowed = profile.TERMS[keyword]
    given = [str(v).strip().upper() for v in _values(value)]
    if keyword in ("ImageType", "FrameType"):
        given = [v if v in allowed else "OTHER" for v in given[:3]] + [v for v in given[3:] if v in allowed]
    new = [v for v in given if v in allowed]
    return new[0] if len(new) == 1 else new or None


def _moved(vr: str, text: str, days: int) -> str | None:
    """Return a date moved into the past; None when it is no date, or a time."""
    if vr not in ("DA", "DT") or not re.fullmatch(r"\d{8}", text[:8]):
        return None
    try:
        moved = datetime.strptime(text[:8], "%Y%m%d") - timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{moved:%Y%m%d}"


def _set_pixels(image: pydicom.Dataset, header: Header) -> None:
    """Set the pixels as ctmr reads them: no comment of a compressed stream, no overlay in unused bits comes along."""
    source = header.dataset
    shape = int(source.Rows), int(source.Columns)
    count = int(header.number("NumberOfFrames") or 1)
    try:
        pixels: NDArray[Any] = np.stack([frame.copy() for frame in stored_frames(header, shape, count)])
    except InputError:
        raise InputError("has pixels that cannot be decoded; export it uncompressed") from None
    allocated = 8 * pixels.dtype.itemsize
    if pixels.dtype.kind not in "iu" or allocated > 16:
        raise InputError(f"has pixels of type {pixels.dtype}; integers of 8 or 16 bits are read")
    stored = min(int(header.number("BitsStored") or allocated), allocated)
    signed = pixels.dtype.kind == "i"
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = photometric_of(source)
    image.Rows, image.Columns = shape
    image.BitsAllocated, image.BitsStored, image.HighBit = allocated, stored, stored - 1
    image.PixelRepresentation = int(signed)
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        padding = _padding(source.get(keyword), signed)
        if padding is not None:
            image.add_new(tag_for_keyword(keyword) or 0, "SS" if signed else "US", padding)
    data = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes()
    image.add_new("PixelData", "OW", data + bytes(len(data) % 2))


def _padding(value: Any, signed: bool) -> int | None:
    """Return a padding value as 16 bits hold it; some writers give a negative one as its two's complement."""
    if not isinstance(value, int):
        return None
    padding = value % 65536
    return padding - 65536 if signed and padding > 32767 else padding


def _code(code: Any) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
