"""Attributes that enhanced multi-frame CT and MR must have (PS3.3 A.36, A.38), and what stays of their values."""

from __future__ import annotations

SEQUENCES = frozenset(
    {
        # Common functional groups (PS3.3 C.7.6.16.2)
        "FrameAnatomySequence",
        "CardiacSynchronizationSequence",
        "RespiratorySynchronizationSequence",
        "IrradiationEventIdentificationSequence",
        "TemporalPositionSequence",
        "UnassignedPerFrameConvertedAttributesSequence",
        # CT (PS3.3 C.8.15.3)
        "CTAcquisitionTypeSequence",
        "CTAcquisitionDetailsSequence",
        "CTTableDynamicsSequence",
        "CTPositionSequence",
        "CTGeometrySequence",
        "CTReconstructionSequence",
        "CTExposureSequence",
        "CTAdditionalXRaySourceSequence",
        # MR (PS3.3 C.8.13.4, C.8.13.5)
        "VelocityEncodingAcquisitionSequence",
        "SpecificAbsorptionRateSequence",
        "OperatingModeSequence",
        "MRFOVGeometrySequence",
        "MRImagingModifierSequence",
        "MRReceiveCoilSequence",
        "MultiCoilDefinitionSequence",
        "MRTransmitCoilSequence",
        "DiffusionGradientDirectionSequence",
        "DiffusionBMatrixSequence",
        "MRAveragesSequence",
        "MRSpatialSaturationSequence",
        "MRMetaboliteMapSequence",
        "MRVelocityEncodingSequence",
        "MRArterialSpinLabelingSequence",
        "ASLSlabSequence",
        "ASLBolusCutoffTimingSequence",
    }
)
"""Sequences whose items are cleaned as the image is."""

NUMBERS = frozenset(
    {
        # Times and synchronization
        "SynchronizationChannel",
        "AcquisitionDuration",
        "FrameAcquisitionDuration",
        "TemporalPositionTimeOffset",
        "CardiacRRIntervalSpecified",
        "LowRRValue",
        "HighRRValue",
        "IntervalsAcquired",
        "IntervalsRejected",
        "NominalPercentageOfCardiacPhase",
        "NominalCardiacTriggerDelayTime",
        "ActualCardiacTriggerDelayTime",
        "RRIntervalTimeNominal",
        "RespiratoryTriggerDelayThreshold",
        "RespiratoryIntervalTime",
        "NominalPercentageOfRespiratoryPhase",
        "NominalRespiratoryTriggerDelayTime",
        "ActualRespiratoryTriggerDelayTime",
        "StartingRespiratoryAmplitude",
        "EndingRespiratoryAmplitude",
        # CT
        "TubeAngle",
        "RevolutionTime",
        "TableSpeed",
        "TableFeedPerRotation",
        "TablePosition",
        "DataCollectionCenterPatient",
        "ReconstructionTargetCenterPatient",
        "DistanceSourceToDataCollectionCenter",
        "ReconstructionFieldOfView",
        "ReconstructionPixelSpacing",
        "ReconstructionAngle",
        "ExposureTimeInms",
        "XRayTubeCurrentInmA",
        "ExposureInmAs",
        "EstimatedDoseSaving",
        "CTDIvol",
        "FocalSpots",
        "EnergyWeightingFactor",
        # MR
        "NumberOfKSpaceTrajectories",
        "GradientEchoTrainLength",
        "GradientOutput",
        "SpecificAbsorptionRateValue",
        "MRAcquisitionFrequencyEncodingSteps",
        "MRAcquisitionPhaseEncodingStepsInPlane",
        "MRAcquisitionPhaseEncodingStepsOutOfPlane",
        "ParallelReductionFactorInPlane",
        "ParallelReductionFactorOutOfPlane",
        "ParallelReductionFactorSecondInPlane",
        "TransmitterFrequency",
        "TagSpacingFirstDimension",
        "TagSpacingSecondDimension",
        "TagAngleFirstAxis",
        "TagAngleSecondAxis",
        "TagThickness",
        "SlabThickness",
        "SlabOrientation",
        "MidSlabPosition",
        "DiffusionGradientOrientation",
        *(f"DiffusionBValue{axes}" for axes in ("XX", "XY", "XZ", "YY", "YZ", "ZZ")),
        "VelocityEncodingDirection",
        "VelocityEncodingMinimumValue",
        "VelocityEncodingMaximumValue",
        "ASLSlabNumber",
        "ASLSlabThickness",
        "ASLSlabOrientation",
        "ASLMidSlabPosition",
        "ASLPulseTrainDuration",
        "ASLCrusherFlowLimit",
        "ASLBolusCutoffDelayTime",
    }
)
"""Attributes whose numbers stay."""

COARSE: dict[str, float] = {"AcquisitionDuration": 1000.0, "FrameAcquisitionDuration": 1000.0}
"""Attributes that in ms exceed the largest number that stays when a scan takes minutes: step to which those are
rounded, so that what stays is a duration and no number that someone was given."""
LONGEST = 1e7
"""No rounded duration reaches it, in ms."""

_YES_NO = frozenset({"YES", "NO"})
_SPACE = frozenset({"PHASE", "FREQUENCY", "SLICE_SELECT"})
TERMS: dict[str, frozenset[str]] = {
    "FrameLaterality": frozenset({"R", "L", "U", "B"}),
    # Synchronization (PS3.3 C.7.4.2, C.7.6.18)
    "SynchronizationTrigger": frozenset({"SOURCE", "EXTERNAL", "PASSTHRU", "NO TRIGGER"}),
    "AcquisitionTimeSynchronized": frozenset({"Y", "N"}),
    "CardiacSynchronizationTechnique": frozenset({"NONE", "REALTIME", "PROSPECTIVE", "RETROSPECTIVE", "PACED"}),
    "CardiacSignalSource": frozenset({"ECG", "VCG", "PP", "MR"}),
    "CardiacFramingType": frozenset({"FORW", "BACK", "PCNT"}),
    "CardiacBeatRejectionTechnique": frozenset({"NONE", "RR_INTERVAL", "QRS_LOOP", "PVC"}),
    "RespiratoryMotionCompensationTechnique": frozenset(
        {
            "NONE",
            "BREATH_HOLD",
            "REALTIME",
            "GATING",
            "TRACKING",
            "PHASE_ORDERING",
            "PHASE_RESCANNING",
            "RETROSPECTIVE",
            "CORRECTION",
        }
    ),
    "RespiratorySignalSource": frozenset(
        {"NONE", "BELT", "NASAL_PROBE", "CO2_SENSOR", "NAVIGATOR", "MR_PHASE", "ECG", "SPIROMETER"}
    ),
    "RespiratoryTriggerType": frozenset({"TIME", "AMPLITUDE", "BOTH"}),
    "StartingRespiratoryPhase": frozenset({"INSPIRATION", "MAXIMUM", "EXPIRATION", "MINIMUM"}),
    "EndingRespiratoryPhase": frozenset({"INSPIRATION", "MAXIMUM", "EXPIRATION", "MINIMUM"}),
    "BulkMotionCompensationTechnique": frozenset(
        {"NONE", "REALTIME", "GATING", "TRACKING", "RETROSPECTIVE", "CORRECTION"}
    ),
    "BulkMotionSignalSource": frozenset({"JOINT", "NAVIGATOR", "MR_PHASE"}),
    # CT
    "AcquisitionType": frozenset({"SEQUENCED", "SPIRAL", "CONSTANT_ANGLE", "STATIONARY", "FREE"}),
    "ConstantVolumeFlag": _YES_NO,
    "FluoroscopyFlag": _YES_NO,
    "ReconstructionAlgorithm": frozenset({"FILTER_BACK_PROJ", "ITERATIVE"}),
    "ConvolutionKernelGroup": frozenset({"BRAIN", "SOFT_TISSUE", "LUNG", "BONE", "CONSTANT_ANGLE", "OTHER"}),
    "ExposureModulationType": frozenset({"NONE"}),
    "FilterType": frozenset({"WEDGE", "BUTTERFLY", "MULTIPLE", "FLAT", "SHAPED", "STRIP", "NONE"}),
    "FilterMaterial": frozenset(
        {"MOLYBDENUM", "ALUMINUM", "COPPER", "RHODIUM", "NIOBIUM", "EUROPIUM", "LEAD", "TIN", "MIXED"}
    ),
    # MR, image level and pulse sequence
    "ResonantNucleus": frozenset({"1H", "3HE", "7LI", "13C", "19F", "23NA", "31P", "129XE"}),
    "KSpaceFiltering": frozenset(
        {
            "COSINE",
            "COSINE_SQUARED",
            "FERMI",
            "GAUSSIAN",
            "HAMMING",
            "HANNING",
            "LORENTZIAN",
            "LRNTZ_GSS_TRNSFM",
            "RIESZ",
            "TUKEY",
            "NONE",
        }
    ),
    "ApplicableSafetyStandardAgency": frozenset({"IEC", "FDA", "MHW"}),
    "MultiPlanarExcitation": _YES_NO,
    "MultipleSpinEcho": _YES_NO,
    "PhaseContrast": _YES_NO,
    "TimeOfFlightContrast": _YES_NO,
    "ArterialSpinLabelingContrast": frozenset({"CONTINUOUS", "PSEUDOCONTINUOUS", "PULSED"}),
    "SteadyStatePulseSequence": frozenset({"FREE_PRECESSION", "TRANSVERSE", "TIME_REVERSED", "LONGITUDINAL", "NONE"}),
    "EchoPlanarPulseSequence": _YES_NO,
    "SaturationRecovery": _YES_NO,
    "SpectrallySelectedSuppression": frozenset({"FAT", "WATER", "FAT_AND_WATER", "SILICON_GEL", "NONE"}),
    "OversamplingPhase": frozenset({"2D", "3D", "2D_3D", "NONE"}),
    "GeometryOfKSpaceTraversal": frozenset({"RECTILINEAR", "RADIAL", "SPIRAL"}),
    "RectilinearPhaseEncodeReordering": frozenset(
        {"LINEAR", "CENTRIC", "SEGMENTED", "REVERSE_LINEAR", "REVERSE_CENTRIC"}
    ),
    "SegmentedKSpaceTraversal": frozenset({"SINGLE", "PARTIAL", "FULL"}),
    "CoverageOfKSpace": frozenset({"FULL", "CYLINDRICAL", "ELLIPSOIDAL", "WEIGHTED"}),
    # MR, functional groups
    "SpecificAbsorptionRateDefinition": frozenset({"IEC_WHOLE_BODY", "IEC_PARTIAL_BODY", "IEC_HEAD", "IEC_LOCAL"}),
    "GradientOutputType": frozenset({"DB_DT", "ELECTRIC_FIELD", "PER_NERVE_STIM"}),
    "OperatingModeType": frozenset({"STATIC FIELD", "RF", "GRADIENT"}),
    "OperatingMode": frozenset({"IEC_NORMAL", "IEC_FIRST_LEVEL", "IEC_SECOND_LEVEL"}),
    "InPlanePhaseEncodingDirection": frozenset({"ROW", "COLUMN", "OTHER"}),
    "FlowCompensation": frozenset({"ACCELERATION", "VELOCITY", "OTHER", "NONE"}),
    "FlowCompensationDirection": _SPACE
    | {"SLICE_AND_FREQ", "SLICE_FREQ_PHASE", "PHASE_AND_FREQ", "SLICE_AND_PHASE", "OTHER"},
    "Spoiling": frozenset({"RF", "GRADIENT", "RF_AND_GRADIENT", "NONE"}),
    "T2Preparation": _YES_NO,
    "SpectrallySelectedExcitation": frozenset({"WATER", "FAT", "NONE"}),
    "SpatialPresaturation": frozenset({"SLAB", "NONE"}),
    "PartialFourier": _YES_NO,
    "PartialFourierDirection": _SPACE | {"COMBINATION"},
    "ParallelAcquisition": _YES_NO,
    "ParallelAcquisitionTechnique": frozenset({"PILS", "SENSE", "SMASH", "OTHER"}),
    "MagnetizationTransfer": frozenset({"ON_RESONANCE", "OFF_RESONANCE", "NONE"}),
    "BloodSignalNulling": _YES_NO,
    "Tagging": frozenset({"GRID", "LINE", "NONE"}),
    "ReceiveCoilType": frozenset({"BODY", "VOLUME", "SURFACE", "MULTICOIL"}),
    "QuadratureReceiveCoil": _YES_NO,
    "MultiCoilElementUsed": _YES_NO,
    "TransmitCoilType": frozenset({"BODY", "VOLUME", "SURFACE"}),
    "DiffusionDirectionality": frozenset({"DIRECTIONAL", "BMATRIX", "ISOTROPIC", "NONE"}),
    "DiffusionAnisotropyType": frozenset({"FRACTIONAL", "RELATIVE", "VOLUME_RATIO"}),
    "ASLContext": frozenset({"LABEL", "CONTROL", "M_ZERO_SCAN"}),
    "ASLCrusherFlag": _YES_NO,
    "ASLBolusCutoffFlag": _YES_NO,
}
"""Attributes that stay with these values alone, each of which an image must have where the standard asks for it."""

REQUIRED = frozenset(TERMS) | {
    "AcquisitionContrast",
    "BurnedInAnnotation",
    "ComplexImageComponent",
    "ContentQualification",
    "EchoPulseSequence",
    "InversionRecovery",
    "LossyImageCompression",
    "LossyImageCompressionMethod",
    "MRAcquisitionType",
    "PixelPresentation",
    "PresentationLUTShape",
    "RescaleType",
    "RotationDirection",
    "VolumeBasedCalculationTechnique",
    "VolumetricProperties",
}
"""Attributes of `TERMS` here and in `ctmr.datasets.deid.profile` that may not become absent: another value, such as a
vendor's own term, which the standard allows, becomes `UNKNOWN`'s or OTHER."""
UNKNOWN: dict[str, str] = {"AcquisitionContrast": "UNKNOWN", "FrameLaterality": "U", "RescaleType": "US"}
"""Terms of the standard for what is not told."""

IMAGE_TYPE = frozenset(
    {
        # Value 3 (PS3.3 C.8.16.1.3, C.8.13.3.1.1, C.8.15.3.1.1)
        "ANGIO",
        "CARDIAC",
        "CARDIAC_GATED",
        "CARDRESP_GATED",
        "DYNAMIC",
        "FLUOROSCOPY",
        "MOTION",
        "PERFUSION",
        "PRE_CONTRAST",
        "POST_CONTRAST",
        "RESP_GATED",
        "REST",
        "STATIC",
        "STRESS",
        "NON_PARALLEL",
        "PARALLEL",
        "WHOLE_BODY",
        "ATTENUATION",
        "REFERENCE",
        "ANGIO_TIME",
        "ASL",
        "CINE",
        "DIFFUSION",
        "FLOW_ENCODED",
        "FMRI",
        "MAX_IP",
        "MIN_IP",
        "M_MODE",
        "METABOLITE_MAP",
        "MULTIECHO",
        "REALTIME",
        "STIR",
        "TAGGING",
        "TEMPERATURE",
        "T2_STAR",
        "TOF",
        "VELOCITY",
        # Value 4 (PS3.3 C.8.16.1.4, C.8.13.3.1.1)
        "ADDITION",
        "DIVISION",
        "MASKED",
        "MAXIMUM",
        "MEAN",
        "MINIMUM",
        "MTT",
        "MULTIPLICATION",
        "RCBF",
        "RCBV",
        "STD_DEVIATION",
        "SUBTRACTION",
        "T_TEST",
        "TTP",
        "Z_SCORE",
        "FILTERED",
        "MEDIAN",
        "ENERGY_PROP_WT",
        "ADC",
        "PERFUSION_ASL",
        "DIFFUSION_ANISO",
        "DIFFUSION_ATTNTD",
        "DIFFUSION_ISO",
        "NEI",
        "R_COEFFICIENT",
        "RHO",
        "SCM",
        "SNR_MAP",
        "T1_MAP",
        "T2_STAR_MAP",
        "T2_MAP",
        "TCS",
    }
)
"""Defined terms of an enhanced ImageType and FrameType."""

TEXTS = frozenset(
    {
        "ManufacturerModelName",
        "SoftwareVersions",
        "PulseSequenceName",
        "ReceiveCoilName",
        "MultiCoilElementName",
        "TransmitCoilName",
        "ImageFilter",
        "MetaboliteMapDescription",
        "ASLCrusherDescription",
        "DimensionIndexPrivateCreator",
        "FunctionalGroupPrivateCreator",
    }
)
"""Free texts that an image must have with a value: a dummy takes the place of what was there."""
TOLD_APART = frozenset({"StackID", "ConvolutionKernel"})
"""Free texts that tell frames at one place apart: a pseudonym takes the place of each."""
EMPTIED = frozenset(
    {
        "ReceiveCoilManufacturerName",
        "TransmitCoilManufacturerName",
        "ASLTechniqueDescription",
        "ASLBolusCutoffTechnique",
        "DerivationImageSequence",
    }
)
"""Functional groups and their attributes that must be there but may be empty (type 2), and are emptied."""
TYPE_2 = ("AcquisitionContextSequence", "PatientPosition")
"""Attributes that images must have, empty or not (PS3.3 C.7.3.1, C.7.6.14)."""
