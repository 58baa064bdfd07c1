"""Shards: preprocessed slices in physical units, one array a split and modality, with geometry beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data.manifest import SUBJECT_PREFIX, Split
from ctmr.errors import InputError
from ctmr.imaging.storage_types import STORAGE_DTYPE
from ctmr.imaging.volume import Modality, Unit

SAME_PLACE_MM = 1e-3
"""Two grids are one when they differ by less."""


@dataclass(frozen=True)
class ShardVolume:
    """Place of one volume's slices in the shard, and their origin.

    Attributes
    ----------
    image, subject, uid
        Identifiers from the manifest. With several sequences, `image` is that of the first.
    first, count
        Slices ``first : first + count`` of the shard are this volume's, in order.
    paths
        Source of each channel, relative to ``raw/``.
    sequences
        MR sequence of each channel; empty strings for CT.
    affine
        4×4 RAS affine of the volume on the model's grid; ``None`` for pictures.
    level
        Position of the first slice along D relative to the volume's centre, in slices: aligns different heads.
    alignment
        4×4, RAS mm of the same subject's other image to RAS mm of this one, when it was registered to that image.
    frame
        Frame of reference that it lies in: a UID, or the image that it was registered to; empty where nothing tells,
        and where it was registered to the subject's other image.
    field_mm
        Centre of the image's own field of view, RAS mm: the grid lies about the head and need not share it.
    """

    image: str
    subject: str
    uid: str
    first: int
    count: int
    paths: tuple[str, ...]
    sequences: tuple[str, ...] = ()
    affine: tuple[tuple[float, ...], ...] | None = None
    level: float = 0.0
    alignment: tuple[tuple[float, ...], ...] | None = None
    frame: str = ""
    field_mm: tuple[float, ...] | None = None

    @property
    def grid_affine(self) -> NDArray[np.float64] | None:
        """`affine` as an array."""
        return None if self.affine is None else np.asarray(self.affine, dtype=np.float64)


@dataclass(frozen=True)
class Shard:
    """All slices of one split and modality.

    Attributes
    ----------
    slices
        ``[N, C, H, W]`` in physical units: int16 HU, uint16 MR or uint8 grey.
    head
        ``[N, H, W]`` bool, True inside the head.
    volumes
        In order of their slices.
    unit
        Unit of `slices`.
    """

    slices: NDArray[Any]
    head: NDArray[np.bool_]
    volumes: tuple[ShardVolume, ...]
    unit: Unit
    modality: Modality

    def volume(self, index: int) -> NDArray[Any]:
        """Return volume `index` as ``[C, D, H, W]``."""
        v = self.volumes[index]
        return np.moveaxis(self.slices[v.first : v.first + v.count], 1, 0)

    def volume_head(self, index: int) -> NDArray[np.bool_]:
        """Return the head mask of volume `index`, ``[D, H, W]``."""
        v = self.volumes[index]
        return self.head[v.first : v.first + v.count]


class ShardWriter:
    """Writes a shard volume by volume, so that memory does not grow with the number of images.

    ``<folder>/<split>/<modality>.npy`` holds the slices, ``.head.npy`` the bit-packed head masks, ``.json`` the rest;
    the bytes are those that numpy would write of the whole arrays. Use it as a context manager: an error inside leaves
    no shard.

    Parameters
    ----------
    folder
        Folder of all shards.
    split, modality, unit
        What every volume of the shard has in common.
    """

    def __init__(self, folder: Path, split: Split, modality: Modality, unit: Unit) -> None:
        self.modality, self.unit = modality, unit
        self.volumes: list[ShardVolume] = []
        self._target = folder / split.value
        self._target.mkdir(parents=True, exist_ok=True)
        self._slices = _GrowingArray(self._target / f"{modality}.npy", STORAGE_DTYPE[unit])
        self._heads = _GrowingArray(self._target / f"{modality}.head.npy", np.dtype(np.uint8))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._slices.discard()
            self._heads.discard()

    @property
    def count(self) -> int:
        """Slices so far."""
        return self._slices.count

    def add(self, volume: ShardVolume, slices: NDArray[Any], head: NDArray[np.uint8]) -> None:
        """Append one volume.

        Parameters
        ----------
        volume
            Its `first` is set to the slices so far.
        slices
            ``[N, C, H, W]`` in the storage type of the unit.
        head
            ``[N, H, ceil(W / 8)]``, from `pack_head`.
        """
        if slices.dtype != STORAGE_DTYPE[self.unit]:
            raise ValueError(f"unit {self.unit} is stored as {STORAGE_DTYPE[self.unit]}, not {slices.dtype}")
        self.volumes.append(replace(volume, first=self.count))
        self._slices.append(slices)
        self._heads.append(head)

    def close(self) -> None:
        """Finish the arrays and write what describes them; nothing is left of a shard without volumes."""
        if not self.volumes:
            self._slices.discard()
            self._heads.discard()
            return
        meta: dict[str, Any] = {
            "unit": self.unit.value,
            "modality": self.modality.value,
            "shape": list(self._slices.close()),
            "volumes": [_tree(v) for v in self.volumes],
            # Read by nobody; without it every shard would have another digest, and every model be trained anew.
            "extra": {},
        }
        self._heads.close()
        text = json.dumps(meta, indent=1, sort_keys=True) + "\n"
        (self._target / f"{self.modality}.json").write_text(text)


class _GrowingArray:
    """A ``.npy`` file that grows along its first axis; numpy leaves room in the header for its length."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.count = path, dtype, 0
        self._item: tuple[int, ...] = ()
        self._stream = path.open("wb")

    def append(self, array: NDArray[Any]) -> None:
        if self.count == 0:
            self._item = array.shape[1:]
            self._head()
        elif array.shape[1:] != self._item:
            raise ValueError(f"{self.path.name} holds items of shape {self._item}, not {array.shape[1:]}")
        self._stream.write(np.ascontiguousarray(array, dtype=self.dtype).data)
        self.count += len(array)

    def close(self) -> tuple[int, ...]:
        self._stream.seek(0)
        self._head()
        self._stream.close()
        return (self.count, *self._item)

    def discard(self) -> None:
        self._stream.close()
        self.path.unlink(missing_ok=True)

    def _head(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._stream, {**header, "shape": (self.count, *self._item)})


def pack_head(head: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a head mask ``[N, H, W]`` as shards hold it: eight pixels a byte along W."""
    return np.packbits(head, axis=-1)


def unpack_head(packed: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Undo `pack_head` for slices of so many columns."""
    return np.unpackbits(packed, axis=-1, count=width).astype(bool)


def write_shard(folder: Path, split: Split, shard: Shard) -> None:
    """Write a whole shard at once, as `ShardWriter` does."""
    with ShardWriter(folder, split, shard.modality, shard.unit) as writer:
        for volume in shard.volumes:
            part = slice(volume.first, volume.first + volume.count)
            writer.add(volume, shard.slices[part], pack_head(shard.head[part]))


def read_shard(folder: Path, split: Split, modality: Modality, *, heads: bool = True) -> Shard:
    """Read a shard, memory-mapped; InputError when it is not there.

    Without `heads` the masks stay on disk, where they take an eighth of their size in memory: `Shard.head` is empty,
    and `read_head` reads one slice's.
    """
    meta_path = folder / split.value / f"{modality}.json"
    if not meta_path.is_file():
        raise InputError(f"there is no {modality} shard for split {split} in {folder}; run `ctmr preprocess` first")
    meta = json.loads(meta_path.read_text())
    slices = np.load(meta_path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    head = np.zeros((0, *slices.shape[2:]), dtype=bool)
    if heads:
        packed = np.load(meta_path.with_name(f"{modality}.head.npy"), allow_pickle=False)
        head = unpack_head(packed, slices.shape[-1])
    volumes = tuple(_volume(v) for v in meta["volumes"])
    return Shard(slices, head, volumes, Unit(meta["unit"]), Modality(meta["modality"]))


def read_head(folder: Path, split: Split, shard: Shard, index: int) -> NDArray[np.bool_]:
    """Read the head mask of one slice of a shard, ``[H, W]`` bool."""
    path = folder / split.value / f"{shard.modality}.head.npy"
    row = np.load(path, mmap_mode="r", allow_pickle=False)[index]
    return unpack_head(row, shard.slices.shape[-1])


def has_shard(folder: Path, split: Split, modality: Modality) -> bool:
    """True when the split holds images of the modality."""
    return (folder / split.value / f"{modality}.json").is_file()


def pairs(a: Shard, b: Shard, *, voxel_by_voxel: bool = False) -> list[tuple[int, int]]:
    """Return index pairs of volumes of one subject that show one field of view, each once, in order of `a`.

    Images that say that they lie in different frames of reference are no pair, however alike their numbers are: only a
    registration would make them one. Pictures have no grid: they pair where a subject's own folder holds one of each,
    not where slices of one patient lie in two folders.

    With `voxel_by_voxel` only those that lie on one grid: a second sequence of a subject is placed about the head as it
    shows it, which may be a voxel away.
    """
    by_subject: dict[str, list[int]] = {}
    for j, v in enumerate(b.volumes):
        by_subject.setdefault(v.subject, []).append(j)
    own = Counter(v.subject for v in a.volumes)
    found = []
    for i, v in enumerate(a.volumes):
        others = by_subject.get(v.subject, []) if v.subject else []
        if v.affine is None and max(own[v.subject], len(others)) > 1:
            continue
        found += [(i, j) for j in others if _lie_together(v, b.volumes[j], voxel_by_voxel)][:1]
    return found


def _lie_together(a: ShardVolume, b: ShardVolume, voxel_by_voxel: bool) -> bool:
    if a.count != b.count or not _same_place(a, b, voxel_by_voxel) or not same_frame(a.frame, b.frame):
        return False
    return a.affine is not None or _has_a_folder(a, b)


def same_frame(one: str, other: str) -> bool:
    """True unless two images say that they lie in different frames of reference."""
    return not one or not other or one == other


def _has_a_folder(*volumes: ShardVolume) -> bool:
    return all(p.startswith(SUBJECT_PREFIX) for v in volumes for p in PurePosixPath(v.paths[0]).parts[-2:-1])


def _same_place(a: ShardVolume, b: ShardVolume, voxel_by_voxel: bool) -> bool:
    here, there = a.grid_affine, b.grid_affine
    if here is None or there is None:
        return here is there
    if voxel_by_voxel or a.field_mm is None or b.field_mm is None:
        return bool(np.allclose(here, there, atol=SAME_PLACE_MM))
    alike = np.allclose(here[:3, :3], there[:3, :3], atol=SAME_PLACE_MM)
    return bool(alike and np.allclose(a.field_mm, b.field_mm, atol=SAME_PLACE_MM))


def _tree(volume: ShardVolume) -> dict[str, Any]:
    """Return the fields as they are written; pictures have no field of view, and no key that says so."""
    tree = asdict(volume)
    if volume.field_mm is None:
        del tree["field_mm"]
    return tree


def _volume(tree: dict[str, Any]) -> ShardVolume:
    paths: Sequence[str] = tree.pop("paths")
    sequences: Sequence[str] = tree.pop("sequences")
    affine, alignment = _matrix(tree.pop("affine")), _matrix(tree.pop("alignment"))
    field = tree.pop("field_mm", None)
    return ShardVolume(
        **tree,
        paths=tuple(paths),
        sequences=tuple(sequences),
        affine=affine,
        alignment=alignment,
        field_mm=None if field is None else tuple(field),
    )


def _matrix(rows: Sequence[Sequence[float]] | None) -> tuple[tuple[float, ...], ...] | None:
    return None if rows is None else tuple(tuple(float(x) for x in row) for row in rows)
