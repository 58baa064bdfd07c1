"""Pairs of a CT and an MR: one subject, one grid, and nothing that says that they lie elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ctmr.data.findings import inspect
from ctmr.data.images import best_first
from ctmr.data.manifest import INVENTORY_COLUMNS, Column, Split
from ctmr.data.shards import Shard, ShardVolume, pairs, read_shard, write_shard
from ctmr.imaging.volume import Modality, Unit
from ctmr.recipe.recipe import Validate

GRID = tuple(tuple(float(x) for x in row) for row in np.eye(4))


def shard(modality: Modality, *volumes: ShardVolume) -> Shard:
    count, unit = sum(v.count for v in volumes), Unit.HU if modality is Modality.CT else Unit.ARBITRARY
    slices = np.zeros((count, 1, 8, 8), np.int16 if unit is Unit.HU else np.uint16)
    return Shard(slices, np.zeros((count, 8, 8), bool), volumes, unit, modality)


def volume(path: str, subject: str = "P1", *, frame: str = "", picture: bool = False) -> ShardVolume:
    count = 1 if picture else 2
    return ShardVolume(path, subject, "", 0, count, (path,), affine=None if picture else GRID, frame=frame)


@pytest.mark.parametrize(
    ("ct", "mr", "paired"),
    [("1.1", "1.1", True), ("1.1", "1.2", False), ("", "1.2", True), ("1.1", "", True), ("", "", True)],
)
def test_equal_grids_in_two_frames_of_reference_are_no_pair(ct: str, mr: str, paired: bool) -> None:
    a, b = shard(Modality.CT, volume("ct", frame=ct)), shard(Modality.MR, volume("mr", frame=mr))
    assert bool(pairs(a, b)) is paired


def test_the_frame_of_reference_is_kept_in_the_shard(tmp_path: Path) -> None:
    write_shard(tmp_path, Split.TEST, shard(Modality.CT, volume("ct", frame="1.1")))
    assert read_shard(tmp_path, Split.TEST, Modality.CT).volumes[0].frame == "1.1"


@pytest.mark.parametrize(
    ("ct", "mr", "count"),
    [
        (["test/sub-1/ct.png"], ["test/sub-1/mr.png"], 1),
        (["CT/p1_slice_1.png"], ["MR/p1_slice_1.png"], 0),
        (["sub-1/ct-1.png", "sub-1/ct-2.png"], ["sub-1/mr-1.png", "sub-1/mr-2.png"], 0),
    ],
)
def test_slices_of_a_patient_are_no_pairs_of_pictures(ct: list[str], mr: list[str], count: int) -> None:
    a, b = (shard(m, *(volume(p, picture=True) for p in some)) for m, some in zip(Modality, (ct, mr), strict=True))
    assert len(pairs(a, b)) == count


def test_validate_says_whose_images_nothing_lays_over_each_other() -> None:
    rows = [
        {Column.IMAGE: f"{who}{m}", Column.SUBJECT: who, Column.MODALITY: m, Column.FRAME_OF_REFERENCE: frame}
        for who, frames in {"A": ("1.1", "1.2"), "B": ("1.3", "1.3")}.items()
        for m, frame in zip(("CT", "MR"), frames, strict=True)
    ]
    table = pd.DataFrame([{str(k): v for k, v in r.items()} for r in rows])
    for column in INVENTORY_COLUMNS:
        if column not in table:
            table[column] = 100 if column in ("height", "width", "depth") else float(1) if "m" in column[:3] else ""
    table[Column.MINIMUM], table[Column.MAXIMUM] = 0.0, 1.0
    table[Column.FORMAT] = "dicom"
    found = [f for f in inspect(table, Validate(min_images=1)) if f.rule == "frames_of_reference"]
    assert [f.images for f in found] == [("ACT", "AMR")]
    assert "CT and MR of A lie in different frames of reference" in found[0].sentence


def row(name: str, depth: int, *spacing: float) -> dict[str, object]:
    spacings = dict(zip((Column.SPACING_D_MM, Column.SPACING_H_MM, Column.SPACING_W_MM), spacing, strict=True))
    return {Column.IMAGE: name, Column.DEPTH: depth, **spacings}


def test_the_best_of_several_images_is_three_dimensional_fine_and_no_scout() -> None:
    rows = [
        row("a scout", 3, 1.0, 1.0, 1.0),
        row("b thick", 24, 5.0, 0.5, 0.5),
        row("c coarse", 120, 1.5, 1.2, 1.2),
        row("d fine", 176, 1.0, 1.0, 1.0),
        row("e fine", 176, 1.0, 1.0, 1.0),
    ]
    assert [r[Column.IMAGE] for r in sorted(rows, key=best_first)] == [
        "d fine",
        "e fine",
        "c coarse",
        "b thick",
        "a scout",
    ]


def test_the_image_on_the_same_grid_is_the_partner_of_several() -> None:
    elsewhere = replace(volume("thick"), affine=None, count=9)
    a = shard(Modality.CT, volume("ct"))
    b = shard(Modality.MR, elsewhere, volume("mr", frame="1.1"))
    assert pairs(a, b) == [(0, 1)]
