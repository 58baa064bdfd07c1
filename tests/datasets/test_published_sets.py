"""Published sets, in files of their shape: de-identified, packed, and found again by fetch with all that was known."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from dicom_files import image, save
from PIL import Image

from ctmr.datasets.build import build
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.dvc import unpack
from ctmr.datasets.importers import plan
from ctmr.datasets.names import Dates, FolderLayout
from ctmr.datasets.scanning import scanned
from ctmr.imaging.volume import Modality
from ctmr.pipeline.stages.fetch import describe, find_images

RNG = np.random.default_rng(0)
KEY = Key(b"k" * 32)


def dicom(folder: Path, modality: str, uid: str, **attributes: object) -> None:
    pixels = RNG.integers(0, 900, (3, 36, 34)).astype(np.int16)
    slices = [
        image(p, (0, 0, 2.0 * k), SeriesInstanceUID=uid, Modality=modality, **attributes) for k, p in enumerate(pixels)
    ]
    save(folder, slices)


def volume(path: Path, low: int = 0, high: int = 900) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(low, high, (3, 36, 34)).astype(np.int16)
    if path.suffix == ".mha":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    else:
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(path)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (40, 40), dtype=np.uint8)).save(path)


def kaggle(root: Path) -> None:
    for split in ("train", "test"):
        for side in ("CT", "MRI"):
            picture(root / split / side / "1.png")


def cq500(root: Path) -> None:
    for number in (0, 17):
        name = f"CQ500CT{number} CQ500CT{number}"
        dicom(root / name / "Unknown Study" / "CT Plain", "CT", f"1.2.3.{number}", PatientID="CQ500")


def ixi(root: Path) -> None:
    for name in ("IXI002-Guys-0828-T1", "IXI002-Guys-0828-T2", "IXI035-IOP-0873-PD", "IXI035-IOP-0873-MRA"):
        volume(root / f"{name}.nii.gz")


def synthrad(root: Path, region: str, suffix: str) -> None:
    for case in ("1BA001", "1BA005"):
        for name, low, high in (("ct", -1000, 900), ("mr", 0, 900), ("mask", 0, 2)):
            volume(root / "Task1" / region / case / f"{name}{suffix}", low, high)
    picture(root / "Task1" / region / "overview" / "1BA001_train.png")


def adni(root: Path) -> None:
    below = root / "ADNI" / "002_S_0295"
    dicom(below / "MP-RAGE" / "2006-04-18_08_20_30.0" / "I45108", "MR", "1.2.4.1", PatientID="002_S_0295")
    volume(below / "Axial_T2-Star" / "2007-05-01_09_00_00.0" / "I5" / "x.nii")


def paired(root: Path) -> None:
    for side in ("A", "B"):
        for name in ("p1", "p2"):
            picture(root / "train" / side / f"{name}.png")


SETS = {
    "kaggle": (
        kaggle,
        FolderLayout.KAGGLE,
        4,
        {("CT", "", "train"), ("CT", "", "test"), ("MR", "", "train"), ("MR", "", "test")},
    ),
    "CQ500": (cq500, FolderLayout.CQ500, 2, {("CT", "", "")}),
    "IXI": (ixi, FolderLayout.IXI, 2, {("MR", "T1", ""), ("MR", "T2", ""), ("MR", "PD", "")}),
    "SynthRAD2023": (
        lambda r: synthrad(r, "brain", ".nii.gz"),
        FolderLayout.SYNTHRAD,
        2,
        {("CT", "", ""), ("MR", "", "")},
    ),
    "SynthRAD2025": (lambda r: synthrad(r, "HN", ".mha"), FolderLayout.SYNTHRAD, 2, {("CT", "", ""), ("MR", "", "")}),
    "ADNI": (adni, FolderLayout.ADNI, 1, {("MR", "T1", ""), ("MR", "T2", "")}),
    "paired folders": (paired, FolderLayout.PAIRED, 2, {("CT", "", "train"), ("MR", "", "train")}),
}


@pytest.mark.parametrize("name", list(SETS))
def test_a_set_is_found_again_by_fetch_with_all_that_its_layout_said(name, tmp_path, said):
    write, layout, subjects, kinds = SETS[name]
    write(tmp_path / "source")
    raw = tmp_path / "raw"
    with scanned(tmp_path / "source", tmp_path / "ids") as scan:
        guessed = FolderLayout.PAIRED if layout is FolderLayout.PAIRED else FolderLayout.AUTO
        made = plan(scan, guessed, first=Modality.CT)
        assert made.layout is layout
        index = build(made, raw, name="x", key=KEY, dates=Dates.REMOVE, skip_refused=False, report=said).index
    for archive in raw.rglob("*.zip"):
        unpack(archive, archive.with_suffix(""))
        archive.unlink()
    rows = [describe(raw, entry) for entry in find_images(raw)]
    assert [r["error"] for r in rows] == [""] * index["images"] and index["subjects"] == subjects
    assert len({r["subject"] for r in rows}) == subjects
    assert {(r["modality"], r["sequence"], r["split_given"]) for r in rows} == kinds
    assert {r["identity"] for r in rows} <= {"", "RecognizableVisualFeatures"}
    faces = index["deidentification"]["recognizable_visual_features"]
    assert sum(faces.values()) == (0 if rows[0]["format"] == "raster" else len(rows))
    assert faces.get("YES", 0) == sum(r["format"] == "dicom" for r in rows)
    if layout is FolderLayout.SYNTHRAD:
        assert index["pairs"] == index["masks"] == 2
        for row in rows:
            assert row["mask"] == f"sub-{row['subject']}/mask.nii.gz" and (raw / row["mask"]).is_file()
            assert row["unit"] == ("HU" if row["modality"] == "CT" else "arbitrary")
    else:
        assert {r["mask"] for r in rows} == {""}
