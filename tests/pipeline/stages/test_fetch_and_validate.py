"""fetch, then validate: what real exports hold beside good images neither refuses a dataset nor gets into it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dicom_files import image, save

from ctmr.data import images
from ctmr.datasets.dvc import resolve
from ctmr.pipeline.stage import Result, run_stage
from ctmr.pipeline.stages.fetch import STAGE as FETCH
from ctmr.pipeline.stages.validate import STAGE as VALIDATE
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home

pytestmark = pytest.mark.slow
SCOUT = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def patient(folder: Path, number: int, modality: str, **attributes: Any) -> None:
    """A series of two slices; a CT is padded as GE pads it, without naming the value, and has two scouts."""
    split = "test" if number > 2 else "train"
    uid = f"1.2.{ord(modality[0])}.{number}"
    pixels = np.random.default_rng(number).integers(0, 2000, (2, 48, 48)).astype(np.int16)
    if modality == "CT":
        y, x = np.mgrid[:48, :48] - 23.5
        pixels[:, x**2 + y**2 > 24**2] = -2000
        attributes |= {"RescaleIntercept": -1024}
        for k in range(2):
            scout = image(pixels[k], SeriesInstanceUID=f"{uid}.9{k}", ImageType=SCOUT, PatientIdentityRemoved="YES")
            save(folder / split / f"scout{number}{k}", [scout])
    slices = [
        image(
            p,
            (0, 0, 3.0 * k),
            SeriesInstanceUID=uid,
            Modality=modality,
            PatientID=f"{modality}{number}",
            PatientIdentityRemoved="YES",
            **attributes,
        )
        for k, p in enumerate(pixels)
    ]
    save(folder / split / f"{modality}{number}", slices)


def validated(folder: Path, out: Path, home: Home, *settings: tuple[str, Any]) -> tuple[Result, Result]:
    recipe = override(Recipe(), [("data.val_fraction", 0.0), *settings])
    options = {"dataset": resolve(str(folder)).to_option()}
    fetched = run_stage(FETCH, inputs={}, options=options, recipe=recipe, out=out / "fetch", home=home)
    inputs = {"inventory": out / "fetch" / "inventory.parquet"}
    return fetched, run_stage(VALIDATE, inputs=inputs, recipe=recipe, out=out / "validate", home=home)


def test_scouts_and_unnamed_padding_are_no_reason_to_lose_an_image(tmp_path: Path, home: Home) -> None:
    for number in range(1, 5):
        for modality in ("CT", "MR"):
            patient(tmp_path / "data", number, modality)
    fetched, done = validated(tmp_path / "data", tmp_path, home)
    assert (fetched.summary["images"], fetched.summary["left_out"], fetched.summary["unreadable"]) == (8, 8, 0)
    assert (done.summary["outcome"], done.summary["used"], done.summary["images"]) == ("pass", 8, 8)
    assert (done.summary["left_out"], done.summary["dropped"]) == (8, 0)
    manifest = pd.read_parquet(tmp_path / "validate" / "manifest.parquet")
    assert manifest[manifest["modality"] == "CT"]["minimum"].min() == -1024
    with (tmp_path / "validate" / "findings.csv").open() as stream:
        found = list(csv.DictReader(stream))
    assert [f["rule"] for f in found] == ["no_image"] * 8 + ["reader_notes"] * 4
    assert "hold -3024 HU, which nothing has: padding, which became -1024" in found[-1]["sentence"]


def test_a_hash_in_a_folders_name_names_no_series(tmp_path: Path, home: Home) -> None:
    for number in range(1, 5):
        for modality in ("CT", "MR"):
            patient(tmp_path / "data" / f"Patient #{number}", number, modality)
    fetched, _ = validated(tmp_path / "data", tmp_path, home)
    assert (fetched.summary["images"], fetched.summary["unreadable"]) == (8, 0)
    manifest = pd.read_parquet(tmp_path / "validate" / "manifest.parquet")
    raw = tmp_path / "fetch" / "raw"
    for row in images.rows(manifest):
        assert images.read(raw, row).array.shape == (2, 48, 48)


def test_uneven_series_are_used_as_far_as_the_recipe_says(tmp_path: Path, home: Home) -> None:
    for number in range(1, 5):
        for modality in ("CT", "MR"):
            patient(tmp_path / "data", number, modality)
    pixels = np.random.default_rng(9).integers(0, 2000, (4, 48, 48)).astype(np.int16)
    uneven = [
        image(p, (0, 0, z), SeriesInstanceUID="1.7", Modality="MR", PatientID="MR7", PatientIdentityRemoved="YES")
        for p, z in zip(pixels, (0, 3, 6, 10.5), strict=True)
    ]
    save(tmp_path / "data" / "train" / "MR7", uneven)
    _, refused = validated(tmp_path / "data", tmp_path, home)
    assert (refused.summary["used"], refused.summary["dropped"]) == (8, 1)
    fetched, done = validated(tmp_path / "data", tmp_path, home, ("fetch.uneven_limit", 0.6))
    assert "recipe.fetch" in fetched.because
    assert (done.summary["used"], done.summary["dropped"]) == (9, 0)
