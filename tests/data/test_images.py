"""Finding and describing images: every bad file is a row with its reason, and the rest goes on."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from dicom_files import image, save
from PIL import Image
from pydicom.uid import SecondaryCaptureImageStorage

from ctmr.data import images
from ctmr.data.manifest import INVENTORY_COLUMNS, Column
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import FORMATS
from ctmr.pipeline.stages.fetch import describe, find_images
from ctmr.system.digest import content_digest

PIXELS = np.random.default_rng(0).integers(-1000, 1000, (40, 36)).astype(np.int16)


def series(folder: Path, uid: str = "1.2.1", count: int = 3, **attributes: Any) -> list[Path]:
    slices = [image(PIXELS + k, (0, 0, 3.0 * k), SeriesInstanceUID=uid, **attributes) for k in range(count)]
    return save(folder, slices, prefix=f"{uid}_")


def inventory(raw: Path) -> dict[str, dict[str, Any]]:
    rows = [describe(raw, entry) for entry in find_images(raw)]
    assert all(set(row) == set(INVENTORY_COLUMNS) for row in rows)
    by_name = {row[Column.IMAGE]: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


def reads_again(raw: Path, row: dict[str, Any]) -> None:
    volume = images.read(raw, row)
    assert volume.array.shape == (row[Column.DEPTH], row[Column.HEIGHT], row[Column.WIDTH])
    assert float(volume.array.min()) == row[Column.MINIMUM]


def test_every_kind_of_image_is_described(tmp_path: Path) -> None:
    series(tmp_path / "train" / "CT" / "p1")
    (tmp_path / "train" / "MR").mkdir()
    nibabel.Nifti1Image(np.abs(PIXELS)[None], np.diag([1.0, 2, 3, 1])).to_filename(tmp_path / "train/MR/p1_t1.nii.gz")
    (tmp_path / "test" / "CT").mkdir(parents=True)
    Image.fromarray((PIXELS >> 8).astype(np.uint8)).save(tmp_path / "test" / "CT" / "a#1.png")
    (tmp_path / "readme.txt").write_text("no image")
    rows = inventory(tmp_path)
    assert sorted(rows) == ["test/CT/a#1.png", "train/CT/p1", "train/MR/p1_t1.nii.gz"]
    assert [rows[k][Column.ERROR] for k in sorted(rows)] == ["", "", ""]
    ct, mr, picture = rows["train/CT/p1"], rows["train/MR/p1_t1.nii.gz"], rows["test/CT/a#1.png"]
    assert (ct["modality"], ct["unit"], ct["depth"], ct["spacing_d_mm"], ct["subject"]) == ("CT", "HU", 3, 3.0, "P1")
    assert (mr["modality"], mr["sequence"], mr["unit"], mr["split_given"]) == ("MR", "T1", "arbitrary", "train")
    assert (picture["unit"], picture["split_given"], picture["format"]) == ("grey8", "test", "raster")
    for row in rows.values():
        reads_again(tmp_path, row)


def test_bad_files_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = series(tmp_path / "CT" / "good")
    cut = series(tmp_path / "CT" / "cut", "1.2.2")
    cut[1].write_bytes(cut[1].read_bytes()[:-100])
    (series(tmp_path / "CT" / "hole", "1.2.3", 5)[2]).unlink()
    series(tmp_path / "CT" / "pet", "1.2.4", Modality="PT")
    (tmp_path / "CT" / "garbage.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    (tmp_path / "CT" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "CT" / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "unknown.nii").write_bytes(b"")
    rows = inventory(tmp_path)
    errors = {name: row[Column.ERROR] for name, row in rows.items()}
    assert errors.pop("CT/good") == ""
    for name, reason in {
        "CT/cut": "1.2.2_0002.dcm has damaged pixel data (the file is cut off)",
        "CT/hole": "missing slices: 1 where neighbours are 3.00 mm apart (1 between 1.2.3_0002.dcm and 1.2.3_0004.dcm)",
        "CT/pet": "wrong modality: 'PT', allowed is CT or MR",
        "CT/garbage.dcm": "CT/garbage.dcm is a damaged DICOM file",
        "CT/cut.png": "CT/cut.png ",
        "CT/cut.nii.gz": "CT/cut.nii.gz cannot be read as NIfTI",
        "unknown.nii": "the modality of unknown.nii cannot be told from its path",
    }.items():
        assert reason in (found := errors.pop(name)), name
        assert str(tmp_path) not in found and "\n" not in found
    assert errors == {}
    assert len(good) == 3 and all(len(row[Column.SHA256]) == 64 for row in rows.values())
    bad = rows["CT/cut"]
    assert math.isnan(bad["minimum"]) and bad["depth"] == 0


def test_a_damaged_file_beside_a_series_does_not_take_it_along(tmp_path: Path) -> None:
    files = series(tmp_path / "CT", count=4)
    files[3].write_bytes(files[3].read_bytes()[:200])
    rows = inventory(tmp_path)
    assert rows["CT#1.2.1"][Column.ERROR] == "" and rows["CT#1.2.1"][Column.DEPTH] == 3
    assert "damaged DICOM file" in rows["CT/1.2.1_0004.dcm"][Column.ERROR]
    reads_again(tmp_path, rows["CT#1.2.1"])


def test_several_series_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    series(tmp_path / "val", "1.2.1")
    series(tmp_path / "val", "1.2.2", 4)
    echoes = [
        image(PIXELS, (0, 0, k), SeriesInstanceUID="1.2.3", Modality="MR", EchoTime=t) for k in (0, 1) for t in (10, 80)
    ]
    save(tmp_path / "val", echoes, prefix="echo")
    rows = inventory(tmp_path)
    assert sorted(rows) == ["val#1.2.1", "val#1.2.2", "val#1.2.3/EchoTime=10", "val#1.2.3/EchoTime=80"]
    for row in rows.values():
        assert row[Column.ERROR] == "" and row[Column.SPLIT_GIVEN] == "val"
        reads_again(tmp_path, row)


def test_a_series_that_lies_in_several_folders_is_read_whole(tmp_path: Path) -> None:
    slices = [image(PIXELS, (0, 0, 3.0 * k)) for k in range(5)]
    save(tmp_path / "export" / "DIR000", slices[:3])
    save(tmp_path / "export" / "DIR001", slices[3:])
    ((name, row),) = inventory(tmp_path).items()
    assert name.startswith("export#") and row[Column.DEPTH] == 5
    reads_again(tmp_path, row)


def test_a_folder_whose_name_has_a_mark_of_its_own_is_read(tmp_path: Path) -> None:
    series(tmp_path / "train" / "case #7")
    ((name, row),) = inventory(tmp_path).items()
    assert name == "train/case #7#1.2.1" and row[Column.SPLIT_GIVEN] == "train"
    reads_again(tmp_path, row)


def test_what_the_reader_did_stands_in_the_notes(tmp_path: Path) -> None:
    tilted = [image(PIXELS, (0, 1.0 * k, 3.0 * k)) for k in range(4)]
    save(tmp_path / "CT", tilted)
    row = inventory(tmp_path)["CT"]
    assert row[Column.ERROR] == "" and row[Column.NOTES].startswith("a gantry tilt of 18.4° was straightened")


def test_names_that_are_not_utf_8_are_errors_and_end_nothing(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    series(raw / "CT" / "good")
    odd = os.fsdecode(b"caf\xe9")
    series(raw / "CT" / odd, "1.2.2")
    (raw / "MR").mkdir()
    Image.fromarray((PIXELS >> 8).astype(np.uint8)).save(raw / "MR" / f"{odd}.png")
    (raw / f"{odd}.dcm").write_bytes(b"no image")
    inside = series(raw / "CT" / "inside", "1.2.3")
    inside[0].rename(inside[0].with_name(f"{odd}.dcm"))
    rows = inventory(raw)
    assert sorted(rows) == ["CT/caf\\xe9", "CT/good", "CT/inside", "MR/caf\\xe9.png", "caf\\xe9.dcm"]
    assert [rows[k][Column.ERROR] for k in ("CT/good", "CT/inside")] == ["", ""]
    for name in ("CT/caf\\xe9", "MR/caf\\xe9.png"):
        assert rows[name][Column.ERROR] == f"the name {name} is not UTF-8, so no table can hold it; rename it"
        assert len(rows[name][Column.SHA256]) == 64
    pd.DataFrame(rows.values()).to_parquet(tmp_path / "inventory.parquet")
    before = content_digest(raw)
    (raw / f"{odd}.dcm").rename(raw / os.fsdecode(b"caf\xea.dcm"))
    assert content_digest(raw) != before


def test_scouts_and_dose_reports_are_no_images_and_no_faults(tmp_path: Path) -> None:
    series(tmp_path / "CT" / "p1")
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(tmp_path / "CT" / "scout", [image(PIXELS, ImageType=scout, SeriesInstanceUID="1.9")])
    mixed = [image(PIXELS, (0, 0, 3.0 * k), SeriesInstanceUID="1.2.5") for k in range(3)]
    mixed.append(image(PIXELS, (0, 9, 9), SeriesInstanceUID="1.2.5", ImageType=scout))
    save(tmp_path / "CT" / "mixed", mixed)
    save(
        tmp_path / "CT" / "dose",
        [image(PIXELS, SeriesInstanceUID="1.8", SOPClassUID=SecondaryCaptureImageStorage, ImagePositionPatient=None)],
    )
    rows = inventory(tmp_path)
    assert {name: (row[Column.NO_IMAGE], row[Column.ERROR]) for name, row in rows.items()} == {
        "CT/p1": ("", ""),
        "CT/scout": ("localizer", ""),
        "CT/mixed#1.2.5": ("", ""),
        "CT/mixed#1.2.5/localizer": ("localizer", ""),
        "CT/dose": ("not CT or MR (Secondary Capture Image Storage)", ""),
    }


def test_gaps_are_resampled_as_far_as_the_recipe_says_and_read_alike_later(tmp_path: Path) -> None:
    save(tmp_path / "CT" / "p1", [image(PIXELS, (0, 0, z)) for z in (0, 3, 6, 10.5, 13.5)])
    (entry,) = find_images(tmp_path)
    assert "uneven gaps" in describe(tmp_path, entry)[Column.ERROR]
    row = describe(tmp_path, entry, 0.6)
    assert row[Column.ERROR] == "" and "uneven gaps of 3.00 to 4.50 mm were resampled" in row[Column.NOTES]
    reads_again(tmp_path, row)


def test_a_mask_belongs_to_the_images_that_it_lies_with(tmp_path: Path) -> None:
    volume = nibabel.Nifti1Image(np.abs(PIXELS)[None], np.eye(4))
    for name in (
        "1BA1/ct",
        "1BA1/mr",
        "1BA1/mask",
        "1BA2/ct",
        "CT/a",
        "CT/a_mask",
        "CT/b",
        "sub-7/mask",
        "CT/c",
        "CT/c-mask",
        "CT/c_mask",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        volume.to_filename(tmp_path / f"{name}.nii.gz")
    series(tmp_path / "sub-7" / "ct")
    series(tmp_path, "1.2.7")
    rows = inventory(tmp_path)
    assert {name: row[Column.MASK] for name, row in rows.items()} == {
        "1BA1/ct.nii.gz": "1BA1/mask.nii.gz",
        "1BA1/mr.nii.gz": "1BA1/mask.nii.gz",
        "1BA2/ct.nii.gz": "",
        "CT/a.nii.gz": "CT/a_mask.nii.gz",
        "CT/b.nii.gz": "",
        "CT/c.nii.gz": "",
        "sub-7/ct": "sub-7/mask.nii.gz",
        ".": "",
    }


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_a_disk_or_memory_that_fails_on_one_file_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    series(tmp_path / "CT")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(images, "read", fail)
    row = inventory(tmp_path)["CT"]
    assert row[Column.ERROR].startswith("CT cannot be read (") and row[Column.ERROR].endswith(")")


@pytest.mark.shared_data
def test_of_the_real_images_exactly_the_bad_ones_have_errors(shared_data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("dicom_ct_head_ge", "dicom_mr_t1_studyforrest"):
        (raw / name).symlink_to(shared_data / name)
    (raw / "CT").mkdir()
    (raw / "MR").mkdir()
    for name in ("scct.nii.gz", "scct_unsmooth_SS_0.01.nii.gz"):
        (raw / "CT" / name).symlink_to(shared_data / "nifti" / name)
    for name in ("MNI152_T1_2mm.nii.gz", "seg3D_MR.nii.gz", "stroke_T1.nii.gz", "stroke_T2.nii.gz"):
        (raw / "MR" / name).symlink_to(shared_data / "nifti" / name)
    found = [
        *find_images(raw),
        *(e for n in ("dicom_ct_head_ge", "dicom_mr_t1_studyforrest") for e in find_images(raw / n)),
    ]
    rows = {}
    for entry in found:
        base = (
            raw
            if (raw / entry.files[0]).exists()
            else next(
                raw / n for n in ("dicom_ct_head_ge", "dicom_mr_t1_studyforrest") if (raw / n / entry.files[0]).exists()
            )
        )
        row = describe(base, entry)
        rows[row["path"] if base is raw else base.name] = row
    errors = {k: r[Column.ERROR] for k, r in rows.items() if r[Column.ERROR]}
    assert list(errors) == ["dicom_ct_head_ge"] and "gantry tilt 18.5°" in errors["dicom_ct_head_ge"]
    # Neither the template in Cormack units nor the one without skull and air passes for Hounsfield units.
    assert {rows[f"CT/{n}"]["unit"] for n in ("scct.nii.gz", "scct_unsmooth_SS_0.01.nii.gz")} == {Unit.ARBITRARY.value}
    assert rows["dicom_mr_t1_studyforrest"]["modality"] == Modality.MR.value


def test_what_macos_leaves_beside_images_and_masks_is_neither(tmp_path: Path) -> None:
    volume = Volume(np.ones((2, 8, 8), np.int16), np.eye(4), Modality.MR, Unit.ARBITRARY)
    for name in ("mr.nii.gz", "mr_mask.nii.gz"):
        FORMATS["nifti"].reader.write(tmp_path / "p1" / name, volume)
        (tmp_path / "p1" / f"._{name}").write_bytes(b"Mac OS X")
    (tmp_path / "__MACOSX" / "p1").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "p1" / "mr.nii.gz").write_bytes(b"Mac OS X")
    (entry,) = find_images(tmp_path)
    assert describe(tmp_path, entry)[Column.MASK] == "p1/mr_mask.nii.gz"


def test_a_name_that_a_terminal_would_obey_is_an_error_and_is_shown_escaped(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "MR").mkdir(parents=True)
    Image.fromarray((PIXELS >> 8).astype(np.uint8)).save(raw / "MR" / "\x1b[2Ja.png")
    Image.fromarray((PIXELS >> 8).astype(np.uint8)).save(raw / "MR" / "b\nc.png")
    rows = inventory(raw)
    assert sorted(rows) == ["MR/\\x1b[2Ja.png", "MR/b\\nc.png"]
    assert all("holds control characters" in row[Column.ERROR] for row in rows.values())
