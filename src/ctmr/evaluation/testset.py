"""The test set: its images as a client would send them, their truth, and the way back onto native voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data import images
from ctmr.data.manifest import PHANTOM_PREFIX, Column, Split
from ctmr.data.shards import Shard, pairs, read_head, read_shard
from ctmr.evaluation.truth import SAME_PLACE_MM, Truth, no_mask, place
from ctmr.imaging.grid import Grid
from ctmr.imaging.hounsfield import OUTSIDE_VALUE
from ctmr.imaging.inference_path import ServedPlacement, finish, prepare
from ctmr.imaging.mask import head_mask
from ctmr.imaging.resample import resample_to
from ctmr.imaging.steps.registration import Registration
from ctmr.imaging.storage_types import to_storage
from ctmr.imaging.volume import Direction, Modality, Unit, Volume

PICTURE_FIELD_OF_VIEW_MM = 240.0
"""Taken for the height of a picture, which has no geometry."""
READ_CACHE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class AsTrained:
    """A source image of the test set as preprocessing left it.

    Attributes
    ----------
    array
        ``[C, D, H, W]``.
    affine
        Where it lies; a registration may have moved it. ``None`` for pictures.
    truth
        The truth beside it, where there is one that compares.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64] | None
    truth: Truth | None


@dataclass(frozen=True)
class Case:
    """One source image of the test set on the model's grid, by the served path.

    Attributes
    ----------
    name, subject
        Identifiers.
    volumes
        Native image of each channel.
    rows
        Their rows of the manifest.
    array
        ``[C, D, H, W]``, as the model takes it.
    placement
        The way back.
    as_trained
        The same image with the training-only steps too; ``None`` where none is for this modality.
    truth
        The same subject's target image, where there is one that compares.
    level
        `ShardVolume.level`.
    """

    name: str
    subject: str
    volumes: list[Volume]
    rows: list[Mapping[str, Any]]
    array: NDArray[Any]
    placement: ServedPlacement
    as_trained: AsTrained | None
    truth: Truth | None
    level: float
    direction: Direction
    target_unit: Unit
    grid: Grid

    @cached_property
    def head(self) -> NDArray[np.bool_]:
        """Head mask of the source on the grid, as preprocessing makes it."""
        return self.head_of(self.array)

    def head_of(self, array: NDArray[Any]) -> NDArray[np.bool_]:
        """Head mask of an image ``[C, D, H, W]`` in the unit of this case's source."""
        return head_mask(array[0], self.volumes[0].unit)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the voxels on the grid; a picture's field of view is taken to be 240 mm high."""
        affine = self.placement.grid_affine
        if affine is None:
            edge = PICTURE_FIELD_OF_VIEW_MM / self.array.shape[2]
            return edge, edge, edge
        d, h, w = np.linalg.norm(affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def slice_axis(self) -> int | None:
        """Axis of the truth along which the model's slices are stacked; ``None`` without truth or geometry."""
        grid = self.placement.grid_affine
        if self.truth is None or grid is None:
            return None
        truth = self.truth.moved.require_affine()[:3, :3]
        return int(np.abs((truth / np.linalg.norm(truth, axis=0)).T @ grid[:3, 0]).argmax())

    def native(self, made: NDArray[np.float32]) -> Volume:
        """Round a translation ``[D, H, W]`` as the served model does, then bring it back onto native voxels."""
        stored = to_storage(made, self.target_unit)
        return finish(stored, self.placement, modality=self.direction.target, unit=self.target_unit)

    def native_as_trained(self, made: NDArray[np.float32]) -> Volume:
        """Round the translation of `as_trained`; it stays on the grid where a registration has moved the image."""
        trained, here = self.as_trained, self.placement.grid_affine
        assert trained is not None
        stays = made.shape == self.array.shape[1:]
        if trained.affine is not None and here is not None:
            stays = stays and np.allclose(trained.affine, here, atol=SAME_PLACE_MM)
        if stays:
            return self.native(made)
        stored = to_storage(made, self.target_unit)
        return Volume(stored, trained.affine, self.direction.target, self.target_unit, subject=self.subject)

    def prepared(self, volume: Volume) -> NDArray[Any]:
        """Bring another image on this case's native voxels onto the grid, ``[D, H, W]``."""
        array: NDArray[Any] = prepare([volume], self.grid, self.placement)[0][0]
        return array

    def on_grid(self, truth: Truth) -> NDArray[Any]:
        """Bring a truth onto the voxels of `array`, ``[D, H, W]``."""
        array, placement = prepare([truth.moved], self.grid, self.placement)
        there, here = placement.grid_affine, self.placement.grid_affine
        if (
            there is None
            or here is None
            or (array.shape[1:] == self.array.shape[1:] and np.allclose(there, here, atol=SAME_PLACE_MM))
        ):
            alike: NDArray[Any] = array[0]
            return alike
        d, h, w = self.array.shape[1:]
        on_its_grid = truth.volume.with_array(array[0], there)
        return resample_to(on_its_grid, here, (d, h, w), outside=OUTSIDE_VALUE[truth.volume.unit])


class ImageReader:
    """Reads native images; the latest stay in memory, up to a number of bytes that does not grow with the test.

    Parameters
    ----------
    raw
        Folder that paths are relative to.
    rows
        Path → row of the manifest.
    """

    def __init__(self, raw: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self.raw, self.rows = raw, rows
        self._kept: dict[str, Volume] = {}

    def __call__(self, path: str) -> Volume:
        """Read one image."""
        volume = self._kept.pop(path, None)
        if volume is None:
            volume = images.read(self.raw, self.rows[path])
        self._kept[path] = volume
        while sum(v.array.nbytes for v in self._kept.values()) > READ_CACHE_BYTES:
            del self._kept[next(iter(self._kept))]
        return volume


@dataclass(frozen=True)
class TestSet:
    """The test split of one direction. Only tables and the latest few images are kept in memory.

    Attributes
    ----------
    pairs
        Index of a source volume → index of its truth; empty where no protocol compares the target's unit.
    partners
        The same, whatever the unit.
    phantom
        All subjects are phantoms.
    placed
        Where truths lie beside their sources, as far as it was found by registration.
    """

    read: ImageReader
    shards: Path
    source: Shard
    target: Shard
    grid: Grid
    direction: Direction
    pairs: Mapping[int, int]
    partners: Mapping[int, int]
    phantom: bool
    placed: dict[tuple[int, bool], NDArray[np.float64]] = field(default_factory=dict)

    @staticmethod
    def open(inputs: Mapping[str, Path], grid: Grid, direction: Direction) -> TestSet:
        """Open the test shards and find the pairs."""
        import pandas as pd

        shards = inputs["preprocessed"] / "shards"
        source, target = (read_shard(shards, Split.TEST, m, heads=False) for m in (direction.source, direction.target))
        rows = {str(r[Column.PATH]): r for r in images.rows(pd.read_parquet(inputs["manifest"]))}
        return _test_set(ImageReader(inputs["raw"], rows), shards, source, target, grid, direction)

    def turned(self, direction: Direction) -> TestSet:
        """Return the same test seen from a direction."""
        if direction is self.direction:
            return self
        return _test_set(self.read, self.shards, self.target, self.source, self.grid, direction)

    @property
    def differs_as_trained(self) -> bool:
        """True when training images of the source went through steps that a client does not run."""
        return any(not s.served and s.modality is self.direction.source for s in self.grid.image_steps)

    @property
    def has_pairs(self) -> bool:
        """True when some subject has source and truth on one grid, in a unit that a protocol compares."""
        return bool(self.pairs)

    @property
    def target_unit(self) -> Unit:
        """Unit of the truth."""
        return self.target.unit

    def indices(self, most: int) -> list[int]:
        """Return which source volumes are measured: all pairs, or at most `most` unpaired ones, evenly spaced."""
        return sorted(self.pairs) if self.pairs else spread(range(len(self.source.volumes)), most)

    def case(self, index: int) -> Case:
        """Read a source image, and its truth, from the raw data."""
        entry = self.source.volumes[index]
        rows = [self.read.rows[p] for p in entry.paths]
        volumes = [self.read(p) for p in entry.paths]
        array, placement = prepare(volumes, self.grid)
        truth = self.truth(index) if index in self.pairs else None
        level = entry.level if array.shape[1] == entry.count else -(array.shape[1] - 1) / 2
        return Case(
            entry.image,
            entry.subject,
            volumes,
            rows,
            array,
            placement,
            self._as_trained(index, truth),
            truth,
            level,
            self.direction,
            self.target_unit,
            self.grid,
        )

    def truth(self, index: int) -> Truth:
        """Read the target image of a source volume's subject from the raw data."""
        target, source = (self.read(p) for p in self._paths(index))
        return Truth(target, source, self._placed(index, target, source), partial(self._given_mask, index))

    def require_mask(self, index: int) -> None:
        """Raise InputError when no mask came with a pair's target, and none with its source."""
        if not any(self.read.rows[path][Column.MASK] for path in self._paths(index)):
            raise no_mask(self._paths(index)[0])

    def _given_mask(self, index: int, like: Volume) -> NDArray[np.bool_]:
        """Read the mask beside the target image, else beside the source image, of a pair."""
        found = (images.read_mask(self.read.raw, self.read.rows[p], like) for p in self._paths(index))
        mask = next((m for m in found if m is not None), None)
        if mask is None:
            raise no_mask(self._paths(index)[0])
        return mask

    def _paths(self, index: int) -> tuple[str, str]:
        """Target and source of a pair."""
        return self.target.volumes[self.partners[index]].paths[0], self.source.volumes[index].paths[0]

    def _as_trained(self, index: int, truth: Truth | None) -> AsTrained | None:
        if not self.differs_as_trained:
            return None
        entry, array = self.source.volumes[index], self.source.volume(index)
        if entry.affine is None:
            return AsTrained(array, None, truth)
        affine = np.asarray(entry.affine, dtype=np.float64)
        moved = any(s.modality is self.direction.source for s in self._registrations)
        if truth is not None and moved:
            source = Volume(np.array(array[0]), affine, self.direction.source, self.source.unit, subject=entry.subject)
            truth = replace(truth, placed=self._placed(index, truth.volume, source, trained=True))
        return AsTrained(array, affine, truth)

    @property
    def _registrations(self) -> list[Registration]:
        return [s for s in self.grid.image_steps if isinstance(s, Registration)]

    def _placed(
        self, index: int, truth: Volume, source: Volume, *, trained: bool = False
    ) -> NDArray[np.float64] | None:
        """Return where a truth lies beside a source: as the files say, unless preprocessing registers images."""
        if truth.affine is None or not self._registrations:
            return truth.affine
        of_source = self.source.volumes[index].alignment
        of_target = self.target.volumes[self.partners[index]].alignment
        if of_target is not None:
            return _affine(np.linalg.inv(of_target) @ truth.affine)
        if of_source is not None:
            return truth.affine if trained else _affine(np.asarray(of_source) @ truth.affine)
        if (index, trained) not in self.placed:
            self.placed[index, trained] = place(truth, source, self._registrations[0])
        return self.placed[index, trained]

    def head_slice(self, index: int, level: int) -> NDArray[np.bool_]:
        """Read the head mask ``[H, W]`` of one slice of a source volume, as preprocessing found it."""
        return read_head(self.shards, Split.TEST, self.source, self.source.volumes[index].first + level)

    def training(self, modality: Modality) -> Shard:
        """Open a training shard."""
        return read_shard(self.shards, Split.TRAIN, modality)


def _affine(matrix: NDArray[Any]) -> NDArray[np.float64]:
    return matrix.astype(np.float64)


def _test_set(
    read: ImageReader, shards: Path, source: Shard, target: Shard, grid: Grid, direction: Direction
) -> TestSet:
    partners = dict(pairs(source, target))
    comparable = partners if target.unit in (Unit.HU, Unit.GREY8) else {}
    phantom = all(v.subject.startswith(PHANTOM_PREFIX) for v in source.volumes)
    return TestSet(read, shards, source, target, grid, direction, comparable, partners, phantom)


def spread(among: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of some numbers, evenly spaced, the first and the last among them."""
    count = min(len(among), most)
    return sorted({among[int(k)] for k in np.linspace(0, len(among) - 1, count).round()}) if count else []
