"""Attributes that tell what a series is, read alike from classic, enhanced and private headers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pydicom

from ctmr.io.dicom.frames import FunctionalGroups, is_enhanced
from ctmr.io.dicom.headers import number_of, private_number, terms_of
from ctmr.io.dicom.mosaic import is_mosaic

_ENHANCED_PULSE = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": "SE GR"}
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence")
_NO_AGENT = frozenset({"", "NO", "NONE", "N", "NO CONTRAST", "WITHOUT", "W/O", "N/A", "NA", "NATIVE", "0", "OFF"})
_GE_COMPONENT = {1: "PHASE", 2: "REAL", 3: "IMAGINARY"}
_MILLION = 1_000_000
"""GE adds a thousand of them to its b-values."""
_SMALLEST_B = 50
"""GE has small numbers of another meaning there in images without diffusion."""


@dataclass(frozen=True)
class SeriesAttributes:
    """Attributes of one file of a series, upper case where they are terms.

    Attributes
    ----------
    name
        SeriesDescription, lower case; `protocol` where that is empty.
    protocol
        ProtocolName, lower case; empty from GE, whose ProtocolName names the exam.
    exam
        ProtocolName and StudyDescription, lower case.
    image_type
        Values of ImageType and FrameType from the third on, and of AcquisitionContrast.
    component
        ComplexImageComponent.
    mosaic
        True for the tiles of a volume in one image.
    contrast_agent
        True when ContrastBolusAgent names one.
    pulse, variant
        ScanningSequence and SequenceVariant.
    repetition_ms, echo_ms, inversion_ms, flip_deg
        TR, TE, TI and flip angle.
    """

    modality: str
    manufacturer: str
    name: str
    protocol: str
    exam: str
    body_part: str
    image_type: frozenset[str]
    contrast_type: str
    component: str
    synthetic: bool
    mosaic: bool
    b_value: float
    temporal_positions: int
    temporal_position: int
    angio: bool
    echo_planar: bool
    contrast_agent: bool
    pulse: str
    variant: str
    pulse_name: str
    repetition_ms: float | None
    echo_ms: float | None
    inversion_ms: float | None
    flip_deg: float | None

    @classmethod
    def of(cls, header: pydicom.Dataset) -> SeriesAttributes:
        """Read the attributes of a header."""
        groups = _Groups(header)
        description, protocol = (_text(header, k).lower() for k in ("SeriesDescription", "ProtocolName"))
        manufacturer = _text(header, "Manufacturer").upper()
        named = "" if manufacturer.startswith("GE") else protocol
        timing, modifier = groups.first("MRTimingAndRelatedParametersSequence"), groups.first("MRModifierSequence")
        contrast = _text(groups.frame_type, "AcquisitionContrast") or _text(header, "AcquisitionContrast")
        return cls(
            modality=_text(header, "Modality").upper(),
            manufacturer=manufacturer,
            name=description or named,
            protocol=named,
            exam=f"{protocol} {_text(header, 'StudyDescription').lower()}",
            body_part=_body_part(header, groups),
            image_type=frozenset({*_flavours(header, "ImageType"), *_flavours(groups.frame_type, "FrameType")}),
            contrast_type=contrast.upper(),
            component=_component(header, groups),
            synthetic=_synthetic(header),
            mosaic=is_mosaic(header),
            b_value=_b_value(header, groups),
            temporal_positions=int(number_of(header, "NumberOfTemporalPositions") or 0),
            temporal_position=int(_largest(header, groups)),
            angio=_text(header, "AngioFlag").upper() == "Y",
            echo_planar="EP" in terms_of(header, "ScanningSequence")
            or _text(header, "EchoPlanarPulseSequence") == "YES",
            contrast_agent=_agent(header),
            pulse=_pulse(header, modifier),
            variant=" ".join(terms_of(header, "SequenceVariant")),
            pulse_name=f"{_text(header, 'SequenceName')} {_text(header, 'PulseSequenceName')}".lower(),
            repetition_ms=_number(header, "RepetitionTime", timing, "RepetitionTime"),
            echo_ms=_number(header, "EchoTime", groups.first("MREchoSequence"), "EffectiveEchoTime"),
            inversion_ms=_number(header, "InversionTime", modifier, "InversionTimes"),
            flip_deg=_number(header, "FlipAngle", timing, "FlipAngle"),
        )


class _Groups:
    """Functional groups of the first frame of an enhanced file; empty for a classic one."""

    def __init__(self, header: pydicom.Dataset) -> None:
        self.header, self._groups = header, None
        if is_enhanced(header) and len(header.PerFrameFunctionalGroupsSequence):
            self._groups = FunctionalGroups(header, 0)

    def first(self, sequence: str) -> pydicom.Dataset:
        """Return a functional group of the first frame."""
        return pydicom.Dataset() if self._groups is None else self._groups.group(sequence)

    def each(self, sequence: str, keyword: str) -> Iterator[float]:
        """Yield a number of every frame that has it."""
        for index in range(len(self.header.PerFrameFunctionalGroupsSequence) if self._groups is not None else 0):
            value = number_of(FunctionalGroups(self.header, index).group(sequence), keyword)
            if value is not None:
                yield value

    @property
    def frame_type(self) -> pydicom.Dataset:
        """The frame type of the first frame."""
        return next((g for s in _FRAME_TYPES if len(g := self.first(s))), pydicom.Dataset())


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def _flavours(dataset: pydicom.Dataset, keyword: str) -> list[str]:
    """Return what follows the first two values, which say only whether pixels and examination are original."""
    return terms_of(dataset, keyword)[2:]


def _number(header: pydicom.Dataset, keyword: str, group: pydicom.Dataset, other: str) -> float | None:
    found = number_of(header, keyword)
    return number_of(group, other) if found is None else found


def _component(header: pydicom.Dataset, groups: _Groups) -> str:
    named = _text(groups.frame_type, "ComplexImageComponent") or _text(header, "ComplexImageComponent")
    ge = private_number(header, 0x0043, "GEMS_PARM_01", 0x2F)
    return named.upper() or (_GE_COMPONENT.get(int(ge), "") if ge is not None else "")


def _b_value(header: pydicom.Dataset, groups: _Groups) -> float:
    ge = (private_number(header, 0x0043, "GEMS_PARM_01", 0x39) or 0) % _MILLION
    values = [
        number_of(header, "DiffusionBValue"),
        *groups.each("MRDiffusionSequence", "DiffusionBValue"),
        private_number(header, 0x0019, "SIEMENS MR HEADER", 0x0C),
        ge if ge >= _SMALLEST_B else 0.0,
        private_number(header, 0x2001, "Philips Imaging DD 001", 0x03),
    ]
    return max((v for v in values if v is not None), default=0.0)


def _largest(header: pydicom.Dataset, groups: _Groups) -> float:
    """Return the last time point that the file names."""
    own = number_of(header, "TemporalPositionIdentifier") or number_of(header, "TemporalPositionIndex") or 0
    return max((own, *groups.each("FrameContentSequence", "TemporalPositionIndex")))


def _agent(header: pydicom.Dataset) -> bool:
    agent = _text(header, "ContrastBolusAgent").upper()
    return agent not in _NO_AGENT or bool(header.get("ContrastBolusAgentSequence"))


def _pulse(header: pydicom.Dataset, modifier: pydicom.Dataset) -> str:
    classic = " ".join(terms_of(header, "ScanningSequence"))
    if classic:
        return classic
    kind = _ENHANCED_PULSE.get(_text(header, "EchoPulseSequence").upper(), "")
    inverts = _text(modifier, "InversionRecovery") or _text(header, "InversionRecovery")
    return kind + (" IR" if inverts.upper() == "YES" else "")


def _body_part(header: pydicom.Dataset, groups: _Groups) -> str:
    """Return BodyPartExamined, else the meaning of the coded region, lower case."""
    regions = [header, groups.first("FrameAnatomySequence")]
    coded = (_text(item, "CodeMeaning") for r in regions for item in r.get("AnatomicRegionSequence") or ())
    return (_text(header, "BodyPartExamined") or next(coded, "")).lower()


def _synthetic(header: pydicom.Dataset) -> bool:
    """True for what `ctmr.io.dicom.synthetic` writes; a phantom's SyntheticData alone does not make a translation."""
    derived = terms_of(header, "ImageType")[:1] == ["DERIVED"]
    named = _text(header, "SeriesDescription").upper().startswith(("SYNTHETIC CT", "SYNTHETIC MR"))
    return derived and (named or _text(header, "SyntheticData").upper() == "YES")
