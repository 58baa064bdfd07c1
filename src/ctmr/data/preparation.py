"""One image brought onto the model's grid, through every step of the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data import images
from ctmr.data.manifest import Column, Split
from ctmr.data.shards import ShardVolume, pack_head
from ctmr.errors import InputError
from ctmr.imaging.grid import ORIENTATION, Grid, Plane
from ctmr.imaging.inference_path import ServedPlacement, field_centre, prepare_as_trained
from ctmr.imaging.mask import head_mask
from ctmr.imaging.steps.base import ImageStep, Transform
from ctmr.imaging.steps.registration import Engine, Registration
from ctmr.imaging.steps.table_removal import TableRemoval
from ctmr.imaging.volume import Modality, Unit, Volume

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """One image to prepare: the rows of its channels, and whether its way is shown on the sheet."""

    channels: tuple[Row, ...]
    shown: bool = False


@dataclass(frozen=True)
class Picture:
    """The middle slice of an image at one station of its way."""

    label: str
    values: NDArray[Any]
    spacing: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class PreparedSlices:
    """Slices that one image became.

    Attributes
    ----------
    volume
        Its entry in the shard; `first` is not known yet.
    unit
        Of the values.
    slices
        ``[N, C, H, W]`` in the storage type of the unit.
    head
        ``[N, H, ceil(W / 8)]``.
    left_alone
        Registrations that had no reference for this image.
    notes
        Sentences on what was done to the image, or is missing of it on the grid.
    way
        Stations, for images that are shown.
    """

    volume: ShardVolume
    unit: Unit
    slices: NDArray[Any]
    head: NDArray[np.uint8]
    left_alone: bool = False
    notes: tuple[str, ...] = ()
    way: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Unusable:
    """An image that could not be prepared, and why."""

    reason: str


@dataclass(frozen=True)
class Preparer:
    """Prepares images of one dataset.

    Attributes
    ----------
    raw
        Folder that paths are relative to.
    grid
        The model's.
    rows
        All usable images of the dataset: references are among them.
    truth
        Modality whose images are the other's truth: those of a pair lie where their source does.
    sequence
        Of several MR images of a subject, this one is the partner of its CT; else the first by name.
    """

    raw: Path
    grid: Grid
    rows: Sequence[Row]
    truth: Modality = Modality.CT
    sequence: str = ""
    _partners: dict[tuple[str, str, str], Row] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for row in sorted(self.rows, key=self._precedence, reverse=True):
            self._partners[str(row[Column.SPLIT]), str(row[Column.SUBJECT]), str(row[Column.MODALITY])] = row

    def _precedence(self, row: Row) -> tuple[Any, ...]:
        return bool(self.sequence) and str(row[Column.SEQUENCE]) != self.sequence, *images.best_first(row)

    def check(self) -> None:
        """Raise InputError when a step refers to an image that the dataset lacks, or that must not be used."""
        for step in self.grid.image_steps:
            name = step.named_reference
            if name is not None:
                row = self._named(name)
                if Split(row[Column.SPLIT]) is Split.TEST:
                    raise InputError(f"the reference {name} of {step.kind} is a test image; name one of training")
                modality = Modality(row[Column.MODALITY])
                if isinstance(step, TableRemoval) and modality is not Modality.CT:
                    raise InputError(f"the reference {name} of table_removal is an MR; name a CT")
                if (
                    isinstance(step, Registration)
                    and step.transform is Transform.DEFORMABLE
                    and step.engine is not Engine.ANTS
                    and modality is not step.modality
                ):
                    raise InputError(
                        f"the reference {name} of the deformable registration of {step.modality} images is "
                        f"a {modality}, which SimpleITK's B-splines do not follow; name a {step.modality}, or set "
                        "engine to ants"
                    )

    def __call__(self, work: Work) -> PreparedSlices | Unusable:
        """Prepare one image; what is wrong with its file is an answer, not an error."""
        try:
            return self._prepare(work)
        except InputError as error:
            return Unusable(str(error))

    def _prepare(self, work: Work) -> PreparedSlices:
        volumes: list[Volume] = [images.read(self.raw, row) for row in work.channels]
        first, unit = work.channels[0], volumes[0].unit
        subject, split = str(first[Column.SUBJECT]), str(first[Column.SPLIT])
        way = [_picture("as it is", volumes[0], self.grid.plane)] if work.shown else []

        def reference(name: str | None, volume: Volume) -> Volume | None:
            if name is not None:
                return _read(self.raw, tuple(self._named(name).items()))
            return self._partner(split, subject, volume.modality)

        def watch(step: ImageStep, volume: Volume) -> None:
            if work.shown:
                way.append(_picture(step.kind.replace("_", " "), volume, self.grid.plane))

        self._require_mask(first, volumes[0])
        beside = self._partner(split, subject, self.truth) if volumes[0].modality is self.truth else None
        prepared = prepare_as_trained(volumes, self.grid, reference, watch, beside)
        array, affine = prepared.array, prepared.placement.grid_affine
        alignment = prepared.alignment
        to_other = [s for s in prepared.ran if s.moves and s.named_reference is None]
        depth = array.shape[1]
        if work.shown:
            way.append(Picture("on the grid", np.array(array[0, depth // 2]), self.grid.spacing_mm or (1.0, 1.0)))
        return PreparedSlices(
            ShardVolume(
                image=str(first[Column.IMAGE]),
                subject=subject,
                uid=volumes[0].uid,
                first=0,
                count=depth,
                paths=tuple(str(r[Column.PATH]) for r in work.channels),
                sequences=tuple(v.sequence or "" for v in volumes),
                affine=_rows(affine),
                alignment=_rows(alignment.matrix) if alignment is not None and to_other else None,
                level=-(depth - 1) / 2,
                frame=_frame(first, prepared.ran, registered=alignment is not None),
                field_mm=_field(prepared.placement),
            ),
            unit,
            np.moveaxis(array, 0, 1),
            # Pictures are slices of different heads: a mask in three dimensions needs a volume.
            pack_head(head_mask(array[0], unit)),
            left_alone=bool(to_other) and alignment is None,
            notes=prepared.placement.notes,
            way=tuple(way),
        )

    def _partner(self, split: str, subject: str, modality: Modality) -> Volume | None:
        """Read the image of the other modality that belongs to a subject's; ``None`` where there is none."""
        other = Modality.MR if modality is Modality.CT else Modality.CT
        row = self._partners.get((split, subject, other.value)) if subject else None
        return None if row is None else images.read(self.raw, row)

    def _require_mask(self, row: Row, volume: Volume) -> None:
        """Raise InputError when the mask that came with a test image is empty: nothing could be measured in it."""
        if Split(row[Column.SPLIT]) is Split.TEST and volume.affine is not None:
            images.read_mask(self.raw, row, volume)

    def _named(self, reference: str) -> Row:
        for row in self.rows:
            if reference in (str(row[Column.IMAGE]), str(row[Column.PATH])):
                return row
        some = ", ".join(sorted(str(r[Column.IMAGE]) for r in self.rows)[:3])
        raise InputError(
            f"preprocess.steps names the reference {reference}, which is not among the {len(self.rows)} usable images; "
            f"name one of them, such as {some}"
        )


def _frame(row: Row, ran: Sequence[ImageStep], *, registered: bool) -> str:
    """Return the frame of reference after the steps that ran: a registration leaves the image in its reference's."""
    moved = [s for s in ran if s.moves]
    if not moved or not registered:
        return str(row.get(Column.FRAME_OF_REFERENCE) or "")
    return f"registered to {moved[-1].named_reference}" if moved[-1].named_reference else ""


@lru_cache(maxsize=2)
def _read(raw: Path, row: tuple[tuple[str, Any], ...]) -> Volume:
    return images.read(raw, dict(row))


def _picture(label: str, volume: Volume, plane: Plane) -> Picture:
    """Return the middle slice of an image, turned as the grid's slices are."""
    if volume.affine is None:
        return Picture(label, np.array(volume.array[0]))
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(ORIENTATION[plane]))
    order = np.argsort(turn[:, 0])
    spacing = [volume.spacing_mm[int(k)] for k in order]
    turned = apply_orientation(volume.array, turn)
    return Picture(label, np.array(turned[turned.shape[0] // 2]), (spacing[1], spacing[2]))


def _field(placement: ServedPlacement) -> tuple[float, ...] | None:
    if placement.native_affine is None:
        return None
    return tuple(float(x) for x in field_centre(placement.on_grid.native_shape, placement.native_affine))


def _rows(matrix: NDArray[np.float64] | None) -> tuple[tuple[float, ...], ...] | None:
    return None if matrix is None else tuple(tuple(float(x) for x in row) for row in matrix)
