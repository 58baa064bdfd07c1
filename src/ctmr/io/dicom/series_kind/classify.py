"""Answer whether a series is an anatomical image of a head, and of which sequence; no pixel is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import pydicom

from ctmr.io.dicom.series_kind.attributes import SeriesAttributes
from ctmr.io.dicom.series_kind.terms import TERMS
from ctmr.io.dicom.series_kind.weighting import weighting
from ctmr.io.dicom.series_kind.words import named_kind, other_body_part, says_contrast, says_no_contrast
from ctmr.io.series_kinds import REASONS, Kind

CT = "CT"


@dataclass(frozen=True)
class SeriesAnswer:
    """Answer to "is this an anatomical image of a head, and of which sequence".

    Attributes
    ----------
    sequence
        ``T1``, ``T1C`` (with contrast agent), ``T2``, ``FLAIR`` or ``PD``; ``None`` for a CT, for what is left out, and
        where nothing tells.
    kind
        Why it is left out; ``None`` for an anatomical image.
    """

    sequence: str | None = None
    kind: Kind | None = None

    @property
    def reason(self) -> str:
        """Reason in words, empty for an anatomical image."""
        return "" if self.kind is None else REASONS[self.kind]


def classify(header: pydicom.Dataset, part: str = "") -> SeriesAnswer:
    """Tell an anatomical image of a head from everything else that lies in a study.

    Parameters
    ----------
    header
        Of one file of the series.
    part
        Key of the group, as `ctmr.io.dicom.group_series` gives it: it says which part of a series this is.

    Notes
    -----
    What the standard defines comes first (ImageType, FrameType, ComplexImageComponent, DiffusionBValue, temporal
    position, AngioFlag, and the private elements that scanners write in their place), then the words of
    SeriesDescription, and those of ProtocolName only where there is no description: GE's names the exam. A body part is
    what the description says, else BodyPartExamined or the coded region, else ProtocolName and StudyDescription.

    Examples
    --------
    >>> header = pydicom.Dataset()
    >>> header.Modality, header.SeriesDescription = "MR", "t1_mprage_sag"
    >>> classify(header).sequence
    'T1'
    >>> header.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND"]
    >>> classify(header).reason
    'phase, real or imaginary image, not magnitude'
    """
    try:
        found = SeriesAttributes.of(header)
    except Exception:
        # pydicom converts values when they are asked for; a damaged one tells nothing.
        return SeriesAnswer()
    kind = _kind(found, part)
    if kind is not None:
        return SeriesAnswer(kind=kind)
    if found.modality == CT:
        return SeriesAnswer()
    sequence = weighting(found)
    contrast = says_contrast(found.name) or found.contrast_agent
    if sequence == "T1" and contrast and not says_no_contrast(found.name):
        sequence = "T1C"
    return SeriesAnswer(sequence=sequence)


def guess_sequence(header: pydicom.Dataset) -> str | None:
    """Return the MR sequence of `classify`; ``None`` when nothing tells, or when it is no anatomical image."""
    return classify(header).sequence


def _kind(found: SeriesAttributes, part: str) -> Kind | None:
    kind = _by_standard(found)
    if kind is None and ("/Temporal" in part or "/time " in part):
        kind = Kind.TIME_SERIES
    if kind is None:
        kind = named_kind(found.name, is_ct=found.modality == CT)
    if kind is None and found.echo_planar:
        kind = Kind.ECHO_PLANAR
    if kind is None and other_body_part(found):
        kind = Kind.BODY_PART
    return kind


def _by_standard(found: SeriesAttributes) -> Kind | None:
    if found.synthetic:
        return Kind.SYNTHETIC
    if found.mosaic:
        return Kind.MOSAIC
    for kind, terms in TERMS:
        if terms & found.image_type:
            return kind
    if found.component in ("PHASE", "REAL", "IMAGINARY"):
        return Kind.PHASE
    if found.b_value > 0:
        return Kind.DIFFUSION
    if found.temporal_positions > 1 or (found.temporal_position > 1 and not found.temporal_positions):
        return Kind.TIME_SERIES
    return Kind.ANGIOGRAPHY if found.angio else None
