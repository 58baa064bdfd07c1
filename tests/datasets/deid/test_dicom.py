"""De-identification of DICOM: nothing planted comes through, what an image needs stays."""

from __future__ import annotations

import csv
import hashlib
import warnings
from importlib.resources import files

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, tag_for_keyword
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from ctmr.datasets.deid import dicom, multiframe, profile
from ctmr.datasets.deid.dicom import Cleaner
from ctmr.datasets.deid.profile import Action, action_for
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.names import Dates
from ctmr.errors import InputError
from ctmr.io.dicom import read_series

KEY = Key(b"k" * 32)
OTHER = Key(b"o" * 32)


@pytest.fixture
def clean(tmp_path_factory):
    """Write an image that a test has changed, and de-identify it."""

    def run(image, *, key=KEY, subject="patient 1", series="1.2.3", sequence="T1", dates=Dates.REMOVE):
        file = tmp_path_factory.mktemp("changed") / "image.dcm"
        with dicom.quiet_pydicom():
            image.save_as(file)
        return Cleaner(key, subject, series, sequence, dates).clean(file, 1)[0]

    return run


def every_element(dataset):
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from every_element(item)


# The table of the standard


def test_every_row_of_the_table_is_an_attribute_that_exists():
    known = {tag for tag in profile.table() if dictionary_has_tag(tag)}
    # What came into the standard after this pydicom, and two command elements, which pydicom keeps apart.
    unknown = set(profile.table()) - known
    assert len(known) > 600
    assert all(tag >> 16 in (0x0000, 0x0008, 0x0010, 0x0018, 0x003A, 0x0040, 0x0070) for tag in unknown), unknown
    assert len(unknown) < 40


@pytest.mark.parametrize(
    ("keyword", "action"),
    [
        # Printed in PS3.15 Table E.1-1; typed from there, not read from our file.
        ("PatientName", Action.EMPTY),
        ("PatientID", Action.EMPTY),
        ("PatientBirthDate", Action.EMPTY),
        ("PatientSex", Action.EMPTY),
        ("AccessionNumber", Action.EMPTY),
        ("StudyDate", Action.EMPTY),
        ("StudyTime", Action.EMPTY),
        ("StudyID", Action.EMPTY),
        ("ReferringPhysicianName", Action.EMPTY),
        ("StudyInstanceUID", Action.MAP_UID),
        ("SeriesInstanceUID", Action.MAP_UID),
        ("SOPInstanceUID", Action.MAP_UID),
        ("FrameOfReferenceUID", Action.MAP_UID),
        ("InstitutionName", Action.REMOVE),
        ("InstitutionAddress", Action.REMOVE),
        ("StationName", Action.REMOVE),
        ("OperatorsName", Action.REMOVE),
        ("PatientAge", Action.REMOVE),
        ("PatientWeight", Action.REMOVE),
        ("PatientAddress", Action.REMOVE),
        ("OtherPatientIDs", Action.REMOVE),
        ("PatientComments", Action.REMOVE),
        ("SeriesDescription", Action.REMOVE),
        ("StudyDescription", Action.REMOVE),
        ("ProtocolName", Action.REMOVE),
        ("DeviceSerialNumber", Action.REMOVE),
        ("AcquisitionDate", Action.REMOVE),
        ("ImageComments", Action.REMOVE),
        ("RequestAttributesSequence", Action.REMOVE),
        ("ReferencedImageSequence", Action.REMOVE),
        ("IconImageSequence", Action.REMOVE),
        ("ContentSequence", Action.REMOVE),
    ],
)
def test_the_table_says_what_the_standard_says(keyword, action):
    assert action_for(tag_for_keyword(keyword), keyword, enhanced=False) is action


def test_private_attributes_curves_and_overlays_are_removed():
    for tag in (0x00091001, 0x00290010, 0x60003000, 0x60024000, 0x50000040):
        assert action_for(tag, "", enhanced=False) is Action.REMOVE


def test_what_stays_is_nothing_that_the_table_wants_changed():
    texts = multiframe.TEXTS | multiframe.TOLD_APART | multiframe.EMPTIED | {"Manufacturer", profile.REGION}
    for keyword in profile.NUMBERS | set(profile.TERMS) | profile.SEQUENCES | profile.POINTERS | texts:
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        assert action_for(tag, keyword, enhanced=False) is None, keyword


def test_the_table_agrees_with_another_ones_reading_of_the_standard():
    """The fingerprint is that of dicom-anonymizer 2.1.0 (BSD), which parsed PS3.15 2024b by itself: 617 rows."""
    lines = (files("ctmr.datasets.deid") / "ps3_15_table_e_1_1.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#") and not line.endswith(" +")]
    text = "".join(f"{tag} {action}\n" for tag, action, *_ in rows)
    assert len(rows) == 617
    theirs = "a046b77a8d6e67bf3f31737976fcf005bff4823efb75ee907b57c62fbdfd9a5c"
    assert hashlib.sha256(text.encode()).hexdigest() == theirs


def test_the_table_is_a_table():
    lines = (files("ctmr.datasets.deid") / "ps3_15_table_e_1_1.tsv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.reader((line for line in lines if not line.startswith("#")), delimiter="\t"))
    assert {len(row) for row in rows} == {4}
    assert {choice for row in rows for choice in row[1].split("/")} == {"X", "Z", "D", "U", "U*"}
    assert len({row[0] for row in rows}) == len(rows)


# Nothing comes through


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_token_in_any_attribute_comes_through(data, tokens_of, planted, tmp_path_factory, leaks):
    tokens = data.draw(tokens_of)
    folder = tmp_path_factory.mktemp("planted")
    modality = data.draw(st.sampled_from(["CT", "MR"]))
    dates = data.draw(st.sampled_from(Dates))
    for file in planted(folder / "in", tokens, modality, patient=tokens.number, series="7", slices=1):
        with warnings.catch_warnings():
            # What pydicom warns of goes to the terminal and to logs, with the value.
            warnings.simplefilter("error")
            image, uids = Cleaner(KEY, tokens.number, "1.2", "T1", dates).clean(file, 1)
        (folder / "out").mkdir(exist_ok=True)
        pydicom.dcmwrite(folder / "out" / "a.dcm", image, enforce_file_format=True)
        assert tokens.uid in str(uids.values())
    assert leaks(tokens, folder / "in")
    assert leaks(tokens, folder / "out") == []


def test_what_stays_is_an_image_with_the_same_voxels_in_the_same_place(planted, some_tokens, tmp_path):
    made = planted(tmp_path / "in", some_tokens, "CT", patient="1", series="7", slices=4, everywhere=False)
    (tmp_path / "out").mkdir()
    for k, file in enumerate(made):
        image = Cleaner(KEY, "1", "7", "").clean(file, k + 1)[0]
        pydicom.dcmwrite(tmp_path / "out" / file.name, image, enforce_file_format=True)
    before, after = read_series(tmp_path / "in"), read_series(tmp_path / "out")
    np.testing.assert_array_equal(before.array, after.array)
    np.testing.assert_array_equal(before.affine, after.affine)
    assert (after.subject, after.unit, after.modality) == (KEY.pseudonym("1"), before.unit, before.modality)


def test_a_clean_image_says_that_it_is_one(clean, planted, some_tokens, tmp_path):
    source = pydicom.dcmread(planted(tmp_path, some_tokens, "MR", patient="1", series="7", everywhere=False)[0])
    image = clean(source)
    assert image.PatientIdentityRemoved == "YES" and "PS3.15" in image.DeidentificationMethod
    codes = {(c.CodingSchemeDesignator, c.CodeValue) for c in image.DeidentificationMethodCodeSequence}
    assert codes == {("DCM", "113100"), ("DCM", "113105")}
    assert image.LongitudinalTemporalInformationModified == "REMOVED"
    assert image.RecognizableVisualFeatures == "YES"
    assert (image.SeriesDescription, image.ProtocolName) == ("MR T1", "T1")
    assert not any(element.tag.is_private for element in every_element(image))


def test_a_defaced_head_stays_marked_as_one(clean, planted, some_tokens, tmp_path):
    source = pydicom.dcmread(planted(tmp_path, some_tokens, "MR", patient="1", series="7", everywhere=False)[0])
    source.RecognizableVisualFeatures = "NO"
    assert clean(source).RecognizableVisualFeatures == "NO"


def test_items_are_cleaned_as_the_image_is(clean, some_tokens, planted, tmp_path):
    source = pydicom.dcmread(planted(tmp_path, some_tokens, "MR", patient="1", series="7", everywhere=False)[0])
    frame, measures = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.PatientName = [1, 1], 2, some_tokens.name
    measures.add_new(0x00091001, "LO", some_tokens.name)
    content = pydicom.Dataset()
    content.StackID, content.InStackPositionNumber, content.FrameComments = "1", 3, some_tokens.name
    content.DimensionIndexValues = [1, 2]
    frame.PixelMeasuresSequence, frame.FrameContentSequence = [measures], [content]
    frame.ReferencedImageSequence = [measures]
    source.PerFrameFunctionalGroupsSequence = [frame, frame]
    source.SOPClassUID = EnhancedMRImageStorage
    source.AcquisitionDateTime = "19470823071943"
    kept = clean(source)
    inner = kept.PerFrameFunctionalGroupsSequence[1]
    assert set(inner.dir()) == {"PixelMeasuresSequence", "FrameContentSequence"}
    assert set(inner.PixelMeasuresSequence[0].dir()) == {"PixelSpacing", "SliceThickness"}
    assert set(inner.FrameContentSequence[0].dir()) == {"StackID", "InStackPositionNumber", "DimensionIndexValues"}
    # Enhanced images must have this one, so it is a dummy.
    assert kept.AcquisitionDateTime == "19000101000000"


# Pseudonyms, UIDs, dates


def test_equal_identifiers_get_equal_pseudonyms_and_uids_with_one_key_alone(clean, planted, some_tokens, tmp_path):
    sources = [
        pydicom.dcmread(planted(tmp_path / m, some_tokens, m, patient="1", series=s, everywhere=False)[0])
        for m, s in (("CT", "7"), ("MR", "8"))
    ]
    ct, mr = (clean(s, series=str(s.SeriesInstanceUID)) for s in sources)
    assert ct.PatientID == mr.PatientID and ct.StudyInstanceUID == mr.StudyInstanceUID
    assert ct.SeriesInstanceUID != mr.SeriesInstanceUID
    assert clean(sources[0], key=OTHER).PatientID != ct.PatientID
    assert clean(sources[0], key=OTHER).StudyInstanceUID != ct.StudyInstanceUID
    for element in every_element(ct):
        if element.VR == "UI" and not str(element.value).startswith("1.2.840.10008."):
            assert pydicom.uid.UID(element.value).is_valid and len(element.value) <= 64


def test_shifted_dates_keep_their_intervals_for_a_patient_and_lose_their_times(clean, planted, some_tokens, tmp_path):
    first, second = (
        pydicom.dcmread(planted(tmp_path / n, some_tokens, "CT", patient="1", series=n, everywhere=False)[0])
        for n in ("7", "8")
    )
    for source, day in ((first, "20200228"), (second, "20200301")):
        source.StudyDate = source.SeriesDate = source.AcquisitionDate = day
        source.StudyTime = "101112"
        source.PatientBirthDate = "19500101"
    a, b = (clean(s, dates=Dates.SHIFT) for s in (first, second))
    days = [np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (a.StudyDate, b.StudyDate)]
    assert (days[1] - days[0]).astype(int) == 2 and days[0] < np.datetime64("2020-02-28")
    assert a.AcquisitionDate == a.StudyDate == a.SeriesDate
    assert not a.StudyTime and not a.PatientBirthDate
    assert a.LongitudinalTemporalInformationModified == "MODIFIED"
    assert "113107" in {c.CodeValue for c in a.DeidentificationMethodCodeSequence}
    assert clean(first, dates=Dates.SHIFT, subject="another").StudyDate != a.StudyDate
    assert not clean(first).StudyDate


@pytest.mark.parametrize("date", ["", "2020", "20201399", "yesterday", "00010101"])
def test_what_is_no_date_is_removed_rather_than_shifted(clean, planted, some_tokens, tmp_path, date):
    source = pydicom.dcmread(planted(tmp_path, some_tokens, "CT", patient="1", series="7", everywhere=False)[0])
    source.add_new("StudyDate", "DA", date)
    assert not clean(source, dates=Dates.SHIFT).StudyDate


# Refused


def test_burned_in_annotation_is_refused(clean, planted, some_tokens, tmp_path):
    source = pydicom.dcmread(planted(tmp_path, some_tokens, "CT", patient="1", series="7", everywhere=False)[0])
    for value in ("YES", "yes "):
        source.BurnedInAnnotation = value
        with pytest.raises(InputError, match="BurnedInAnnotation YES"):
            clean(source)
    source.BurnedInAnnotation = "NO"
    assert clean(source).BurnedInAnnotation == "NO"


def test_a_screen_shot_is_refused(clean, planted, some_tokens, tmp_path):
    source = pydicom.dcmread(planted(tmp_path, some_tokens, "CT", patient="1", series="7", everywhere=False)[0])
    source.SamplesPerPixel, source.PhotometricInterpretation = 3, "RGB"
    with pytest.raises(InputError, match="colour image"):
        clean(source)
    source.SOPClassUID = SecondaryCaptureImageStorage
    with pytest.raises(InputError, match="no CT or MR image"):
        clean(source)


# Pixels


def pixels_in(folder, some_tokens, planted):
    return pydicom.dcmread(planted(folder, some_tokens, "CT", patient="1", series="7", everywhere=False)[0])


def test_an_overlay_in_unused_bits_and_bytes_behind_the_pixels_do_not_come_along(clean, planted, some_tokens, tmp_path):
    source = pixels_in(tmp_path, some_tokens, planted)
    values = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) % 4096
    source.PixelData = (values | 0x8000).astype("<u2").tobytes() + b"hidden"
    kept = clean(source)
    np.testing.assert_array_equal(kept.pixel_array, values)
    assert len(kept.PixelData) == values.nbytes


@pytest.mark.parametrize(("signed", "written"), [(False, 4000), (True, 63536), (True, -2000)])
def test_padding_stays_padding(clean, planted, some_tokens, tmp_path, signed, written):
    source = pixels_in(tmp_path, some_tokens, planted)
    values = np.full((48, 48), 100, dtype=np.int16)
    values[0] = -2000 if signed else 4000
    source.PixelRepresentation = int(signed)
    source.PixelData = values.astype("<i2").tobytes()
    source.add_new("PixelPaddingValue", "SS" if written < 0 else "US", written)
    kept = clean(source)
    assert (kept.pixel_array[0] == kept.PixelPaddingValue).all() and (kept.pixel_array[1:] == 100).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_pixels_are_stored_plain_so_that_no_comment_of_the_stream_stays(
    clean, planted, some_tokens, tmp_path, syntax
):
    source = pixels_in(tmp_path, some_tokens, planted)
    source.PixelData = np.arange(48 * 48, dtype="<u2").tobytes()
    expected = source.pixel_array.copy()
    source.BitsStored, source.HighBit = 16, 15
    source.compress(syntax)
    kept = clean(source)
    assert kept.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    np.testing.assert_array_equal(kept.pixel_array, expected)


def test_pixels_that_cannot_be_decoded_are_refused_without_repeating_the_library(clean, planted, some_tokens, tmp_path):
    source = pixels_in(tmp_path, some_tokens, planted)
    source.PixelData = b"\1\2"
    with pytest.raises(InputError, match="pixels that cannot be decoded"):
        clean(source)


def test_a_file_without_preamble_is_cleaned_as_well(planted, some_tokens, tmp_path):
    file = planted(tmp_path, some_tokens, "CT", patient="1", series="7", everywhere=False)[0]
    whole = pydicom.dcmread(file)
    with (tmp_path / "bare").open("wb") as stream:
        whole.file_meta = pydicom.dataset.FileMetaDataset()
        pydicom.dcmwrite(stream, whole, implicit_vr=True, little_endian=True, enforce_file_format=False)
    kept = Cleaner(KEY, "1", "7", "").clean(tmp_path / "bare", 1)[0]
    np.testing.assert_array_equal(kept.pixel_array, pydicom.dcmread(file).pixel_array)


def test_numbers_stay_as_they_were_written_and_large_ones_go(clean, planted, some_tokens, tmp_path):
    source = pixels_in(tmp_path, some_tokens, planted)
    source.SliceLocation = "-0012.50"
    source.SeriesNumber = "4711"
    source.AcquisitionNumber = "918273645"
    kept = clean(source)
    assert (str(kept.SliceLocation), kept.SeriesNumber, kept.AcquisitionNumber) == ("-0012.50", 4711, None)
    assert dictionary_keyword(0x00200011) == "SeriesNumber" and kept.SOPClassUID == CTImageStorage
