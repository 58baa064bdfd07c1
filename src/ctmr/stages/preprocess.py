"""preprocess: every usable image goes onto the model's grid and into shards of physical units."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data.shards import Shard, ShardVolume, has_shard, read_shard, write_shard
from ctmr.errors import InputError
from ctmr.grid import Grid, picture_grid, volume_grid
from ctmr.manifest import Column, Outcome, Split
from ctmr.recipe import Recipe
from ctmr.stages import images
from ctmr.stages.contract import Context, Stage
from ctmr.volume import Modality, Unit, Volume

Row = Mapping[str, Any]


def run(context: Context) -> dict[str, Any]:
    """Write ``shards/<split>/<modality>.npy``, ``grid.json`` and a preview sheet."""
    import pandas as pd

    validation = json.loads((context.inputs["validation"] / "validation.json").read_text())
    if validation["outcome"] == Outcome.REFUSE:
        raise InputError(f"the dataset was refused by validate: {validation['reason']}")
    rows: list[Row] = images.rows(pd.read_parquet(context.inputs["validation"] / "manifest.parquet"))
    raw = context.inputs["raw"]
    grid = grid_for(context.recipe, rows)
    (context.out / "grid.json").write_text(grid.model_dump_json(indent=1) + "\n")
    groups = group_channels(rows, context.recipe.data.sequences)
    done, total, counts = 0, sum(len(g) for g in groups.values()), {}
    for (split, modality), members in sorted(groups.items()):
        builder = _Builder(split, modality)
        for channels in members:
            builder.add(raw, channels, grid)
            done += 1
            if done % 25 == 0 or done == total or grid.spacing_mm is not None:
                context.report(f"preprocessed {done} of {total} images", done / total)
        shard = builder.shard()
        write_shard(context.out / "shards", split, shard)
        counts[f"{split}.{modality}"] = {"volumes": len(shard.volumes), "slices": len(shard.slices)}
    _preview(context, context.out / "shards")
    return {"counts": counts, "size": list(grid.size), "plane": grid.plane.value}


def grid_for(recipe: Recipe, rows: Sequence[Row]) -> Grid:
    """Return the grid: the recipe's volume grid, or its picture grid when the images have no geometry."""
    pictures = {str(r[Column.FORMAT]) == "raster" for r in rows}
    if len(pictures) > 1:
        raise InputError("the dataset mixes pictures with DICOM or NIfTI volumes; one model needs one kind")
    section = recipe.preprocess
    if pictures == {True}:
        return picture_grid(section.picture_size)
    return volume_grid(section.plane, section.size, section.spacing_mm, section.slice_spacing_mm)


def group_channels(
    rows: Sequence[Row], sequences: Sequence[str]
) -> dict[tuple[Split, Modality], list[tuple[Row, ...]]]:
    """Group manifest rows into images of one or several channels, by split and modality.

    Raises
    ------
    InputError
        When the recipe names MR sequences that a subject lacks.
    """
    groups: dict[tuple[Split, Modality], list[tuple[Row, ...]]] = {}
    by_subject: dict[tuple[Split, str], dict[str, Row]] = {}
    for row in sorted(rows, key=lambda r: str(r[Column.IMAGE])):
        split, modality = Split(row[Column.SPLIT]), Modality(row[Column.MODALITY])
        if modality is Modality.MR and sequences:
            by_subject.setdefault((split, str(row[Column.SUBJECT])), {}).setdefault(str(row[Column.SEQUENCE]), row)
        else:
            groups.setdefault((split, modality), []).append((row,))
    for (split, subject), found in by_subject.items():
        missing = [s for s in sequences if s not in found]
        if missing:
            raise InputError(
                f"subject {subject} has the MR sequences {sorted(found)} but the recipe reads {list(sequences)}; "
                "set data.sequences to what every subject has"
            )
        groups.setdefault((split, Modality.MR), []).append(tuple(found[s] for s in sequences))
    return groups


class _Builder:
    """Collects the volumes of one shard."""

    def __init__(self, split: Split, modality: Modality) -> None:
        self.split, self.modality = split, modality
        self.slices: list[NDArray[Any]] = []
        self.heads: list[NDArray[np.bool_]] = []
        self.volumes: list[ShardVolume] = []
        self.unit: Unit | None = None

    def add(self, raw: Path, channels: tuple[Row, ...], grid: Grid) -> None:
        from ctmr.imaging.mask import head_mask_ct, head_mask_grey
        from ctmr.imaging.served_path import prepare

        volumes: list[Volume] = [images.read(raw, row) for row in channels]
        array, placement = prepare(volumes, grid)
        unit = volumes[0].unit
        if self.unit not in (None, unit):
            raise InputError(
                f"image {channels[0][Column.IMAGE]} is in unit {unit}, others of {self.modality} are in {self.unit}; "
                "one model needs one unit"
            )
        self.unit = unit
        affine = placement.grid_affine
        first = sum(v.count for v in self.volumes)
        depth = array.shape[1]
        self.volumes.append(
            ShardVolume(
                image=str(channels[0][Column.IMAGE]),
                subject=str(channels[0][Column.SUBJECT]),
                uid=volumes[0].uid,
                first=first,
                count=depth,
                paths=tuple(str(r[Column.PATH]) for r in channels),
                sequences=tuple(v.sequence or "" for v in volumes),
                affine=None if affine is None else tuple(tuple(float(x) for x in row) for row in affine),
                level=-(depth - 1) / 2,
            )
        )
        self.slices.append(np.moveaxis(array, 0, 1))
        find_head = head_mask_ct if unit is Unit.HU else head_mask_grey
        # Pictures are slices of different heads: a mask in three dimensions needs a volume.
        self.heads.append(find_head(array[0]))

    def shard(self) -> Shard:
        assert self.unit is not None
        return Shard(
            np.concatenate(self.slices), np.concatenate(self.heads), tuple(self.volumes), self.unit, self.modality
        )


def _preview(context: Context, shards: Path, columns: int = 8) -> None:
    """Draw a sheet of middle slices a modality; a view, so it lives in provenance."""
    from ctmr.reports.figures import preview_sheet

    folder = context.out / "provenance"
    folder.mkdir(exist_ok=True)
    for modality in Modality:
        pictures: list[NDArray[Any]] = []
        labels: list[str] = []
        unit = Unit.ARBITRARY
        for split in Split:
            if has_shard(shards, split, modality):
                shard = read_shard(shards, split, modality)
                unit = shard.unit
                for volume in shard.volumes[:columns]:
                    pictures.append(np.asarray(shard.slices[volume.first + volume.count // 2, 0]))
                    labels.append(f"{split} {volume.subject[-18:]}")
        if pictures:
            sheet = preview_sheet(np.stack(pictures), labels, unit=unit, title=f"{modality} on the model's grid")
            (folder / f"preview_{modality}.png").write_bytes(sheet)


STAGE = Stage(
    "preprocess",
    takes={"raw": "fetch/raw", "validation": "validate"},
    sections=("data", "preprocess"),
    run=run,
)
