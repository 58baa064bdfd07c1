"""Examples: a few slices of a split that show, all through a training, what the networks make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctmr.data.domain import as_tensor, require_volumes
from ctmr.data.sampling import Batch
from ctmr.data.shards import Shard, ShardVolume, pairs
from ctmr.networks.normaliser import normaliser_for
from ctmr.networks.stacks import gather_stacks, stack_rows, stack_size
from ctmr.recipe.recipe import Normalise


@dataclass(frozen=True)
class Examples:
    """Slices of both modalities, one of each a row.

    Attributes
    ----------
    batch
        Both modalities, without depth maps.
    paired
        Whether the MR and the CT of a row are one subject's, at one place.
    mr_names, ct_names
        Subject and slice of each row.
    """

    batch: Batch
    paired: bool
    mr_names: tuple[str, ...]
    ct_names: tuple[str, ...]


def choose_examples(
    ct: Shard, mr: Shard, normalise: Normalise, *, neighbours: int, count: int, device: torch.device | str = "cpu"
) -> Examples:
    """Choose slices, always the same of equal shards.

    Pairs where there are any; otherwise the images of each modality by themselves. Rows go through the images in their
    order, and upwards through the slices that show at least half as much head as their image's fullest one.

    Parameters
    ----------
    ct, mr
        Shards of one split.
    normalise
        How units become [-1, 1].
    neighbours
        As of `ctmr.data.sampling.TrainingData.from_shards`.
    count
        Rows.
    device
        Where the slices are held.
    """
    for shard in (mr, ct):
        require_volumes(shard, neighbours)
    found = pairs(mr, ct, voxel_by_voxel=True)
    places = []
    for row in range(count):
        share = (row + 0.5) / count
        if found:
            i, j = found[int(share * len(found))]
            level = _level(mr, i, share)
            places.append((i, level, j, level))
        else:
            i, j = (int(share * len(shard.volumes)) for shard in (mr, ct))
            places.append((i, _level(mr, i, share), j, _level(ct, j, share)))
    mr_places, ct_places = [p[:2] for p in places], [p[2:] for p in places]
    batch = Batch(
        _stacks(mr, mr_places, normalise, neighbours).to(device),
        _stacks(ct, ct_places, normalise, neighbours).to(device),
    )
    return Examples(batch, bool(found), _names(mr, mr_places), _names(ct, ct_places))


def _level(shard: Shard, index: int, share: float) -> int:
    area = shard.volume_head(index).sum(axis=(1, 2))
    full = np.flatnonzero((area > 0) & (area >= area.max() / 2))
    return int(full[int(share * len(full))]) if len(full) else len(area) // 2


def _stacks(shard: Shard, places: Sequence[tuple[int, int]], normalise: Normalise, neighbours: int) -> Tensor:
    normaliser = normaliser_for(shard.unit, normalise)
    out = []
    with torch.no_grad():
        for index, level in places:
            volume = as_tensor(shard.volume(index))
            rows = stack_rows(volume.shape[1], neighbours)[[level]]
            limits = normaliser.measure(volume)[None].repeat(1, stack_size(neighbours), 1)
            out.append(normaliser(gather_stacks(volume.movedim(1, 0), rows), limits))
    return torch.cat(out)


def _names(shard: Shard, places: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    return tuple(_name(shard.volumes[index], level) for index, level in places)


def _name(volume: ShardVolume, level: int) -> str:
    who = volume.subject or volume.image
    return who if volume.affine is None else f"{who}\nslice {level + 1} of {volume.count}"
