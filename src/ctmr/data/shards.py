"""Shards: preprocessed slices in physical units, one array a split and modality, with geometry beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.manifest import Split
from ctmr.normaliser import STORAGE_DTYPE
from ctmr.volume import Modality, Unit


@dataclass(frozen=True)
class ShardVolume:
    """Where one volume's slices lie in the shard, and where they came from.

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
    extra: dict[str, Any] = field(default_factory=dict)

    def volume(self, index: int) -> NDArray[Any]:
        """Return volume `index` as ``[C, D, H, W]``."""
        v = self.volumes[index]
        return np.moveaxis(self.slices[v.first : v.first + v.count], 1, 0)

    def volume_head(self, index: int) -> NDArray[np.bool_]:
        """Return the head mask of volume `index`, ``[D, H, W]``."""
        v = self.volumes[index]
        return self.head[v.first : v.first + v.count]


def write_shard(folder: Path, split: Split, shard: Shard) -> None:
    """Write ``<folder>/<split>/<modality>.npy``, ``.head.npy`` (bit-packed) and ``.json``."""
    if shard.slices.dtype != STORAGE_DTYPE[shard.unit]:
        raise ValueError(f"unit {shard.unit} is stored as {STORAGE_DTYPE[shard.unit]}, not {shard.slices.dtype}")
    target = folder / split.value
    target.mkdir(parents=True, exist_ok=True)
    np.save(target / f"{shard.modality}.npy", shard.slices, allow_pickle=False)
    np.save(target / f"{shard.modality}.head.npy", np.packbits(shard.head, axis=-1), allow_pickle=False)
    meta = {
        "unit": shard.unit.value,
        "modality": shard.modality.value,
        "shape": list(shard.slices.shape),
        "volumes": [asdict(v) for v in shard.volumes],
        "extra": shard.extra,
    }
    (target / f"{shard.modality}.json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")


def read_shard(folder: Path, split: Split, modality: Modality) -> Shard:
    """Read a shard, memory-mapped; InputError when it is not there."""
    meta_path = folder / split.value / f"{modality}.json"
    if not meta_path.is_file():
        raise InputError(f"there is no {modality} shard for split {split} in {folder}; run `ctmr preprocess` first")
    meta = json.loads(meta_path.read_text())
    slices = np.load(meta_path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    packed = np.load(meta_path.with_name(f"{modality}.head.npy"), allow_pickle=False)
    head = np.unpackbits(packed, axis=-1, count=slices.shape[-1]).astype(bool)
    volumes = tuple(_volume(v) for v in meta["volumes"])
    return Shard(slices, head, volumes, Unit(meta["unit"]), Modality(meta["modality"]), meta["extra"])


def has_shard(folder: Path, split: Split, modality: Modality) -> bool:
    """True when the split holds images of the modality."""
    return (folder / split.value / f"{modality}.json").is_file()


def pairs(a: Shard, b: Shard) -> list[tuple[int, int]]:
    """Return index pairs of volumes that belong to one subject and lie on one grid, each once, in order of `a`."""
    by_subject: dict[str, int] = {}
    for j, v in enumerate(b.volumes):
        by_subject.setdefault(v.subject, j)
    found = []
    for i, v in enumerate(a.volumes):
        j = by_subject.get(v.subject, -1)
        if j >= 0 and v.subject and v.count == b.volumes[j].count and _same_affine(v, b.volumes[j]):
            found.append((i, j))
    return found


def _same_affine(a: ShardVolume, b: ShardVolume) -> bool:
    if a.affine is None or b.affine is None:
        return a.affine is b.affine
    return bool(np.allclose(np.asarray(a.affine), np.asarray(b.affine), atol=1e-3))


def _volume(tree: dict[str, Any]) -> ShardVolume:
    affine = tree.pop("affine")
    paths: Sequence[str] = tree.pop("paths")
    sequences: Sequence[str] = tree.pop("sequences")
    return ShardVolume(
        **tree,
        paths=tuple(paths),
        sequences=tuple(sequences),
        affine=None if affine is None else tuple(tuple(float(x) for x in row) for row in affine),
    )
