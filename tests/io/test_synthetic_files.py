"""Synthetic NIfTI files and pictures: they say what they are and carry their provenance, and are refused by it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from ctmr.data import images
from ctmr.data.manifest import Column
from ctmr.datasets.deid.files import clean
from ctmr.errors import InputError
from ctmr.imaging.origin import SyntheticImage, told_by
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.io import FORMATS, read_image
from ctmr.io.content import content_digest, read_whatever
from ctmr.io.dicom import SyntheticProvenance, write_series, write_synthetic_series
from ctmr.pipeline.stages.fetch import describe, find_images
from ctmr.serving.synthesis import write_translation

RNG = np.random.default_rng(3)
AFFINE = np.array([[0.0, 0, -1, 10], [0, -1, 0, 20], [2.5, 0, 0, -30], [0, 0, 0, 1]])
PROVENANCE = SyntheticProvenance("head", "3", "ab" * 32, "run-1", "v1", "cd" * 16, "deadbeef", Direction.MR2CT)
CT = Volume(RNG.integers(-1000, 1000, (6, 40, 48)).astype(np.int16), AFFINE, Modality.CT, Unit.HU)
MR = Volume(RNG.integers(0, 1000, (6, 40, 48)).astype(np.uint16), AFFINE, Modality.MR, Unit.ARBITRARY, subject="P1")
GREY = Volume(RNG.integers(0, 255, (1, 40, 48)).astype(np.uint8), None, Modality.MR, Unit.GREY8)


def made(folder: Path, kind: str) -> Path:
    """A translation in one of the formats, below a folder that names its modality."""
    folder.mkdir(parents=True)
    if kind == "dicom":
        source = folder.parent / "source"
        write_series(source, MR, uid_seed="mr")
        write_synthetic_series(folder / "series", CT, source, PROVENANCE)
        return folder / "series"
    name, volume = {
        "nii.gz": ("made.nii.gz", CT),
        "nii": ("made.nii", CT),
        "png": ("made.png", GREY),
    }[kind]
    write_translation(folder / name, volume, folder / f"source.{kind}", PROVENANCE)
    return folder / name


FILES = ("nii.gz", "nii", "png")
ALL = ("dicom", *FILES)


@pytest.mark.parametrize("kind", ALL)
def test_every_format_says_that_it_is_synthetic_and_what_made_it(tmp_path: Path, kind: str) -> None:
    modality = None if kind == "dicom" else Modality.CT
    said = read_image(made(tmp_path / "CT", kind), modality=modality).synthetic
    assert said is not None and said.words.startswith("SYNTHETIC ")
    for key in ("model_name", "model_version", "onnx_sha256", "run_id", "dataset_md5", "direction"):
        assert said.facts[key] == str(getattr(PROVENANCE, key))


def test_a_nifti_header_holds_description_and_extension_and_other_programs_read_the_voxels(tmp_path: Path) -> None:
    image = nibabel.load(made(tmp_path / "CT", "nii.gz"))
    assert bytes(image.header["descrip"]).startswith(b"SYNTHETIC CT by head version 3")
    (extension,) = image.header.extensions
    assert extension.get_code() == 6
    text = json.loads(extension.get_content() if isinstance(extension.get_content(), str) else extension.text)
    assert text["Comment"].startswith("ctmr lineage 2.25.") or text["Comment"].startswith("ctmr lineage 1.2.")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).transpose(2, 1, 0), CT.array)


@pytest.mark.parametrize("lost", ["description", "extension"])
def test_either_statement_of_a_nifti_file_is_enough(tmp_path: Path, lost: str) -> None:
    image = nibabel.load(made(tmp_path / "CT", "nii.gz"))
    if lost == "description":
        image.header["descrip"] = b"FSL5.0"
    else:
        image.header.extensions.clear()
    again = tmp_path / "again.nii.gz"
    nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header).to_filename(again)
    assert read_image(again, modality=Modality.CT).synthetic is not None


def test_a_picture_says_it_in_its_text(tmp_path: Path) -> None:
    with Image.open(made(tmp_path / "CT", "png")) as picture:
        assert picture.text["Description"] == "SYNTHETIC MR by head version 3"
        assert json.loads(picture.text["Provenance"])["run_id"] == "run-1"


@pytest.mark.parametrize("kind", ALL)
def test_fetch_notes_it_and_no_stage_reads_it(tmp_path: Path, kind: str) -> None:
    made(tmp_path / "raw" / "CT", kind)
    (entry,) = [e for e in find_images(tmp_path / "raw") if "source" not in e.path]
    row = describe(tmp_path / "raw", entry)
    assert row[Column.SYNTHETIC].startswith("SYNTHETIC") and row[Column.ERROR] == ""
    with pytest.raises(SyntheticImage, match="neither training nor truth"):
        images.read(tmp_path / "raw", row)


@pytest.mark.parametrize("kind", FILES)
def test_it_is_not_taken_into_a_dataset(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path / "CT", kind)
    with pytest.raises(InputError, match=r"^is synthetic \(SYNTHETIC .* by head version 3\); it can be neither"):
        clean("raster" if kind == "png" else "nifti", path, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_metaimage_that_was_made_of_one_is_not_taken_in_either(tmp_path: Path) -> None:
    import SimpleITK

    path = made(tmp_path / "CT", "nii.gz")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(tmp_path / "ct.mha"))
    with pytest.raises(InputError, match="is synthetic"):
        clean("nifti", tmp_path / "ct.mha", tmp_path / "out")


def test_what_a_text_says_beside_is_not_repeated_since_it_may_name_a_patient(tmp_path: Path) -> None:
    said = told_by({"Comment": "Synthetic CT of Jane Doe"})
    assert said is not None and "Jane" not in said.words
    assert told_by({"Description": "head CT", "Comment": "{not json", "Provenance": "{"}) is None
    assert told_by({"Provenance": "[" * 100_000}) is None


def renamed(path: Path) -> Path:
    return path.rename(path.parent / "anything.bin")


def packed_anew(path: Path) -> Path:
    out = path.parent / "b.nii.gz"
    content = path.read_bytes()
    out.write_bytes(gzip.compress(gzip.decompress(content) if path.name.endswith(".gz") else content, 1))
    return out


def stripped(path: Path) -> Path:
    """Written by another program, as floats and without a word."""
    image = nibabel.load(path)
    out = path.parent / "stripped.nii"
    nibabel.Nifti1Image(np.asanyarray(image.dataobj).astype(np.float32), image.affine).to_filename(out)
    return out


def saved_again(path: Path) -> Path:
    out = path.parent / "again.png"
    Image.open(path).convert("RGB").save(out)
    return out


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("nii.gz", renamed),
        ("nii", renamed),
        ("png", renamed),
        ("nii.gz", packed_anew),
        ("nii", packed_anew),
        ("nii.gz", stripped),
        ("png", saved_again),
    ],
)
def test_the_content_is_known_after_renaming_packing_and_writing_anew(tmp_path: Path, kind: str, change: Any) -> None:
    path = made(tmp_path / "CT", kind)
    before = content_digest(read_whatever(path).array)
    assert content_digest(read_whatever(change(path)).array) == before


def test_another_content_has_another_digest() -> None:
    other = CT.array.copy()
    other[0, 0, 0] += 1
    assert content_digest(other) != content_digest(CT.array) != content_digest(CT.array.reshape(6, 48, 40))


def test_an_acquired_file_is_not_called_synthetic(tmp_path: Path) -> None:
    nifti = FORMATS["nifti"].reader
    nifti.write(tmp_path / "a.nii.gz", MR, text={"Description": "T1 of 3T", "Comment": "synthetic aperture"})
    assert read_image(tmp_path / "a.nii.gz", modality=Modality.MR).synthetic is None
