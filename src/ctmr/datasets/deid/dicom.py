"""De-identification of a DICOM image by PS3.15 Annex E, stricter: what no list names is removed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
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

from ctmr.datasets.deid import multiframe, profile
from ctmr.datasets.deid.header_values import DUMMY, coded, maker, moved, numbers, region, terms, values_of
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
_ANATOMY = "FrameAnatomySequence"


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
        _complete(image, enhanced=source.SOPClassUID in ENHANCED)
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
                items = [self._kept(item, enhanced, uids, inner=True) for item in _items(value)]
                # Some functional groups may be empty, and then say that nothing of the kind was done.
                if items or enhanced:
                    setattr(kept, keyword, items)
                continue
            if keyword == profile.REGION and enhanced and inner:
                setattr(kept, keyword, region(_items(value)))
                continue
            action = profile.action_for(int(tag), keyword, enhanced=enhanced, inner=inner)
            if enhanced and not values_of(value) and profile.may_stay(keyword, action):
                kept.add_new(tag, dictionary_VR(tag), None)
                continue
            new = self._value(int(tag), keyword, value, action, uids, enhanced=enhanced)
            if new is not None:
                kept.add_new(tag, dictionary_VR(tag), new)
        return kept

    def _value(
        self, tag: int, keyword: str, value: Any, action: Action | None, uids: dict[str, str], *, enhanced: bool
    ) -> Any:
        """Return an attribute's new value, ``None`` to remove it."""
        if self.dates is Dates.SHIFT and profile.keeps_modified_date(tag):
            date = moved(dictionary_VR(tag), str(value or ""), self.key.shift_days(self.subject))
            if date is not None:
                return date
        match action:
            case Action.REMOVE:
                return None
            case Action.EMPTY:
                return [] if dictionary_VR(tag) == "SQ" else ""
            case Action.DUMMY:
                return DUMMY.get(dictionary_VR(tag))
            case Action.MAP_UID:
                return self._mapped(value, uids) if dictionary_VR(tag) == "UI" else None
        if keyword in profile.NUMBERS:
            return numbers(keyword, dictionary_VR(tag), value)
        if keyword in profile.TERMS:
            term = terms(keyword, value, enhanced=enhanced)
            if term is not None:
                return term
        if enhanced and keyword in multiframe.TOLD_APART:
            return [self.key.label(str(v)) for v in values_of(value)] or None
        if keyword == "Manufacturer":
            return maker(value, enhanced=enhanced)
        if keyword in profile.POINTERS and isinstance(value, int):
            return value
        return None

    def _mapped(self, value: Any, uids: dict[str, str]) -> Any:
        originals = [str(v) for v in values_of(value) if str(v)]
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
        image.DeidentificationMethodCodeSequence = [coded(c) for c in used]
        shifted = self.dates is Dates.SHIFT
        image.LongitudinalTemporalInformationModified = "MODIFIED" if shifted else "REMOVED"
        label = f"{PHANTOM_WORD} " if self.phantom else ""
        image.SeriesDescription = f"{label}{image.Modality} {self.sequence}".strip()
        if self.sequence:
            image.ProtocolName = self.sequence


def _complete(image: pydicom.Dataset, *, enhanced: bool) -> None:
    """Add what an image must have and the source had not, or had with values that do not stay.

    Empty where the standard allows that, else, in a single-frame image, the term that claims least.
    """
    groups = [*image.get("SharedFunctionalGroupsSequence", []), *image.get("PerFrameFunctionalGroupsSequence", [])]
    if not any(k in place for place in (image, *groups) for k in ("BodyPartExamined", "Laterality", _ANATOMY)):
        # Type 2C: without a body part nobody knows whether it is a paired one. A frame's anatomy has its own.
        image.Laterality = None
    if enhanced:
        for keyword in multiframe.TYPE_2:
            if keyword not in image:
                setattr(image, keyword, [] if dictionary_VR(keyword) == "SQ" else None)
        return
    ct = image.Modality == Modality.CT
    kind = [str(v) for v in values_of(image.get("ImageType"))] or ["ORIGINAL", "PRIMARY"]
    if len(kind) < _IMAGE_TYPE_VALUES:
        image.ImageType = [*kind, "AXIAL" if ct else "OTHER"]
    for keyword, term in profile.MODULE_TYPE_1[image.Modality].items():
        if not image.get(keyword):
            setattr(image, keyword, term)
    for keyword in profile.MODULE_TYPE_2[image.Modality]:
        if keyword not in image:
            setattr(image, keyword, None)
    if "IR" in values_of(image.get("ScanningSequence")) and "InversionTime" not in image:
        image.InversionTime = None


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


def _items(value: Any) -> list[pydicom.Dataset]:
    """Return the items of a sequence; what is none in spite of its tag has none."""
    return list(value) if isinstance(value, Sequence) else []
