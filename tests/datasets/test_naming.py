"""Folder and file names: who a subject is, and which split an image came with."""

from __future__ import annotations

from pathlib import PurePosixPath

import pydicom
import pytest

from ctmr.datasets import naming
from ctmr.errors import InputError


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        *((f, "train") for f in ("Train", "training", "TrainA", "train_set", "trainB", "TRAIN", "imagesTr")),
        *((f, "val") for f in ("val", "Validation", "valid", "dev", "val2", "ValSet")),
        *((f, "test") for f in ("Test_set", "testing", "TestData", "imagesTs", "hold-out", "eval", "site_test")),
        *((f, "") for f in ("CT", "latest", "contest", "trainee", "ses-test", "tr", "Untested", "data")),
    ],
)
def test_a_split_is_understood_in_every_spelling(folder: str, split: str) -> None:
    assert naming.split_of(PurePosixPath(folder) / "CT" / "x.png") == split
    assert naming.split_of(PurePosixPath("data") / "CT" / folder / "x.png") == split


@pytest.mark.parametrize("path", ["train_val/CT/x.png", "train/test/x.png", "Testing/train/x.png"])
def test_folders_that_name_two_splits_are_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"the split of .* cannot be told: its folders? .* may mean train or"):
        naming.split_of(PurePosixPath(path))


def test_a_clear_folder_decides_above_one_that_names_all_splits() -> None:
    assert naming.split_of(PurePosixPath("train_test_split/train/x.png")) == "train"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CT/p01_ct.nii.gz", "MR/p01_mr.nii.gz"),
        ("CT/p01-CT.nii.gz", "MR/p01-T1w.nii.gz"),
        ("ct_p01.nii", "mr_p01.nii"),
        ("p01/CT/image.nii.gz", "p01/MR/T1.nii.gz"),
        ("imagesTr/p01_0000.nii.gz", "imagesTr/p01_0001.nii.gz"),
        ("CT/Mu\u0308ller.nii.gz", "MR/M\u00fcller.nii.gz"),
    ],
)
def test_volumes_of_one_subject_are_one_subject(one: str, other: str) -> None:
    a, b = (naming.subject_of(PurePosixPath(p), picture=False) for p in (one, other))
    assert a == b and a


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("CT/patient03_slice_012.png", "patient03"),
        ("MR/patient03_mr_slice007.png", "patient03"),
        ("CT/p03-012.png", "p03"),
        ("CT/Patient 3/012.png", "Patient 3"),
        ("CT/JD_z12.png", "JD"),
        ("CT/12.png", "CT/12.png"),
        ("CT/slice_12.png", "CT/slice_12.png"),
        ("CT/img_0012.png", "CT/img_0012.png"),
        ("train/MR/head_z12.png", "train/MR/head_z12.png"),
    ],
)
def test_slices_of_a_patient_are_that_patients_and_other_pictures_stand_alone(path: str, subject: str) -> None:
    assert naming.subject_of(PurePosixPath(path), picture=True) == subject


def test_a_series_is_its_patients_and_without_one_its_studys() -> None:
    header = pydicom.Dataset()
    assert naming.subject_of_series(header) == ""
    header.StudyInstanceUID = "1.2.3"
    header.PatientID = "  "
    assert naming.subject_of_series(header) == "study 1.2.3"
    header.PatientID = " Mu\u0308ller "
    assert naming.subject_of_series(header) == "M\u00fcller"


def test_spellings_of_one_subject_get_one_form() -> None:
    assert naming.one_form(["p01", "P01", "p02"]) == {"p01": "P01", "P01": "P01", "p02": "p02"}
    assert naming.one_form(["p01"], known=["P01"]) == {"p01": "P01"}


@pytest.mark.parametrize(
    "patient", ["0", "000", "Anonymous", "ANON", "unknown", "N/A", "none", "-", "XXXX", "Patient ID", "no_id", "?"]
)
def test_a_patient_id_that_everybody_has_is_none(patient: str) -> None:
    header = pydicom.Dataset()
    header.PatientID, header.StudyInstanceUID = patient, "1.2.3"
    assert naming.subject_of_series(header) == "study 1.2.3"


@pytest.mark.parametrize(
    "patient", ["1", "anon01", "anonymous_17", "X1", "0001", "Nan Li", "patient 3", "TEST4", "ID7"]
)
def test_a_patient_id_with_anything_of_its_own_is_one(patient: str) -> None:
    header = pydicom.Dataset()
    header.PatientID, header.StudyInstanceUID = patient, "1.2.3"
    assert naming.subject_of_series(header) == patient
