"""Enhanced multi-frame images: what is valid stays valid, what is not becomes no worse, and nothing comes through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import add_group, enhanced, image, save
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom import config
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR, tag_for_keyword
from valid_enhanced import DAY, DIMENSIONS, FRAMES, POSITIONS, TYPES, coded, errors_of, item, valid_enhanced

from ctmr.datasets.deid import multiframe, profile
from ctmr.datasets.deid.dicom import Cleaner, quiet_pydicom
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.names import Dates
from ctmr.io.dicom import read_series

KEY = Key(b"k" * 32)
NEEDED = {
    "SpecificCharacterSet",
    "SOPClassUID",
    "Modality",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "PixelData",
    "BurnedInAnnotation",
    "ImageType",
}
"""Attributes without which the file is no image, or another one."""
MODALITIES = pytest.mark.parametrize("modality", ["CT", "MR"])
Change = Callable[[pydicom.Dataset], None]


def cleaned(source: Path, dates: Dates = Dates.REMOVE) -> Path:
    """Clean a file and write the result into a folder of its own beside it."""
    made, _ = Cleaner(KEY, "P1", "1.2", "T1", dates).clean(source, 1)
    target = source.parent / "cleaned" / "x.dcm"
    target.parent.mkdir(exist_ok=True)
    pydicom.dcmwrite(target, made, enforce_file_format=True)
    return target


def shared(source: pydicom.Dataset) -> pydicom.Dataset:
    return source.SharedFunctionalGroupsSequence[0]


def each(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """The image and the items of all its sequences."""
    yield dataset
    for element in list(dataset):
        if element.VR == "SQ":
            for inner in element.value:
                yield from each(inner)


def typed(source: pydicom.Dataset, kinds: list[str]) -> None:
    source.ImageType = kinds
    for name in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence"):
        if name in shared(source):
            shared(source)[name].value[0].FrameType = kinds


def another(source: pydicom.Dataset) -> dict[str, str]:
    """What refers to another image."""
    return {"ReferencedSOPClassUID": source.SOPClassUID, "ReferencedSOPInstanceUID": "1.2.3.4.5"}


def evidence(source: pydicom.Dataset) -> list[pydicom.Dataset]:
    series = item(SeriesInstanceUID="1.2.9", ReferencedSOPSequence=[item(**another(source))])
    return [item(StudyInstanceUID=source.StudyInstanceUID, ReferencedSeriesSequence=[series])]


# Valid sources of many kinds


def as_it_is(source: pydicom.Dataset) -> None:
    """The source as it is made."""


def of_each_frame(source: pydicom.Dataset) -> None:
    for element in list(shared(source)):
        del shared(source)[element.tag]
        for frame in source.PerFrameFunctionalGroupsSequence:
            frame.add(copy.deepcopy(element))


def with_other_words(source: pydicom.Dataset) -> None:
    """Where the standard leaves it to the maker: terms, texts, codes."""
    typed(source, ["ORIGINAL", "PRIMARY", "WARDSEVEN", "WARDSEVEN"])
    source.Manufacturer, source.BodyPartExamined = "Ward Seven Works", "WARDSEVEN"
    groups = shared(source)
    groups.FrameAnatomySequence[0].AnatomicRegionSequence = [coded("W7", "99WARD", "Ward Seven")]
    for frame in source.PerFrameFunctionalGroupsSequence:
        frame.FrameContentSequence[0].StackID = "Ward7 A"
    if source.Modality == "MR":
        source.KSpaceFiltering = source.ApplicableSafetyStandardAgency = "WARDSEVEN"
        groups.PixelValueTransformationSequence[0].RescaleType = "WARDSEVEN"
        groups.MRTransmitCoilSequence[0].TransmitCoilType = "WARDSEVEN"
    else:
        groups.CTReconstructionSequence[0].ReconstructionAlgorithm = "WARDSEVEN"
        groups.CTAcquisitionTypeSequence[0].AcquisitionType = "WARDSEVEN"


def of_minutes(source: pydicom.Dataset) -> None:
    for frame in source.PerFrameFunctionalGroupsSequence:
        frame.FrameContentSequence[0].FrameAcquisitionDuration = 312345.6


def with_empty_values(source: pydicom.Dataset) -> None:
    source.PatientPosition = source.BodyPartExamined = None
    if source.Modality == "CT":
        source.AcquisitionDuration = shared(source).CTExposureSequence[0].CTDIvol = None


def gated(source: pydicom.Dataset) -> None:
    source.CardiacSynchronizationTechnique, source.CardiacSignalSource = "PROSPECTIVE", "ECG"
    source.CardiacRRIntervalSpecified, source.CardiacBeatRejectionTechnique = 900.0, "RR_INTERVAL"
    source.LowRRValue, source.HighRRValue, source.IntervalsAcquired, source.IntervalsRejected = 800, 1000, 10, 1
    source.CardiacFramingType = "FORW"
    add_group(
        shared(source),
        "CardiacSynchronizationSequence",
        NominalPercentageOfCardiacPhase=40.0,
        NominalCardiacTriggerDelayTime=300.0,
        ActualCardiacTriggerDelayTime=301.0,
        RRIntervalTimeNominal=900.0,
    )


def with_references(source: pydicom.Dataset) -> None:
    purpose = coded("121311", "DCM", "Localizer")
    planned = item(**another(source), ReferencedFrameNumber=1, PurposeOfReferenceCodeSequence=[purpose])
    shared(source).ReferencedImageSequence = [planned]
    source.ReferencedImageEvidenceSequence = evidence(source)
    source.ConcatenationUID, source.SOPInstanceUIDOfConcatenationSource = "1.2.3.9", "1.2.3.8"
    source.InConcatenationNumber, source.InConcatenationTotalNumber = 1, 2
    source.ConcatenationFrameOffsetNumber = 0
    source.SynchronizationFrameOfReferenceUID = "1.2.7"
    source.SynchronizationTrigger, source.AcquisitionTimeSynchronized = "NO TRIGGER", "Y"
    source.DimensionIndexSequence[0].DimensionIndexPointer = 0x2005100A
    source.DimensionIndexSequence[0].DimensionIndexPrivateCreator = "Ward7 private"


def derived(source: pydicom.Dataset) -> None:
    typed(source, ["DERIVED", "PRIMARY", "VOLUME", "MEAN"])
    # A derived image has no pulse sequence.
    for name in PULSE_SEQUENCE:
        if name in source:
            delattr(source, name)
    purpose = coded("121322", "DCM", "Source image for image processing operation")
    origin = item(**another(source), PurposeOfReferenceCodeSequence=[purpose])
    averaging = coded("113049", "DCM", "Averaging of ward seven")
    for frame in source.PerFrameFunctionalGroupsSequence:
        frame.DerivationImageSequence = [item(DerivationCodeSequence=[averaging], SourceImageSequence=[origin])]
    source.SourceImageEvidenceSequence = evidence(source)


def diffusion(source: pydicom.Dataset) -> None:
    typed(source, ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"])
    source.AcquisitionContrast = shared(source).MRImageFrameTypeSequence[0].AcquisitionContrast = "DIFFUSION"
    add_group(
        shared(source),
        "MRDiffusionSequence",
        DiffusionBValue=1000.0,
        DiffusionDirectionality="DIRECTIONAL",
        DiffusionGradientDirectionSequence=[item(DiffusionGradientOrientation=[0.0, 0.0, 1.0])],
        DiffusionAnisotropyType="FRACTIONAL",
    )


def labelled(source: pydicom.Dataset) -> None:
    typed(source, ["ORIGINAL", "PRIMARY", "ASL", "NONE"])
    source.ArterialSpinLabelingContrast = "PSEUDOCONTINUOUS"
    slab = item(
        ASLSlabNumber=1,
        ASLSlabThickness=10.0,
        ASLSlabOrientation=[0.0, 0.0, 1.0],
        ASLMidSlabPosition=[0.0, 0.0, -90.0],
        ASLPulseTrainDuration=1800,
    )
    add_group(
        shared(source),
        "MRArterialSpinLabelingSequence",
        ASLTechniqueDescription="Ward7",
        ASLContext="LABEL",
        ASLSlabSequence=[slab],
        ASLCrusherFlag="YES",
        ASLCrusherFlowLimit=2.0,
        ASLCrusherDescription="Ward7",
        ASLBolusCutoffFlag="YES",
        ASLBolusCutoffTimingSequence=[item(ASLBolusCutoffDelayTime=700, ASLBolusCutoffTechnique="Ward7")],
    )


def sequenced(source: pydicom.Dataset) -> None:
    shared(source).CTAcquisitionTypeSequence[0].AcquisitionType = "SEQUENCED"
    shared(source).CTTableDynamicsSequence = [item()]
    reconstruction = shared(source).CTReconstructionSequence[0]
    del reconstruction.ReconstructionDiameter
    reconstruction.ReconstructionFieldOfView = [250.0, 250.0]


PULSE_SEQUENCE = {
    "PulseSequenceName",
    "MRAcquisitionType",
    "EchoPulseSequence",
    "MultiPlanarExcitation",
    "PhaseContrast",
    "TimeOfFlightContrast",
    "SteadyStatePulseSequence",
    "EchoPlanarPulseSequence",
    "SaturationRecovery",
    "SpectrallySelectedSuppression",
    "OversamplingPhase",
    "GeometryOfKSpaceTraversal",
    "RectilinearPhaseEncodeReordering",
    "SegmentedKSpaceTraversal",
    "CoverageOfKSpace",
    "NumberOfKSpaceTrajectories",
}
BOTH = (
    as_it_is,
    of_each_frame,
    with_other_words,
    of_minutes,
    with_empty_values,
    gated,
    with_references,
    derived,
)
KINDS = [(m, k) for k in BOTH for m in ("CT", "MR")] + [("MR", diffusion), ("MR", labelled), ("CT", sequenced)]


@pytest.mark.parametrize(("modality", "change"), KINDS)
def test_what_a_validator_finds_valid_stays_so(modality: str, change: Change, tmp_path: Path) -> None:
    source = valid_enhanced(modality)
    change(source)
    (file,) = save(tmp_path, [source])
    assert errors_of(file) == {}
    assert errors_of(cleaned(file)) == {}
    # No text of the source is left; its words all begin alike.
    assert b"ward" not in (tmp_path / "cleaned" / "x.dcm").read_bytes().lower()


@MODALITIES
def test_dates_that_are_shifted_leave_a_valid_file_too(modality: str, tmp_path: Path) -> None:
    (file,) = save(tmp_path, [valid_enhanced(modality)])
    assert errors_of(cleaned(file, Dates.SHIFT)) == {}


def test_a_legacy_converted_image_stays_valid(tmp_path: Path) -> None:
    header = {
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyDate": DAY,
        "StudyTime": "010101",
        "AccessionNumber": "",
        "StudyID": "1",
        "ReferringPhysicianName": "",
        "Manufacturer": "Siemens",
        "SeriesNumber": 1,
        "FrameOfReferenceUID": "1.2.3",
        "PositionReferenceIndicator": "",
        "BodyPartExamined": "BRAIN",
        "PatientPosition": "HFS",
    }
    slices = [image(f, (0, 0, 2 * k), **header, InstanceNumber=k) for k, f in enumerate(FRAMES, start=1)]
    for single in slices:
        single.PatientName = "Nobody^Really"
        single.file_meta.MediaStorageSOPClassUID = single.SOPClassUID
        single.file_meta.MediaStorageSOPInstanceUID = single.SOPInstanceUID
    made = LegacyConvertedEnhancedCTImage(
        slices, series_instance_uid="1.2.77", series_number=2, sop_instance_uid="1.2.77.1", instance_number=1
    )
    (file,) = save(tmp_path, [made])
    assert errors_of(file) == {}
    assert errors_of(cleaned(file)) == {}


# Sources that lack something


def bare(modality: str) -> pydicom.Dataset:
    return enhanced(FRAMES, POSITIONS, Modality=modality)


def without(*names: str) -> Callable[[str], pydicom.Dataset]:
    def made(modality: str) -> pydicom.Dataset:
        source = valid_enhanced(modality)
        for place in list(each(source)):
            for name in names:
                if name in place:
                    delattr(place, name)
        return source

    return made


def emptied(*names: str) -> Callable[[str], pydicom.Dataset]:
    def made(modality: str) -> pydicom.Dataset:
        source = valid_enhanced(modality)
        for place in list(each(source)):
            for name in names:
                if name in place:
                    place[name].value = [] if place[name].VR == "SQ" else None
        return source

    return made


LACKING = {
    "everything": bare,
    "equipment": without("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
    "anatomy": without("FrameAnatomySequence", "BodyPartExamined"),
    "type 2": without("PatientPosition", "AcquisitionContextSequence", "PositionReferenceIndicator"),
    "dimensions": without("DimensionIndexSequence", "DimensionOrganizationSequence", "StackID"),
    "values": emptied("FrameType", "ImageType", "StackID", "IrradiationEventUID", "KVP", "RepetitionTime", "FlipAngle"),
    "items": emptied("FrameAnatomySequence", "CTExposureSequence", "MREchoSequence", "AnatomicRegionSequence"),
}


@MODALITIES
@pytest.mark.parametrize("lacks", LACKING)
def test_a_source_that_lacks_something_gets_no_more_errors_of_any_kind(
    modality: str, lacks: str, tmp_path: Path
) -> None:
    (file,) = save(tmp_path, [LACKING[lacks](modality)])
    before, after = errors_of(file), errors_of(cleaned(file))
    assert before, "the source is not valid"
    assert after - before == {}
    kept = pydicom.dcmread(tmp_path / "cleaned" / "x.dcm")
    for keyword in ("AccessionNumber", "PositionReferenceIndicator", "AcquisitionContextSequence", "PatientPosition"):
        assert keyword in kept, keyword


# What stays and what goes


@MODALITIES
def test_voxels_and_places_are_those_of_the_source_for_three_readers(modality: str, tmp_path: Path) -> None:
    (file,) = save(tmp_path / "in", [valid_enhanced(modality)])
    new = cleaned(file)
    np.testing.assert_array_equal(pydicom.dcmread(new).pixel_array, FRAMES)
    before, after = read_series([file]), read_series([new])
    np.testing.assert_array_equal(before.array, after.array)
    np.testing.assert_array_equal(before.affine, after.affine)
    assert (before.unit, before.modality) == (after.unit, after.modality)
    theirs = [SimpleITK.ReadImage(str(f)) for f in (file, new)]
    for ask in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(theirs[0], ask)() == getattr(theirs[1], ask)(), ask
    np.testing.assert_array_equal(*(SimpleITK.GetArrayFromImage(t) for t in theirs))


@MODALITIES
def test_what_was_measured_stays_as_it_was(modality: str, tmp_path: Path) -> None:
    source = valid_enhanced(modality)
    (file,) = save(tmp_path, [source])
    kept = pydicom.dcmread(cleaned(file))
    names = {
        "MR": ("MRTimingAndRelatedParametersSequence", "MRModifierSequence", "MRSpatialSaturationSequence"),
        "CT": ("CTAcquisitionDetailsSequence", "CTExposureSequence", "CTPositionSequence"),
    }[modality]
    for name in names:
        before, after = shared(source)[name].value[0], shared(kept)[name].value[0]
        if name == "CTExposureSequence":
            before.ExposureModulationType = "OTHER"
        assert before.to_json_dict() == after.to_json_dict()
    assert shared(kept).FrameAnatomySequence[0].AnatomicRegionSequence[0].CodeMeaning == "Brain"
    assert kept.ImageType == TYPES


@MODALITIES
def test_uids_are_replaced_alike_wherever_they_stand(modality: str, tmp_path: Path) -> None:
    source = valid_enhanced(modality)
    source.ConcatenationUID, source.SOPInstanceUIDOfConcatenationSource = "1.2.3.9", str(source.SOPInstanceUID)
    (file,) = save(tmp_path, [source])
    kept = pydicom.dcmread(cleaned(file))
    places = (kept.DimensionOrganizationSequence[0], *kept.DimensionIndexSequence)
    assert {str(p.DimensionOrganizationUID) for p in places} == {KEY.uid(DIMENSIONS)}
    assert kept.SOPInstanceUIDOfConcatenationSource == kept.SOPInstanceUID == KEY.uid(str(source.SOPInstanceUID))
    assert kept.FrameOfReferenceUID == KEY.uid(str(source.FrameOfReferenceUID))


def test_stacks_are_still_told_apart_and_a_known_code_gets_its_own_meaning(tmp_path: Path) -> None:
    source = valid_enhanced("MR")
    for frame, name in zip(source.PerFrameFunctionalGroupsSequence, ("Miller", "Miller", "Smith"), strict=True):
        frame.FrameContentSequence[0].StackID = name
    shared(source).FrameAnatomySequence[0].AnatomicRegionSequence = [coded("T-A0100", "SRT", "Brain of Miller")]
    (file,) = save(tmp_path, [source])
    kept = pydicom.dcmread(cleaned(file))
    first, second, third = (f.FrameContentSequence[0].StackID for f in kept.PerFrameFunctionalGroupsSequence)
    assert first == second != third and len(first) == 16
    region = shared(kept).FrameAnatomySequence[0].AnatomicRegionSequence[0]
    assert (region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning) == ("12738006", "SCT", "Brain")


def test_a_long_duration_stays_to_the_second_and_any_other_large_number_goes(tmp_path: Path) -> None:
    source = valid_enhanced("MR", AcquisitionDuration=918273645.0)
    of_minutes(source)
    shared(source).MRAveragesSequence[0].NumberOfAverages = 918273
    (file,) = save(tmp_path, [source])
    kept = pydicom.dcmread(cleaned(file))
    assert kept.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0].FrameAcquisitionDuration == 312000.0
    assert "AcquisitionDuration" not in kept and "NumberOfAverages" not in shared(kept).MRAveragesSequence[0]


@pytest.mark.parametrize(("modality", "dates"), [("CT", Dates.SHIFT), ("MR", Dates.REMOVE)])
def test_no_token_in_any_attribute_or_item_comes_through(
    modality: str, dates: Dates, some_tokens, leaks, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    source = valid_enhanced(modality)
    for change in (with_references, diffusion if modality == "MR" else sequenced):
        change(source)
    known = profile.NUMBERS | set(profile.TERMS) | multiframe.TEXTS | multiframe.TOLD_APART | multiframe.EMPTIED
    known |= {dictionary_keyword(tag) for tag in profile.table() if dictionary_has_tag(tag) and tag >> 16 > 4}
    names = {"PatientName", "OperatorsName", "FrameComments", "FrameLabel", "StationName", "DimensionDescriptionLabel"}
    inner = next(iter(shared(source).FrameAnatomySequence))
    with quiet_pydicom():
        for place in list(each(source)):
            everything = known if place in (source, inner) else set()
            for keyword in {*place.dir(), *names, *everything} - NEEDED:
                value = some_tokens.of(dictionary_VR(keyword))
                if value is not None:
                    place.add_new(tag_for_keyword(keyword), dictionary_VR(keyword), value)
            place.private_block(0x0009, "PRIV", create=True).add_new(1, "LO", some_tokens.name)
        (tmp_path / "in").mkdir()
        source.save_as(tmp_path / "in" / "x.dcm", enforce_file_format=True)
    assert leaks(some_tokens, tmp_path / "in")
    new = cleaned(tmp_path / "in" / "x.dcm", dates)
    assert leaks(some_tokens, new.parent) == []
