"""What still identifies a patient is named by attribute, never by value, and refused by validate."""

from __future__ import annotations

import time
import zlib

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest

from ctmr.data.findings import FindingKind, decide, inspect
from ctmr.data.manifest import INVENTORY_COLUMNS, RECOGNIZABLE_FACES, Column, Outcome
from ctmr.datasets.deid.residual import IDENTIFYING, NEVER, remaining
from ctmr.datasets.dvc import unpack
from ctmr.phantom.cohort import CohortPlan, write_cohort
from ctmr.recipe.recipe import Validate


def test_the_attributes_exist():
    for keyword in IDENTIFYING:
        assert pydicom.datadict.tag_for_keyword(keyword) is not None, keyword
    assert set(IDENTIFYING) >= NEVER


def test_a_series_as_a_scanner_writes_it_is_named_by_attributes(planted, some_tokens, tmp_path):
    found = remaining("dicom", planted(tmp_path, some_tokens, "CT", patient="4711", series="7"))
    assert {"PatientName", "PatientID", "PatientBirthDate", "InstitutionName"} <= set(found)
    assert some_tokens.name not in " ".join(found)


def test_one_file_of_a_series_is_enough(planted, some_tokens, tmp_path):
    files = planted(tmp_path, some_tokens, "CT", patient="", series="7", everywhere=False)
    assert remaining("dicom", files) == ()
    last = pydicom.dcmread(files[-1])
    last.PatientName = "A^B"
    last.save_as(files[-1])
    assert remaining("dicom", files) == ("PatientName",)


def test_the_flag_is_believed_except_of_what_no_deidentified_file_has(planted, some_tokens, tmp_path):
    file = planted(tmp_path, some_tokens, "CT", patient="sub-01", series="7", everywhere=False, slices=1)[0]
    image = pydicom.dcmread(file)
    image.PatientName, image.PatientIdentityRemoved = "sub-01", "YES"
    image.save_as(file)
    assert remaining("dicom", [file]) == ()
    image.PatientTelephoneNumbers = "0123"
    image.save_as(file)
    assert remaining("dicom", [file]) == ("PatientTelephoneNumbers",)
    image.PatientTelephoneNumbers, image.RecognizableVisualFeatures = "", "YES"
    image.save_as(file)
    assert remaining("dicom", [file]) == (RECOGNIZABLE_FACES,)


def test_a_phantom_is_nobody(tmp_path):
    plan = CohortPlan(train_mr=1, train_ct=0, val=0, test=0, shape=(24, 28, 24), spacing_mm=8.0)
    write_cohort(tmp_path / "cohort", plan)
    archive = next((tmp_path / "cohort").rglob("*.zip"))
    unpack(archive, tmp_path / "series")
    assert remaining("dicom", (tmp_path / "series").iterdir()) == ()


def test_a_damaged_file_says_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"damaged")
    for kind in ("dicom", "nifti", "raster"):
        assert remaining(kind, [tmp_path / "a"]) == ()


def inventory(**changed):
    """An inventory of six CT and six MR images without a fault, and one row changed."""
    rows = []
    for k in range(12):
        row = dict.fromkeys(INVENTORY_COLUMNS, "")
        row |= {
            Column.IMAGE: f"i{k}",
            Column.SUBJECT: f"s{k}",
            Column.MODALITY: "CT" if k < 6 else "MR",
            Column.FORMAT: "nifti",
            Column.SHA256: f"{k:064x}",
            Column.DEPTH: 3,
            Column.HEIGHT: 64,
            Column.WIDTH: 64,
            Column.MINIMUM: 0.0,
            Column.MAXIMUM: 9.0,
            Column.UNIT: "arbitrary",
        }
        rows.append({str(c): v for c, v in row.items()})
    rows[0] |= changed
    return pd.DataFrame(rows)


def found(**changed):
    table = inventory(**changed)
    findings = inspect(table, Validate())
    return decide(findings, len(table)), [f for f in findings if f.rule in ("identity", "faces")]


def test_nothing_is_said_of_a_dataset_without_identity():
    assert found() == (Outcome.PASS, [])


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_a_header_that_names_the_patient_refuses_the_dataset(kind):
    outcome, (finding,) = found(identity="PatientBirthDate;PatientName", format=kind)
    assert outcome is Outcome.REFUSE and finding.kind is FindingKind.REFUSE and finding.images == ("i0",)
    assert "PatientBirthDate, PatientName" in finding.sentence and "ctmr dataset add" in finding.sentence


def test_a_picture_with_text_is_dropped():
    outcome, (finding,) = found(identity="EXIF Artist", format="raster")
    assert outcome is Outcome.PASS_WITH_DROPS and finding.kind is FindingKind.DROP and "EXIF Artist" in finding.sentence


def test_faces_are_a_warning():
    outcome, (finding,) = found(identity=RECOGNIZABLE_FACES, format="dicom")
    assert outcome is Outcome.PASS and finding.kind is FindingKind.WARN and "deface" in finding.sentence


def test_extensions_without_size_do_not_hold_up_the_search(tmp_path):
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4)).header
    header["vox_offset"] = 2**30
    engine = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = engine.compress(header.binaryblock + b"\1\0\0\0")
    packed += b"".join(engine.compress(bytes(2**20)) for _ in range(64)) + engine.flush()
    (tmp_path / "a.nii.gz").write_bytes(packed)
    begun = time.monotonic()
    assert remaining("nifti", [tmp_path / "a.nii.gz"]) == ()
    assert time.monotonic() - begun < 10
