"""Rules for what stays of a DICOM header: the table of PS3.15 Annex E, and the list of what else an image needs."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from importlib.resources import files

from ctmr.datasets.deid import multiframe
from ctmr.io.dicom.headers import TYPE_2


class Action(StrEnum):
    """Actions of PS3.15 Table E.1-1a that the basic profile leaves to choose from, after the choice."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    MAP_UID = "U"


IMAGE_TYPE_2 = (*TYPE_2, "Manufacturer", "SeriesNumber", "AcquisitionNumber")
"""Attributes that CT and MR images must have, empty or not (PS3.3 A.3, A.4)."""

MODULE_TYPE_2: dict[str, tuple[str, ...]] = {
    "CT": ("PatientPosition", "SliceThickness", "KVP"),
    "MR": (
        "PatientPosition",
        "SliceThickness",
        "ScanOptions",
        "MRAcquisitionType",
        "RepetitionTime",
        "EchoTime",
        "EchoTrainLength",
    ),
}
"""Attributes that single-frame images must have, empty or not (PS3.3 C.7.3.1, C.7.6.2, C.8.2.1, C.8.3.1)."""
MODULE_TYPE_1: dict[str, dict[str, str]] = {"CT": {}, "MR": {"ScanningSequence": "RM", "SequenceVariant": "NONE"}}
"""Attributes that they must have with a value → the term that says nothing of the sequence (PS3.3 C.8.3.1)."""

ENHANCED_TYPE_1 = (
    "DeviceSerialNumber",
    "ContentDate",
    "ContentTime",
    "AcquisitionDateTime",
    "FrameAcquisitionDateTime",
    "FrameReferenceDateTime",
)
"""Attributes of the table that enhanced CT and MR images must have with a value (PS3.3 C.7.5.2, C.7.6.16, C.8.13.1)."""

SEQUENCES = multiframe.SEQUENCES | frozenset(
    {
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "PixelMeasuresSequence",
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "FrameContentSequence",
        "PixelValueTransformationSequence",
        "FrameVOILUTSequence",
        "CTImageFrameTypeSequence",
        "MRImageFrameTypeSequence",
        "MREchoSequence",
        "MRTimingAndRelatedParametersSequence",
        "MRModifierSequence",
        "DimensionOrganizationSequence",
        "DimensionIndexSequence",
        "MRDiffusionSequence",
        "CTXRayDetailsSequence",
    }
)
"""Sequences of multi-frame images whose items are cleaned as the image is; every other sequence is removed."""

NUMBERS = multiframe.NUMBERS | frozenset(
    {
        # Image plane, frame of reference
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "SpacingBetweenSlices",
        "SliceLocation",
        "GantryDetectorTilt",
        # Numbering
        "SeriesNumber",
        "AcquisitionNumber",
        "InstanceNumber",
        "NumberOfFrames",
        "InStackPositionNumber",
        "TemporalPositionIndex",
        "DimensionIndexValues",
        "FrameAcquisitionNumber",
        "InConcatenationNumber",
        "InConcatenationTotalNumber",
        "ConcatenationFrameOffsetNumber",
        # Values and display
        "RescaleIntercept",
        "RescaleSlope",
        "WindowCenter",
        "WindowWidth",
        "LossyImageCompressionRatio",
        # CT acquisition
        "KVP",
        "XRayTubeCurrent",
        "ExposureTime",
        "Exposure",
        "DataCollectionDiameter",
        "ReconstructionDiameter",
        "DistanceSourceToDetector",
        "DistanceSourceToPatient",
        "TableHeight",
        "SingleCollimationWidth",
        "TotalCollimationWidth",
        "SpiralPitchFactor",
        # MR acquisition
        "RepetitionTime",
        "EchoTime",
        "EffectiveEchoTime",
        "InversionTime",
        "InversionTimes",
        "FlipAngle",
        "MagneticFieldStrength",
        "ImagingFrequency",
        "EchoTrainLength",
        "EchoNumbers",
        "NumberOfAverages",
        "NumberOfPhaseEncodingSteps",
        "PercentSampling",
        "PercentPhaseFieldOfView",
        "PixelBandwidth",
        "RFEchoTrainLength",
        "DiffusionBValue",
        "TemporalPositionIdentifier",
        "TriggerTime",
    }
)
"""Attributes whose numbers stay, each below `LARGEST` in size; what is no number is removed."""

LARGEST = 1e5
"""No kept quantity reaches it; patient, accession and telephone numbers do."""

_YES_NO = frozenset({"YES", "NO"})
_IMAGE_TYPE = multiframe.IMAGE_TYPE | frozenset(
    {
        "ORIGINAL",
        "DERIVED",
        "PRIMARY",
        "SECONDARY",
        "AXIAL",
        "LOCALIZER",
        "OTHER",
        "VOLUME",
        "M",
        "P",
        "R",
        "I",
        "MPR",
        "MIP",
        "MIXED",
        "NORM",
        "ND",
        "DIS2D",
        "DIS3D",
        "FFE",
        "SE",
        "M_FFE",
        "M_SE",
        "M_IR",
        "P_FFE",
        "T1",
        "T2",
        "PROTON_DENSITY",
        "FLUID_ATTENUATED",
        "NONE",
        "ADD",
        "AVERAGE",
        "REFORMATTED",
        "RESAMPLED",
        "MAGNITUDE",
        "PHASE",
        "REAL",
        "IMAGINARY",
        "SPIN_ECHO",
        "GRADIENT_ECHO",
    }
)
_CONTRAST = frozenset(
    {
        "DIFFUSION",
        "FLOW_ENCODED",
        "FLUID_ATTENUATED",
        "MIXED",
        "PERFUSION",
        "PROTON_DENSITY",
        "STIR",
        "T1",
        "T2",
        "T2_STAR",
        "TAGGING",
        "TOF",
        "UNKNOWN",
    }
)
_CALCULATION = frozenset({"NONE", "MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "MPR", "CURVED_MPR", "MIXED"})
TERMS: dict[str, frozenset[str]] = multiframe.TERMS | {
    "Modality": frozenset({"CT", "MR"}),
    "ImageType": _IMAGE_TYPE,
    "FrameType": _IMAGE_TYPE,
    "PatientPosition": frozenset({"HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL"}),
    "PatientOrientation": frozenset(a + b for a in "LRAPHF" for b in ("", *"LRAPHF")),
    "BodyPartExamined": frozenset({"HEAD", "BRAIN", "SKULL", "HEADNECK", "NECK", "FACE", "JAW", "ORBIT", "SINUS"}),
    "Laterality": frozenset({"L", "R"}),
    "RotationDirection": frozenset({"CW", "CC"}),
    "ScanningSequence": frozenset({"SE", "IR", "GR", "EP", "RM"}),
    "SequenceVariant": frozenset({"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "NONE"}),
    "MRAcquisitionType": frozenset({"2D", "3D"}),
    "PhotometricInterpretation": frozenset({"MONOCHROME1", "MONOCHROME2"}),
    "RescaleType": frozenset({"HU", "US", "OD", "PVAL", "NORMALIZED", "UNSPECIFIED"}),
    "BurnedInAnnotation": _YES_NO,
    "SyntheticData": _YES_NO,
    "LossyImageCompression": frozenset({"00", "01"}),
    "LossyImageCompressionMethod": frozenset({"ISO_10918_1", "ISO_14495_1", "ISO_15444_1", "ISO_13818_2"}),
    "PresentationLUTShape": frozenset({"IDENTITY", "INVERSE"}),
    "VOILUTFunction": frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"}),
    "PixelPresentation": frozenset({"MONOCHROME"}),
    "VolumetricProperties": frozenset({"VOLUME", "SAMPLED", "DISTORTED", "MIXED"}),
    "VolumeBasedCalculationTechnique": _CALCULATION,
    "ComplexImageComponent": frozenset({"MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "MIXED"}),
    "AcquisitionContrast": _CONTRAST,
    "EchoPulseSequence": frozenset({"SPIN", "GRADIENT", "BOTH"}),
    "InversionRecovery": _YES_NO,
    "StackID": frozenset(str(k) for k in range(1, 100)),
    "ContentQualification": frozenset({"PRODUCT", "RESEARCH", "SERVICE"}),
    "DimensionOrganizationType": frozenset({"3D", "3D_TEMPORAL", "TILED_FULL", "TILED_SPARSE"}),
}
"""Attributes that stay with these values alone: defined terms of PS3.3, which no name can be mistaken for."""

POINTERS = frozenset({"DimensionIndexPointer", "FunctionalGroupPointer"})
"""Tags as values (VR AT), which stay."""

REGION = "AnatomicRegionSequence"
"""Code that stays, of an enhanced image, when the standard has it (`ctmr.datasets.deid.header_values.region`)."""

MAKERS = (
    "SIEMENS",
    "GE",
    "PHILIPS",
    "CANON",
    "TOSHIBA",
    "HITACHI",
    "FUJIFILM",
    "UIH",
    "SHIMADZU",
    "MARCONI",
    "PICKER",
    "NEUROLOGICA",
    "ELSCINT",
    "BRUKER",
)
"""First words of Manufacturer that stay, alone; any other value is emptied."""


@cache
def table() -> dict[int, tuple[str, bool]]:
    """Return PS3.15 Table E.1-1: tag → action of the basic profile, and whether modified dates may stay (C)."""
    rows = {}
    for line in (files("ctmr.datasets.deid") / "ps3_15_table_e_1_1.tsv").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            tag, action, dates, _ = line.split("\t")
            rows[int(tag, 16)] = (action, dates == "C")
    return rows


def action_for(tag: int, keyword: str, *, enhanced: bool, inner: bool = False) -> Action | None:
    """Return what the basic profile does with an attribute, ``None`` when its table does not name it.

    Where the table leaves a choice (``X/Z``, ``X/Z/D``, …, PS3.15 E.1.1), the attribute is removed unless the image
    must have it: then it is emptied if it may be empty (never in an item of a sequence, `inner`), else replaced by a
    dummy. What the table replaces by a dummy (``D``) and a CT or MR image need not have is removed as well. Free texts
    that it does not name are treated alike where an enhanced image must have them (`multiframe`).
    """
    group = tag >> 16
    if group % 2 or 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF:
        return Action.REMOVE
    if enhanced and keyword in multiframe.TEXTS:
        return Action.DUMMY
    if enhanced and (keyword in multiframe.EMPTIED or (keyword in multiframe.TYPE_2 and tag in table() and not inner)):
        return Action.EMPTY
    if keyword == "SOPInstanceUIDOfConcatenationSource":
        # The table forgot this one of the UIDs of instances.
        return Action.MAP_UID
    if tag not in table():
        return None
    choices = table()[tag][0].split("/")
    if "D" in choices and enhanced and keyword in ENHANCED_TYPE_1:
        return Action.DUMMY
    if "Z" in choices and keyword in IMAGE_TYPE_2 and not inner:
        return Action.EMPTY
    return Action.MAP_UID if choices == ["U"] else Action.REMOVE


def may_stay(keyword: str, action: Action | None) -> bool:
    """Return whether an attribute stays with some values: then an empty one stays as it is."""
    if action is not None:
        return action is Action.MAP_UID
    return any(keyword in stays for stays in (NUMBERS, TERMS, POINTERS, multiframe.TOLD_APART))


def keeps_modified_date(tag: int) -> bool:
    """Return whether the option Retain Longitudinal Temporal Information with Modified Dates keeps the attribute."""
    return tag in table() and table()[tag][1]
