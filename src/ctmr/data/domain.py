"""Domains: the slices of one modality that are trained on, normalised once and held on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctmr.data.shards import Shard, pack_head
from ctmr.errors import InputError
from ctmr.imaging.volume import Unit
from ctmr.networks.normaliser import Normaliser, normaliser_for
from ctmr.networks.stacks import gather_stacks, stack_rows
from ctmr.recipe.recipe import Normalise

DEPTH_MIDDLE_PX = 6.0
"""Depth under the skin that becomes 0; the skin is -1, twice this depth and deeper is 1."""


@dataclass(frozen=True)
class Domain:
    """All usable slices of one modality.

    Attributes
    ----------
    images
        ``[N, C, H, W]`` float32 in [-1, 1], on the device.
    depth
        ``[N, 1, H, W]`` float32 in [-1, 1], on the device, or ``None``.
    levels
        ``[N]`` float32 on the CPU: slices from the volume's centre; ``None`` for pictures.
    volume
        ``[N]`` int64 on the CPU: index into `subjects`.
    subjects, uids
        Of each volume.
    affines
        ``[V, 4, 4]`` float64 on the CPU: where each volume lies, RAS mm; ``None`` for pictures, or unknown.
    outlines
        ``[N, P]`` float32 on the CPU: head mask at a quarter of the resolution, divided by its norm; ``None``: unknown.
    absolute
        Whether values mean something by themselves (HU), so that intensity is not augmented.
    around
        ``[M, C, H, W]`` like `images`, which is a view of its beginning: also the slices that are not trained on but
        lie beside one that is. ``None`` without neighbours.
    stacks
        ``[N, S]`` int64 on the CPU: the rows of `around` that make each slice's stack. ``None`` without neighbours.
    head
        ``[N, H, ceil(W / 8)]`` uint8 on the CPU: head masks, eight pixels a byte; ``None``: unknown.
    frames
        `ShardVolume.frame` of each volume; empty: unknown.
    """

    images: Tensor
    depth: Tensor | None
    levels: Tensor | None
    volume: Tensor
    subjects: tuple[str, ...]
    uids: tuple[str, ...]
    outlines: Tensor | None = None
    absolute: bool = False
    around: Tensor | None = None
    stacks: Tensor | None = None
    head: Tensor | None = None
    frames: tuple[str, ...] = ()
    affines: Tensor | None = None

    @property
    def channels(self) -> int:
        """Channels that the networks take: of all slices of a stack together."""
        return int(self.images.shape[1]) * (1 if self.stacks is None else int(self.stacks.shape[1]))

    def rows(self, volume: int) -> slice:
        """Return where a volume's slices are; they lie side by side, in order."""
        found = (self.volume == volume).nonzero()[:, 0]
        return slice(int(found[0]), int(found[-1]) + 1)

    def take(self, index: Tensor) -> Tensor:
        """Return the slices `index` ``[n]`` as the networks take them, ``[n, S * C, H, W]``."""
        if self.around is None or self.stacks is None:
            return self.images[index.to(self.images.device)]
        return gather_stacks(self.around, self.stacks[index])

    def subset(self, count: int, seed: int) -> Domain:
        """Return `count` slices (all, where there are no more), drawn by seed alone, in their order."""
        rng = torch.Generator().manual_seed(seed)
        kept = torch.randperm(len(self.images), generator=rng)[:count].sort().values
        place = kept.to(self.images.device)
        return replace(
            self,
            images=self.images[place],
            depth=None if self.depth is None else self.depth[place],
            levels=None if self.levels is None else self.levels[kept],
            volume=self.volume[kept],
            outlines=None if self.outlines is None else self.outlines[kept],
            stacks=None if self.stacks is None else self.stacks[kept],
            head=None if self.head is None else self.head[kept],
        )


def depth_channel(head: NDArray[np.bool_]) -> Tensor:
    """Return the depth under the skin as a discriminator's channel.

    Parameters
    ----------
    head
        ``[N, H, W]`` bool.

    Returns
    -------
    Tensor
        ``[N, 1, H, W]`` float32: ``clip(depth / 6 px - 1, -1, 1)``, so the skin is -1 and 12 px or more is 1.
    """
    from ctmr.imaging.mask import head_depth

    pixels = torch.from_numpy(np.ascontiguousarray(head_depth(head), dtype=np.float32))
    return (pixels / DEPTH_MIDDLE_PX - 1.0).clamp_(-1.0, 1.0)[:, None]


def target_ranges(shard: Shard, normalise: Normalise) -> tuple[float, float]:
    """Return the median range (low, high) over a shard's volumes: `Translator`'s `target_range`.

    Raises
    ------
    InputError
        When the shard has several channels of different ranges: a translator writes one channel.
    """
    normaliser = normaliser_for(shard.unit, normalise)
    ranges = torch.stack([normaliser.measure(as_tensor(shard.volume(i))) for i in range(len(shard.volumes))])
    if not bool((ranges == ranges[:, :1]).all()):
        raise InputError(
            f"the {shard.modality} shard has {ranges.shape[1]} channels of different ranges and a translator writes "
            "one; choose one sequence in data.sequences, or a window in normalise.arbitrary"
        )
    low, high = np.median(ranges[:, 0].numpy(), axis=0)
    return float(low), float(high)


def domain_of(
    shard: Shard, normalise: Normalise, min_head_fraction: float, *, depth: bool, neighbours: int, device: torch.device
) -> Domain:
    """Normalise each volume of a shard once; see `ctmr.data.sampling.TrainingData.from_shards`."""
    require_volumes(shard, neighbours)
    normaliser = normaliser_for(shard.unit, normalise)
    usable = torch.from_numpy(shard.head.mean(axis=(1, 2)) >= min_head_fraction)
    if not bool(usable.any()):
        raise InputError(
            f"no {shard.modality} slice has at least preprocess.min_head_fraction = {min_head_fraction:g} of head; "
            "lower it or check the head masks in the preview of `ctmr preprocess`"
        )
    count = int(usable.sum())
    rows, stacks = _rows_of_stacks(shard, usable, neighbours)
    around = torch.empty((int(rows.max()) + 1, *shard.slices.shape[1:]), dtype=torch.float32)
    for index, volume in enumerate(shard.volumes):
        own = rows[volume.first : volume.first + volume.count]
        around[own[own >= 0]] = normalised(normaliser, as_tensor(shard.volume(index)))[own >= 0]
    around = around.to(device)
    levels = torch.cat([v.level + torch.arange(v.count, dtype=torch.float32) for v in shard.volumes])
    owner = torch.cat([torch.full((v.count,), i, dtype=torch.int64) for i, v in enumerate(shard.volumes)])
    return Domain(
        images=around[:count],
        depth=depth_channel(shard.head[usable.numpy()]).to(device) if depth else None,
        levels=None if any(v.affine is None for v in shard.volumes) else levels[usable],
        volume=owner[usable],
        outlines=_outlines(shard.head[usable.numpy()]),
        head=torch.from_numpy(pack_head(shard.head[usable.numpy()])),
        absolute=shard.unit is Unit.HU,
        subjects=tuple(v.subject for v in shard.volumes),
        uids=tuple(v.uid or v.image for v in shard.volumes),
        frames=tuple(v.frame for v in shard.volumes),
        affines=_affines(shard),
        around=around if neighbours else None,
        stacks=stacks if neighbours else None,
    )


def _affines(shard: Shard) -> Tensor | None:
    found = [v.grid_affine for v in shard.volumes]
    known = [a for a in found if a is not None]
    return torch.from_numpy(np.stack(known)) if len(known) == len(found) else None


def require_volumes(shard: Shard, neighbours: int) -> None:
    """Raise InputError where neighbours of pictures are asked for."""
    if neighbours and any(v.affine is None for v in shard.volumes):
        raise InputError(
            f"the {shard.modality} images are pictures, which have no neighbouring slices, and network.neighbours is "
            f"{neighbours}; set it to 0"
        )


def _rows_of_stacks(shard: Shard, usable: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Say which slices of a shard are held, and where.

    Returns
    -------
    rows
        ``[slices of the shard]`` int64: where each is held, those that are trained on first; -1 where it is not.
    stacks
        ``[N, S]`` int64: where the slices of each usable slice's stack are held.
    """
    inside = torch.cat([v.first + stack_rows(v.count, neighbours) for v in shard.volumes])[usable]
    beside = torch.zeros_like(usable)
    beside[inside.flatten()] = True
    beside &= ~usable
    rows = torch.full((len(usable),), -1, dtype=torch.int64)
    count = int(usable.sum())
    rows[usable] = torch.arange(count)
    rows[beside] = torch.arange(count, count + int(beside.sum()))
    return rows, rows[inside]


def _outlines(head: NDArray[np.bool_]) -> Tensor:
    coarse = torch.nn.functional.avg_pool2d(torch.from_numpy(head).float()[:, None], 4, ceil_mode=True)
    return torch.nn.functional.normalize(coarse.flatten(1), dim=1)


@torch.no_grad()
def normalised(normaliser: Normaliser, volume: Tensor) -> Tensor:
    """Return the slices ``[D, C, H, W]`` in [-1, 1] of a volume ``[C, D, H, W]`` in physical units."""
    out: Tensor = normaliser(volume.movedim(1, 0), normaliser.measure(volume)[None])
    return out


def as_tensor(volume: NDArray[np.generic]) -> Tensor:
    """Return stored values as float32."""
    return torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
