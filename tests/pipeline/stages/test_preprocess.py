"""preprocess: images go onto the grid and into shards, step by step as the recipe orders; a bad one is named."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ctmr.data.atlases import AtlasPlacement
from ctmr.data.manifest import MANIFEST_COLUMNS, Column, Outcome, Split
from ctmr.data.shards import read_shard
from ctmr.errors import InputError
from ctmr.evaluation.testset import TestSet
from ctmr.imaging.grid import Grid
from ctmr.imaging.inference_path import prepare
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.io import nifti
from ctmr.phantom import PhantomHead, make_head
from ctmr.phantom.cohort import affine_of
from ctmr.pipeline.stage import Result, run_stage
from ctmr.pipeline.stages.preprocess import STAGE
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home
from ctmr.system.pool import PROCESSES

SHAPE, SPACING_MM = (48, 56, 48), 4.0
SMALL = [("preprocess.size", [64, 48]), ("preprocess.spacing_mm", [3.5, 4.5]), ("preprocess.slice_spacing_mm", 6.0)]
INPUTS_SHA256 = "e15c9c1ca88a8681626d3689c7c7b94288a941044ea5f63b682526f489b3a9bb"
SHARDS_SHA256 = {
    "volumes": "03587dbd92c38871c514eea56046cd0e6183082e750f27cd2a2837f21e02d791",
    "pictures": "113327a9d318c7f3e7df883ad4c3f1041b1093e4be29d09516c28091dacf6d98",
}
"""Of shards without image steps: of volumes since the grid lies about the head, of pictures since blur and
interpolation are one matrix, which moved 39 of 8 million pixels of 122 real pictures by one grey level."""


@dataclass
class Dataset:
    """What fetch and validate would hand over: ``raw/``, a manifest and a verdict."""

    folder: Path
    home: Home
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, split: str, subject: str, volume: Volume) -> Path:
        """Write an image, as NIfTI or PNG, and its row."""
        picture = volume.unit is Unit.GREY8
        name = f"{split}/{volume.modality}/{subject}{'.png' if picture else '.nii'}"
        path = self.folder / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if picture:
            Image.fromarray(volume.array[0]).save(path)
        else:
            nifti.write(path, volume)
        row = dict.fromkeys(MANIFEST_COLUMNS, "")
        known = {
            Column.IMAGE: name,
            Column.PATH: name,
            Column.SUBJECT: subject,
            Column.SPLIT: split,
            Column.MODALITY: volume.modality.value,
            Column.SEQUENCE: volume.sequence or "",
            Column.FORMAT: "raster" if picture else "nifti",
            Column.UNIT: volume.unit.value,
        }
        self.rows.append(row | {str(k): v for k, v in known.items()})
        return path

    def preprocess(self, *settings: tuple[str, Any], name: str = "out") -> Result:
        """Run the stage."""
        validation = self.folder / "validate"
        validation.mkdir(exist_ok=True)
        (validation / "validation.json").write_text(json.dumps({"outcome": Outcome.PASS.value, "reason": ""}))
        pd.DataFrame(self.rows, columns=list(MANIFEST_COLUMNS)).to_parquet(validation / "manifest.parquet")
        inputs = {"raw": self.folder / "raw", "validation": validation}
        recipe = override(Recipe(), settings)
        return run_stage(STAGE, inputs=inputs, recipe=recipe, out=self.folder / name, home=self.home)


@pytest.fixture
def dataset(tmp_path: Path, home: Home) -> Dataset:
    return Dataset(tmp_path, home)


@pytest.fixture(scope="module")
def heads() -> dict[int, PhantomHead]:
    return {seed: make_head(seed, shape=SHAPE, spacing_mm=SPACING_MM) for seed in (1, 2, 3)}


def ct_of(head: PhantomHead) -> Volume:
    return Volume(head.ct, affine_of(SHAPE, SPACING_MM), Modality.CT, Unit.HU)


def t1_of(head: PhantomHead) -> Volume:
    return Volume(head.t1, affine_of(SHAPE, SPACING_MM), Modality.MR, Unit.ARBITRARY, sequence="T1")


def picture_of(volume: Volume, index: int, times: int) -> Volume:
    low, high = (-40, 120) if volume.unit is Unit.HU else (0, int(volume.array.max()))
    grey = (np.clip(volume.array[index].astype(np.int64), low, high) - low) * 255 // (high - low)
    enlarged = np.kron(grey, np.ones((times, times + 1), np.int64)).astype(np.uint8)
    return Volume(enlarged[None], None, volume.modality, Unit.GREY8)


def small_cohort(dataset: Dataset, heads: dict[int, PhantomHead]) -> None:
    dataset.add("train", "s1", ct_of(heads[1]))
    dataset.add("train", "s2", t1_of(heads[2]))
    dataset.add("test", "s3", ct_of(heads[3]))
    dataset.add("test", "s3", t1_of(heads[3]))


def shards_digest(out: Path) -> str:
    """sha256 over the arrays and what places them; identifiers of files do not count."""
    total = hashlib.sha256()
    for path in sorted((out / "shards").rglob("*")):
        if path.suffix == ".npy":
            total.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
        elif path.suffix == ".json":
            tree = json.loads(path.read_text())
            kept = [[v["first"], v["count"], v["level"], v["affine"]] for v in tree["volumes"]]
            total.update(json.dumps([tree["unit"], tree["shape"], kept]).encode())
    return total.hexdigest()


@pytest.mark.parametrize("kind", ["volumes", "pictures"])
def test_without_steps_shards_are_bit_identical_to_those_of_before(dataset, heads, kind):
    drawn = hashlib.sha256(b"".join(a.tobytes() for h in heads.values() for a in (h.ct, h.t1))).hexdigest()
    if drawn != INPUTS_SHA256:
        pytest.skip("this machine rounds otherwise and draws other phantoms")
    if kind == "volumes":
        small_cohort(dataset, heads)
    else:
        for seed, split in ((1, "train"), (2, "test")):
            for volume in (ct_of(heads[seed]), t1_of(heads[seed])):
                for index in (20, 26, 32):
                    dataset.add(split, f"{seed}-{index}", picture_of(volume, index, 5 if index == 20 else 3))
    result = dataset.preprocess(*SMALL, ("preprocess.picture_size", [96, 96]))
    assert shards_digest(result.out) == SHARDS_SHA256[kind]


def test_atlases_are_placed_on_the_training_heads_and_change_no_shard(dataset, heads):
    small_cohort(dataset, heads)
    plain = dataset.preprocess(*SMALL)
    assert not (plain.out / "shards/train/atlases.json").exists()
    before = shards_digest(plain.out)
    placed = dataset.preprocess(*SMALL, ("preprocess.atlases", 2))
    found = AtlasPlacement.read(placed.out / "shards/train/atlases.json")
    assert found.chosen.tolist() == [[0, 0]] and float(found.overlap.min()) > 0.9
    (placed.out / "shards/train/atlases.json").unlink()
    assert shards_digest(placed.out) == before


def lines(out: Path) -> list[dict[str, str]]:
    return pd.read_csv(out / "unusable.csv", keep_default_na=False).to_dict("records")


def test_steps_run_in_their_order_and_the_grid_says_which_are_served(dataset, heads):
    small_cohort(dataset, heads)
    steps = [{"kind": "head_mask", "modality": "CT"}, {"kind": "bias_field", "iterations": [5], "shrink_mm": 16}]
    plain, result = dataset.preprocess(*SMALL, name="a"), dataset.preprocess(*SMALL, ("preprocess.steps", steps))
    grid = json.loads((result.out / "grid.json").read_text())
    assert grid["training_only"] == ["bias_field"] and grid["steps"][0]["kind"] == "head_mask"
    assert result.summary["steps"] == ["head_mask", "bias_field"]
    before, after = (read_shard(r.out / "shards", Split.TRAIN, Modality.CT) for r in (plain, result))
    assert (before.slices[~before.head[:, None]] > -1000).any()
    assert (after.slices[~after.head[:, None]] == -1024).mean() > (before.slices[~before.head[:, None]] == -1024).mean()
    mr = [read_shard(r.out / "shards", Split.TRAIN, Modality.MR).slices for r in (plain, result)]
    assert not np.array_equal(*mr)


def test_pictures_refuse_a_step_that_needs_millimetres(dataset, heads):
    for split in ("train", "test"):
        for volume in (ct_of(heads[1]), t1_of(heads[1])):
            dataset.add(split, f"{split}", picture_of(volume, 20, 2))
    with pytest.raises(InputError, match=r"pictures have no geometry.*take the step out"):
        dataset.preprocess(*SMALL, ("preprocess.steps", [{"kind": "table_removal"}]))


def cohort_of(dataset: Dataset, heads: dict[int, PhantomHead], count: int) -> list[Path]:
    """Many small volumes to train on, two to test."""
    small = Volume(ct_of(heads[1]).array[::2, ::2, ::2], ct_of(heads[1]).affine, Modality.CT, Unit.HU)
    paths = [dataset.add("train", f"s{k:02}", small.with_array(small.array + np.int16(k))) for k in range(count)]
    dataset.add("train", "m", t1_of(heads[2]))
    for volume in (ct_of(heads[3]), t1_of(heads[3])):
        dataset.add("test", "t", volume)
    return paths


def test_a_bad_image_is_named_and_the_rest_goes_on(dataset, heads, capsys):
    paths = cohort_of(dataset, heads, 8)
    paths[3].write_bytes(paths[3].read_bytes()[:500])
    result = dataset.preprocess(*SMALL)
    assert [line["image"] for line in lines(result.out)] == ["train/CT/s03.nii"]
    assert "s03.nii" in lines(result.out)[0]["reason"] and "\n" not in lines(result.out)[0]["reason"]
    assert result.summary["unusable"] == 1 and result.summary["counts"]["train.CT"]["volumes"] == 7
    shard = read_shard(result.out / "shards", Split.TRAIN, Modality.CT)
    assert [v.first for v in shard.volumes] == [k * shard.volumes[0].count for k in range(7)]


def test_too_many_bad_images_refuse_the_dataset_and_name_the_first(dataset, heads):
    paths = cohort_of(dataset, heads, 4)
    for path in paths[:3]:
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"3 of 7 images could not be prepared.*25%.*s00"):
        dataset.preprocess(*SMALL)
    assert not (dataset.folder / "out").exists()


def test_a_split_without_a_usable_image_is_refused_whatever_is_allowed(dataset, heads):
    small_cohort(dataset, heads)
    (dataset.folder / "raw" / "test/CT/s3.nii").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"no image of test\.CT could be prepared"):
        dataset.preprocess(*SMALL, ("validation.max_dropped_fraction", 1.0))


@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one(dataset, heads, monkeypatch):
    paths = cohort_of(dataset, heads, 6)
    paths[4].write_bytes(b"no image")
    made = []
    for processes in ("1", "2"):
        monkeypatch.setenv(PROCESSES, processes)
        made.append(dataset.preprocess(*SMALL, name=f"with-{processes}"))
    assert shards_digest(made[0].out) == shards_digest(made[1].out)
    assert made[0].digest == made[1].digest and len(lines(made[1].out)) == 1


@pytest.mark.parametrize(
    "step, sentence",
    [
        ({"kind": "registration", "modality": "CT", "reference": "nowhere.nii"}, "not among the 4 usable images"),
        ({"kind": "registration", "modality": "CT", "reference": "test/CT/s3.nii"}, "is a test image"),
        (
            {
                "kind": "registration",
                "modality": "CT",
                "reference": "train/MR/s2.nii",
                "transform": "deformable",
                "engine": "simpleitk",
            },
            "name a CT, or set engine to ants",
        ),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused_before_any_work(dataset, heads, step, sentence):
    small_cohort(dataset, heads)
    with pytest.raises(InputError, match=sentence):
        dataset.preprocess(*SMALL, ("preprocess.steps", [step]))


@pytest.mark.slow
def test_a_ct_registered_to_its_mr_lies_on_it_and_the_rest_is_left_alone(dataset, heads):
    shift = np.eye(4)
    shift[:3, 3] = [9.0, -7.0, 5.0]
    for split, subject, head in (("train", "s1", heads[1]), ("test", "s3", heads[3])):
        moved = ct_of(head)
        dataset.add(split, subject, Volume(moved.array, shift @ moved.affine, Modality.CT, Unit.HU))
        dataset.add(split, subject, t1_of(head))
    dataset.add("train", "s2", ct_of(heads[2]))
    step = {"kind": "registration", "modality": "CT", "engine": "simpleitk"}
    result = dataset.preprocess(*SMALL, ("preprocess.steps", [step]))
    assert result.summary["not_registered"] == 1
    shards = {m: read_shard(result.out / "shards", Split.TEST, m) for m in Modality}
    entry = shards[Modality.CT].volumes[0]
    found = np.array(entry.alignment)
    assert np.allclose(found[:3, 3], shift[:3, 3], atol=2.0) and np.allclose(found[:3, :3], np.eye(3), atol=0.03)
    ct, mr = (shards[m].volume_head(0) for m in (Modality.CT, Modality.MR))
    assert 2 * (ct & mr).sum() / (ct.sum() + mr.sum()) > 0.95
    grid = json.loads((result.out / "grid.json").read_text())
    assert grid["training_only"] == ["registration"] and grid["steps"][0]["engine"] == "simpleitk"
    # Evaluation puts the truth where preprocessing found it, seen from either side, and moves no voxel of it.
    manifest = dataset.folder / "validate" / "manifest.parquet"
    inputs = {"preprocessed": result.out, "manifest": manifest, "raw": dataset.folder / "raw"}
    held = TestSet.open(inputs, Grid.model_validate(grid), Direction.MR2CT)
    truth, original = held.case(0).truth, t1_of(heads[3]).affine
    assert np.array_equal(truth.volume.array, heads[3].ct)
    assert np.abs(truth.moved.affine - original)[:3, 3].max() < 2.0
    turned = held.turned(Direction.CT2MR)
    assert np.abs(turned.truth(0).moved.affine - shift @ original)[:3, 3].max() < 2.0


def test_a_sheet_shows_images_from_before_to_after(dataset, heads):
    small_cohort(dataset, heads)
    steps = [{"kind": "head_mask", "modality": "CT"}]
    out = dataset.preprocess(*SMALL, ("preprocess.steps", steps)).out
    with (
        Image.open(out / "provenance" / "preview_CT.png") as ct,
        Image.open(out / "provenance" / "preview_MR.png") as mr,
    ):
        assert ct.width > mr.width > 200


def test_preprocess_evaluate_and_a_client_place_a_head_alike_and_a_pair_on_one_grid(dataset, heads):
    small_cohort(dataset, heads)
    ct, mr = (off_centre(v) for v in (ct_of(heads[2]), t1_of(heads[2])))
    # Its head lies elsewhere than the MR shows it: only the source's head counts.
    dataset.add("test", "s2", ct.with_array(np.roll(ct.array, 3, axis=1)))
    path = dataset.add("test", "s2", mr)
    out = dataset.preprocess(*SMALL).out
    grid = Grid.model_validate_json((out / "grid.json").read_text())
    inputs = {
        "preprocessed": out,
        "raw": dataset.folder / "raw",
        "manifest": dataset.folder / "validate/manifest.parquet",
    }
    test_set = TestSet.open(inputs, grid, Direction.MR2CT)
    index = next(i for i, v in enumerate(test_set.source.volumes) if v.subject == "s2")
    case = test_set.case(index)
    sent, placement = prepare([nifti.read(path, modality=Modality.MR)], grid)
    assert np.array_equal(test_set.source.volume(index), case.array) and np.array_equal(case.array, sent)
    assert np.array_equal(case.placement.grid_affine, placement.grid_affine)
    truth = test_set.target.volumes[test_set.pairs[index]]
    assert truth.affine == test_set.source.volumes[index].affine
    middle = case.head.any(axis=0)
    assert abs(np.flatnonzero(middle.any(axis=0)).mean() - (grid.size[1] - 1) / 2) <= 1


def off_centre(volume: Volume) -> Volume:
    """Add air on one side, so that the head is no more in the middle of its field of view."""
    room = ((0, 0), (0, 0), (0, 23))
    return volume.with_array(np.pad(volume.array, room, constant_values=volume.array.min()))


def test_a_head_that_does_not_fit_the_grid_is_a_finding(dataset, heads):
    small_cohort(dataset, heads)
    result = dataset.preprocess(*SMALL[1:], ("preprocess.size", [44, 36]))
    found = pd.read_csv(result.out / "findings.csv").to_dict("records")
    assert {f["image"] for f in found} == {r["image"] for r in dataset.rows}
    assert result.summary["findings"] == len(found)
    words = r"\d+\.\d% of the head lies outside the model's slices of 154 × 162 mm"
    assert all(re.match(words, f["sentence"]) for f in found)


def test_the_empty_mask_of_a_test_image_is_found_before_anything_is_trained(dataset, heads):
    small_cohort(dataset, heads)
    dataset.add("test", "s2", ct_of(heads[2]))
    mask = Volume(np.zeros(SHAPE, np.uint8), affine_of(SHAPE, SPACING_MM), Modality.MR, Unit.ARBITRARY)
    nifti.write(dataset.folder / "raw/test/mask.nii", mask)
    dataset.rows[-1][Column.MASK.value] = "test/mask.nii"
    result = dataset.preprocess(*SMALL)
    assert [line["reason"] for line in lines(result.out)] == [
        "the mask test/mask.nii marks no voxel of test/CT/s2.nii; mend it, or remove it"
    ]
