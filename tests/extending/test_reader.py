"""A new format is a file and a row: every door that takes or gives an image knows it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd_files
import numpy as np
import pytest

from ctmr.data import images
from ctmr.data.manifest import Column
from ctmr.datasets.build import Job, make
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.importers import plan
from ctmr.datasets.names import Dates, FolderLayout
from ctmr.datasets.scanning import scanned
from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.io import FORMATS, Format, Holds, format_of, read_image
from ctmr.io.dicom import SyntheticProvenance
from ctmr.pipeline.stages.fetch import describe, find_images
from ctmr.serving.synthesis import write_translation

ROW = Format("NRRD", Holds.VOLUME, (".nrrd",), "nrrd_files", ".nrrd", begins=lambda p: p.read_bytes()[:4] == b"NRRD")
AFFINE = np.array([[0.0, 0, -1.5, 40], [0, -2, 0, 30], [3, 0, 0, -20], [0, 0, 0, 1]])
PROVENANCE = SyntheticProvenance("head", "3", "0" * 64, "", "", "", "", Direction.MR2CT)
ARRAY = np.arange(-1000, 1000, dtype=np.float32)[:1920].reshape(8, 12, 20)


@pytest.fixture
def ct(monkeypatch: pytest.MonkeyPatch) -> Volume:
    monkeypatch.setitem(FORMATS, "nrrd", ROW)
    return Volume(ARRAY, AFFINE, Modality.CT, Unit.HU)


def saved(path: Path, volume: Volume, text: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return nrrd_files.write(path, volume, text=text)


def test_without_its_row_it_is_no_image(tmp_path: Path) -> None:
    path = saved(tmp_path / "CT" / "a.nrrd", Volume(ARRAY, AFFINE, Modality.CT, Unit.HU))
    assert format_of(path) is None and find_images(tmp_path) == []
    with pytest.raises(InputError, match="no known format"):
        read_image(path)


def test_it_is_found_by_name_and_by_its_first_bytes_and_read(tmp_path: Path, ct: Volume) -> None:
    path = saved(tmp_path / "a.nrrd", ct)
    assert format_of(Path("x/A.NRRD")) == "nrrd"
    volume = read_image(path, modality=Modality.CT, subject="S1")
    assert (volume.unit, volume.subject, volume.orientation) == (Unit.HU, "S1", "SPL")
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.affine, AFFINE)
    bare = path.rename(tmp_path / "bare")
    assert format_of(bare) == "nrrd"
    with pytest.raises(InputError, match=r"file ending in .*\.nrrd"):
        (tmp_path / "a.txt").write_text("x")
        read_image(tmp_path / "a.txt")


def test_fetch_takes_inventory_of_it_with_its_mask_and_what_names_the_patient(tmp_path: Path, ct: Volume) -> None:
    saved(tmp_path / "train" / "CT" / "p1.nrrd", ct, {"PatientName": "x"})
    saved(tmp_path / "train" / "CT" / "p1_mask.nrrd", ct.with_array((ARRAY > 0).astype(np.float32)))
    (tmp_path / "train" / "CT" / "p2.nrrd").write_bytes(b"NRRD0004\n")
    good, bad = (describe(tmp_path, entry) for entry in find_images(tmp_path))
    assert (good[Column.FORMAT], good[Column.ERROR], good[Column.UNIT]) == ("nrrd", "", "HU")
    assert (good[Column.SUBJECT], good[Column.SPLIT_GIVEN], good[Column.IDENTITY]) == ("p1", "train", "PatientName")
    assert good[Column.SPACING_D_MM] == 3.0 and "cannot be read as NRRD" in bad[Column.ERROR]
    volume = images.read(tmp_path, good)
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_array_equal(images.read_mask(tmp_path, good, volume), ARRAY > 0)


def test_dataset_add_scans_it_and_writes_it_anew_without_its_text(tmp_path: Path, ct: Volume) -> None:
    saved(tmp_path / "in" / "CT" / "p1.nrrd", ct, {"PatientName": "Jane"})
    with scanned(tmp_path / "in", tmp_path / "out") as scan:
        assert [(i.kind, i.holds) for i in scan.items] == [("nrrd", Holds.VOLUME)]
        (found,) = plan(scan, FolderLayout.AUTO).images
        assert (found.modality, found.subject) == (Modality.CT, "patient p1")
        key = Key(bytes(32))
        assert make(Job(found, "sub-a/ct", tmp_path / "out", key, Dates.REMOVE)).refused == ""
    made = tmp_path / "out" / "sub-a" / "ct.nii.gz"
    image = nibabel.load(made)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).transpose(2, 1, 0), ARRAY)
    np.testing.assert_allclose(image.affine[:, [2, 1, 0, 3]], AFFINE)
    assert b"Jane" not in image.to_bytes() and b"Jane" in (tmp_path / "in" / "CT" / "p1.nrrd").read_bytes()


@pytest.mark.parametrize("name", ["out.nrrd", "out.nii.gz"])
def test_a_translation_is_written_as_its_name_says_and_says_that_it_is_synthetic(
    tmp_path: Path, ct: Volume, name: str
) -> None:
    count, uid, _ = write_translation(tmp_path / name, ct, tmp_path / "source.nii", PROVENANCE)
    assert count == 1 and uid
    np.testing.assert_array_equal(read_image(tmp_path / name, modality=Modality.CT).array, ARRAY)
    if name.endswith(".nrrd"):
        assert b"SYNTHETIC CT by head version 3" in (tmp_path / name).read_bytes()
    else:
        assert bytes(nibabel.load(tmp_path / name).header["descrip"]).startswith(b"SYNTHETIC CT by head version 3")


def test_a_name_of_no_format_needs_a_dicom_source(tmp_path: Path, ct: Volume) -> None:
    with pytest.raises(InputError, match=r"is not DICOM.*name OUT \.nii\.gz or \.png or \.nrrd"):
        write_translation(tmp_path / "out", ct, tmp_path / "a.nii", PROVENANCE)
