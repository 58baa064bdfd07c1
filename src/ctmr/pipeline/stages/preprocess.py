"""preprocess: every usable image goes onto the model's grid and into shards of physical units."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ctmr.data import images
from ctmr.data.manifest import PHANTOM_PREFIX, Column, Outcome, Split
from ctmr.data.preparation import Picture, PreparedSlices, Preparer, Unusable, Work
from ctmr.data.shards import ShardWriter
from ctmr.errors import InputError
from ctmr.imaging.grid import Grid, picture_grid, volume_grid
from ctmr.imaging.steps.base import ImageStep
from ctmr.imaging.steps.registration import Registration, resolve_engine
from ctmr.imaging.volume import Modality, Unit
from ctmr.io import FORMATS, Holds
from ctmr.pipeline.stage import Context, Stage
from ctmr.recipe.recipe import Recipe
from ctmr.system.pool import in_order
from ctmr.system.tables import write_csv

IMAGES_A_PROCESS = 16
"""Fewer are not worth starting a process for, unless steps make each of them expensive."""
SHOWN = 3
"""Images of each modality on the sheet."""

Row = Mapping[str, Any]


def run(context: Context) -> dict[str, Any]:
    """Write ``shards/<split>/<modality>.npy``, ``grid.json``, tables of what was unusable or worth a look, and sheets.

    Raises
    ------
    InputError
        A dataset that validate refused, images that do not go together, or too many that cannot be prepared.
    """
    import pandas as pd

    validation = json.loads((context.inputs["validation"] / "validation.json").read_text())
    if validation["outcome"] == Outcome.REFUSE:
        raise InputError(f"the dataset was refused by validate: {validation['reason']}")
    rows: list[Row] = images.rows(pd.read_parquet(context.inputs["validation"] / "manifest.parquet"))
    grid = grid_for(context.recipe, rows)
    groups = group_channels(rows, context.recipe.data.sequences)
    first = next(iter(context.recipe.data.sequences), "")
    preparer = Preparer(context.inputs["raw"], grid, rows, context.recipe.direction.target, first)
    preparer.check()
    shards = _Shards(context, sum(len(g) for g in groups.values()))
    for (split, modality), members in sorted(groups.items()):
        shards.write(preparer, split, modality, members)
    _place_atlases(context)
    (context.out / "grid.json").write_text(grid.model_dump_json(indent=1) + "\n")
    for name, table, last in (("unusable", shards.unusable, "reason"), ("findings", shards.findings, "sentence")):
        columns = ["image", "split", "modality", last]
        write_csv(context.out / f"{name}.csv", columns, ([image[c] for c in columns] for image in table), end="\n")
    shards.refuse_if_too_few(sorted(groups))
    phantom = all(str(r[Column.SUBJECT]).startswith(PHANTOM_PREFIX) for r in rows)
    _sheets(context.out / "provenance", shards.shown, phantom)
    return {
        "counts": shards.counts,
        "size": list(grid.size),
        "plane": grid.plane.value,
        "steps": [s.kind for s in grid.image_steps],
        "unusable": len(shards.unusable),
        "not_registered": shards.left_alone,
        "findings": len(shards.findings),
    }


def _place_atlases(context: Context) -> None:
    """Bring CT volumes onto the heads of the MR volumes; pictures have no place."""
    from ctmr.data.atlases import ATLASES, bring_onto
    from ctmr.data.shards import read_shard

    count, folder = context.recipe.preprocess.atlases, context.out / "shards"
    if not count or not all((folder / Split.TRAIN.value / f"{m}.json").is_file() for m in Modality):
        return
    mr, ct = (read_shard(folder, Split.TRAIN, m) for m in (Modality.MR, Modality.CT))
    if all(v.affine is not None for v in (*mr.volumes, *ct.volumes)):
        context.report("bringing CT volumes onto the heads of the MR volumes")
        bring_onto(mr, ct, count).write(folder / Split.TRAIN.value / ATLASES)


def grid_for(recipe: Recipe, rows: Sequence[Row]) -> Grid:
    """Return the grid: the recipe's volume grid, or its picture grid when the images have no geometry."""
    pictures = {FORMATS[str(r[Column.FORMAT])].holds is Holds.PICTURE for r in rows}
    if len(pictures) > 1:
        raise InputError("the dataset mixes pictures with volumes; one model needs one kind")
    section = recipe.preprocess
    steps = tuple(_resolved(step) for step in section.steps)
    try:
        if pictures == {True}:
            return picture_grid(section.picture_size, steps, section.interpolation)
        return volume_grid(
            section.plane, section.size, section.spacing_mm, section.slice_spacing_mm, steps, section.interpolation
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"preprocess.steps does not suit this dataset: {reason}; take the step out") from None


def _resolved(step: ImageStep) -> ImageStep:
    """Return the step as it will run: the grid records which engine registers."""
    if not isinstance(step, Registration):
        return step
    return step.model_copy(update={"engine": resolve_engine(step.engine)})


def group_channels(
    rows: Sequence[Row], sequences: Sequence[str]
) -> dict[tuple[Split, Modality], list[tuple[Row, ...]]]:
    """Group manifest rows into images of one or several channels, by split and modality.

    Of several images of one sequence of a subject the best is read: `ctmr.data.images.best_first`.

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
            own = by_subject.setdefault((split, str(row[Column.SUBJECT])), {})
            sequence = str(row[Column.SEQUENCE])
            own[sequence] = min(row, own.get(sequence, row), key=images.best_first)
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


class _Shards:
    """Writes the shards of a run and keeps count."""

    def __init__(self, context: Context, total: int) -> None:
        self._context, self._total, self._done = context, total, 0
        self.counts: dict[str, dict[str, int]] = {}
        self.unusable: list[dict[str, str]] = []
        self.findings: list[dict[str, str]] = []
        self.left_alone = 0
        self.shown: dict[Modality, list[tuple[str, Unit, tuple[Picture, ...]]]] = {}

    def write(self, preparer: Preparer, split: Split, modality: Modality, members: Sequence[tuple[Row, ...]]) -> None:
        """Write one shard."""
        room = SHOWN - len(self.shown.setdefault(modality, []))
        work = [Work(channels, shown=number < room) for number, channels in enumerate(members)]
        worth = 1 if preparer.grid.image_steps else IMAGES_A_PROCESS
        first: PreparedSlices | None = None
        with ExitStack() as stack:
            writer: ShardWriter | None = None
            for item, done in zip(work, in_order(preparer, work, worth=worth), strict=True):
                name = str(item.channels[0][Column.IMAGE])
                self._tell(preparer.grid)
                if isinstance(done, Unusable):
                    self.unusable.append({"image": name, "split": split, "modality": modality, "reason": done.reason})
                    continue
                if writer is None or first is None:
                    first = done
                    writer = stack.enter_context(ShardWriter(self._context.out / "shards", split, modality, done.unit))
                if done.unit is not first.unit:
                    raise InputError(
                        f"image {name} is in unit {done.unit}, {first.volume.image} of {modality} is in {first.unit}; "
                        "one model needs one unit"
                    )
                if done.slices.shape[1:] != first.slices.shape[1:]:
                    raise InputError(
                        f"image {name} has slices of {done.slices.shape[1:]}, {first.volume.image} of "
                        f"{first.slices.shape[1:]}; one model needs one shape"
                    )
                writer.add(done.volume, done.slices, done.head)
                for note in done.notes:
                    self.findings.append({"image": name, "split": split, "modality": modality, "sentence": note})
                self.left_alone += done.left_alone
                if done.way:
                    self.shown[modality].append((f"{split} {done.volume.subject[-18:]}", done.unit, done.way))
            if writer is not None:
                self.counts[f"{split}.{modality}"] = {"volumes": len(writer.volumes), "slices": writer.count}

    def refuse_if_too_few(self, groups: Sequence[tuple[Split, Modality]]) -> None:
        """Raise InputError when a shard has no image left, or when more were lost than the recipe allows."""
        if not self.unusable:
            return
        example = self.unusable[0]
        empty = [f"{split}.{modality}" for split, modality in groups if f"{split}.{modality}" not in self.counts]
        allowed = self._context.recipe.validation.max_dropped_fraction
        lost = len(self.unusable) / self._total
        if empty:
            raise InputError(
                f"no image of {' and '.join(empty)} could be prepared; the first that failed: {example['reason']}"
            )
        if lost > allowed:
            raise InputError(
                f"{len(self.unusable)} of {self._total} images could not be prepared, and "
                f"validation.max_dropped_fraction allows {allowed:.0%}; the first: {example['reason']}"
            )
        self._context.report(
            f"left out {len(self.unusable)} of {self._total} images, the first because {example['reason']}", 1.0
        )

    def _tell(self, grid: Grid) -> None:
        self._done += 1
        if self._done % 25 == 0 or self._done == self._total or grid.spacing_mm is not None:
            self._context.report(f"preprocessed {self._done} of {self._total} images", self._done / self._total)


def _sheets(
    folder: Path, shown: Mapping[Modality, Sequence[tuple[str, Unit, tuple[Picture, ...]]]], phantom: bool
) -> None:
    """Draw, for each modality, some images before, between and after the steps; a view, so it lies in provenance."""
    from ctmr.reports.figures import way_sheet

    folder.mkdir(exist_ok=True)
    for modality, ways in shown.items():
        if ways:
            (folder / f"preview_{modality}.png").write_bytes(
                way_sheet(
                    [(label, [(p.label, p.values, p.spacing) for p in way]) for label, _, way in ways],
                    unit=ways[0][1],
                    title=f"{modality}: from the image as it is to the model's grid",
                    phantom=phantom,
                )
            )


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return how many slices of which size there are, in half a line."""
    slices = sum(count["slices"] for count in summary["counts"].values())
    words = f"{slices} slices of {summary['size'][0]}×{summary['size'][1]}, {summary['plane']}"
    return words + (f"; {summary['findings']} findings in findings.csv" if summary["findings"] else "")


STAGE = Stage(
    "preprocess",
    help="images onto the model's grid, in shards of physical units.",
    takes={"raw": "fetch/raw", "validation": "validate"},
    sections=("data", "validation", "preprocess", "direction"),
    run=run,
    summary_line=summary_line,
    version=5,
)
