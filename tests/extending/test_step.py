"""A new image step is a file and a row: the recipe reads it, preprocess and serving run it, the grid records it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from ctmr.data.manifest import MANIFEST_COLUMNS, Column, Outcome, Split
from ctmr.data.shards import read_shard
from ctmr.errors import InputError
from ctmr.imaging.grid import Grid
from ctmr.imaging.inference_path import prepare
from ctmr.imaging.steps import REGISTRY
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import nifti
from ctmr.pipeline.stage import run_stage
from ctmr.pipeline.stages.preprocess import STAGE
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home
from ctmr.system.pool import PROCESSES

ROW = {"median_filter": "median_filter:MedianFilter"}
STEP = {"kind": "median_filter", "modality": "CT", "width": 5}
# Array axes that grow towards S, P and L, in voxels of 1 mm: an axial grid has nothing to turn or resample.
AXIAL = np.array([[0.0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, place in ROW.items():
        monkeypatch.setitem(REGISTRY, kind, place)
    monkeypatch.setenv(PROCESSES, "1")


def dataset(folder: Path) -> dict[str, Volume]:
    """Write ``raw/`` and what validate leaves; return the CT of each split."""
    rng = np.random.default_rng(1)
    rows, made = [], {}
    for split in ("train", "test"):
        for modality, unit in ((Modality.CT, Unit.HU), (Modality.MR, Unit.ARBITRARY)):
            array = rng.integers(-1000 if unit is Unit.HU else 0, 2000, (4, 64, 64)).astype(np.int16)
            volume = Volume(array, AXIAL, modality, unit)
            name = f"{split}/{modality}/a.nii"
            (folder / "raw" / name).parent.mkdir(parents=True)
            nifti.write(folder / "raw" / name, volume)
            row = {Column.IMAGE: name, Column.PATH: name, Column.SUBJECT: split, Column.SPLIT: split}
            row |= {Column.MODALITY: modality.value, Column.FORMAT: "nifti"}
            rows.append(dict.fromkeys(MANIFEST_COLUMNS, "") | {str(k): v for k, v in row.items()})
            if modality is Modality.CT:
                made[split] = volume
    (folder / "validate").mkdir()
    (folder / "validate" / "validation.json").write_text(json.dumps({"outcome": Outcome.PASS.value}))
    pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS)).to_parquet(folder / "validate" / "manifest.parquet")
    return made


def test_a_recipe_names_it_only_where_it_is_registered() -> None:
    with pytest.raises(InputError, match="found kind 'median_filter'"):
        override(Recipe(), [("preprocess.steps", [STEP])])


@pytest.mark.usefixtures("registered")
def test_its_settings_are_checked_as_any_others() -> None:
    with pytest.raises(InputError, match=r"preprocess\.steps\.0\.width: .*greater than or equal to 3"):
        override(Recipe(), [("preprocess.steps", [STEP | {"width": 2}])])
    with pytest.raises(InputError, match="comes after a registration, which is not"):
        override(Recipe(), [("preprocess.steps", [{"kind": "registration", "modality": "CT"}, STEP])])


@pytest.mark.usefixtures("registered")
def test_it_runs_in_preprocess_and_for_served_images_and_stands_in_the_grid(tmp_path: Path, home: Home) -> None:
    ct = dataset(tmp_path)
    recipe = override(Recipe(), [("preprocess.steps", [STEP]), ("preprocess.size", [64, 64])])
    inputs = {"raw": tmp_path / "raw", "validation": tmp_path / "validate"}
    done = run_stage(STAGE, inputs=inputs, recipe=recipe, out=tmp_path / "out", home=home)
    written = json.loads((done.out / "grid.json").read_text())
    assert written["steps"][0] == STEP | {"served": True} and written["training_only"] == []
    assert done.summary["steps"] == ["median_filter"]
    slices = read_shard(done.out / "shards", Split.TRAIN, Modality.CT).slices[:, 0]
    assert np.array_equal(slices, [ndimage.median_filter(s, 5) for s in ct["train"].array])
    grid = Grid.model_validate(written)
    assert np.array_equal(prepare([ct["train"]], grid)[0][0], slices)
