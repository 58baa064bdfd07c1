"""Atlases: CT volumes of other subjects brought onto the heads of the MR volumes, slice by slice as they are drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ctmr.data.augment import BACKGROUND, to_device
from ctmr.data.domain import Domain
from ctmr.data.shards import Shard
from ctmr.errors import InputError

ATLASES = "atlases.json"
"""Beside the training shards."""
COARSE_MM = 9.0
"""Distance of the points at which outlines are compared."""
DISTANCE_MM = 30.0
"""Distances to the skin are told apart up to this one."""
STEPS, RATE = 40, 0.02
"""Of Adam, for the affine of one head to another; the rate falls linearly to 0."""
CANDIDATES = 2
"""Times as many volumes as are asked for are brought onto a head, the most alike ones by their moments."""


@dataclass(frozen=True)
class AtlasPlacement:
    """The CT volumes that go with each MR volume, and where they lie on it.

    Attributes
    ----------
    chosen
        ``[M, K]`` int64: CT volumes of each MR volume, the most alike outline first.
    affines
        ``[M, K, 3, 4]`` float32: voxels (z, y, x) of the MR volume to those of the CT volume.
    overlap
        ``[M, K]`` float32: Dice of both heads after the affine.
    """

    chosen: Tensor
    affines: Tensor
    overlap: Tensor

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        tree = {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}
        path.write_text(json.dumps(tree, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> AtlasPlacement:
        """Undo `write`."""
        tree = json.loads(path.read_text())
        chosen = torch.tensor(tree["chosen"], dtype=torch.int64)
        return cls(chosen, *(torch.tensor(tree[name], dtype=torch.float32) for name in ("affines", "overlap")))


def bring_onto(mr: Shard, ct: Shard, count: int) -> AtlasPlacement:
    """Bring CT volumes of other subjects onto the head of each MR volume, by an affine of their outlines.

    The affine is the one at which the signed distances to both skins are most alike in least squares, found by Adam
    from the heads' centres and extents.

    Parameters
    ----------
    mr, ct
        Of training.
    count
        Atlases for each MR volume; the best stand in where there are fewer.

    Raises
    ------
    InputError
        Some MR subject has no other subject's CT.
    """
    others = [_Head.of(ct, k) for k in range(len(ct.volumes))]
    found = []
    for number, volume in enumerate(mr.volumes):
        free = [k for k, v in enumerate(ct.volumes) if not v.subject or v.subject != volume.subject]
        if not free:
            raise InputError(
                f"preprocess.atlases needs a CT of another subject than {volume.subject!r}, and training has none; add "
                "subjects or set preprocess.atlases to 0"
            )
        head = _Head.of(mr, number)
        starts = [head.moments_onto(others[k]) for k in free]
        alike = [head.overlap(others[k], start) for k, start in zip(free, starts, strict=True)]
        best = sorted(range(len(free)), key=lambda i: -alike[i])[: CANDIDATES * count]
        fitted = head.fit([others[free[i]] for i in best], torch.stack([starts[i] for i in best]))
        dice = torch.tensor([head.overlap(others[free[i]], fitted[n]) for n, i in enumerate(best)])
        order = dice.argsort(descending=True, stable=True)[torch.arange(count) % len(best)]
        found.append((torch.tensor([free[best[int(n)]] for n in order]), fitted[order], dice[order]))
    return AtlasPlacement(*(torch.stack(parts) for parts in zip(*found, strict=True)))


@dataclass(frozen=True)
class Atlases:
    """CT volumes in the planes of MR slices.

    Attributes
    ----------
    mr, ct
        All slices of training.
    placement
        Which CT volumes go with which MR volume.
    fields
        For each MR volume ``[K, 3, d, h, w]`` float16: what is added to its voxels (z, y, x) before the affine, on a
        coarser grid over the same volume; empty: nothing.
    """

    mr: Domain
    ct: Domain
    placement: AtlasPlacement
    fields: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        for domain in (self.mr, self.ct):
            assert domain.levels is not None
            steps = domain.levels.diff()[domain.volume.diff() == 0]
            if not bool((steps == 1).all()):
                raise InputError("preprocess.atlases needs whole volumes; set preprocess.min_head_fraction to 0")

    @property
    def count(self) -> int:
        """Atlases of each MR volume."""
        return int(self.placement.chosen.shape[1])

    def take(self, volumes: Tensor, levels: Tensor, which: Tensor) -> Tensor:
        """Return atlases in the planes of MR slices.

        Parameters
        ----------
        volumes, levels
            ``[n]`` of the slices.
        which
            ``[n]``: the atlas of each, below `count`.

        Returns
        -------
        Tensor
            ``[n, S * C, H, W]``, and the depth map behind where the domain has one; -1 where the atlas ends.
        """
        assert self.mr.levels is not None
        return torch.stack(
            [
                self._planes(int(v), int(w), round(float(level) - float(self.mr.levels[self.mr.rows(int(v)).start])))
                for v, w, level in zip(volumes, which, levels, strict=True)
            ]
        )

    def whole(self, volume: int) -> Tensor:
        """Return the middle channels ``[K, C, D, H, W]`` of an MR volume's atlases, by the affine alone."""
        size = self.mr.rows(volume)
        points = _plane(torch.arange(float(size.stop - size.start)), self._size)
        return torch.stack(
            [_sampled(self._of(volume, which)[0], self._there(volume, which, points)) for which in range(self.count)]
        )

    @property
    def _size(self) -> tuple[int, int]:
        height, width = self.mr.images.shape[-2:]
        return int(height), int(width)

    def _of(self, volume: int, which: int) -> tuple[Tensor, Tensor | None]:
        """Return the images ``[C, D, H, W]`` and depth maps ``[1, D, H, W]`` of an atlas; views, on the device."""
        rows = self.ct.rows(int(self.placement.chosen[volume, which]))
        depth = None if self.ct.depth is None else self.ct.depth[rows].movedim(0, 1)
        return self.ct.images[rows].movedim(0, 1), depth

    def _there(self, volume: int, which: int, points: Tensor) -> Tensor:
        affine = self.placement.affines[volume, which]
        return points @ affine[:, :3].T + affine[:, 3]

    def _planes(self, volume: int, which: int, z: int) -> Tensor:
        rows = self.mr.rows(volume)
        count = rows.stop - rows.start
        reach = 0 if self.ct.stacks is None else int(self.ct.stacks.shape[1]) // 2
        heights = torch.tensor([float(min(max(z + k, 0), count - 1)) for k in range(-reach, reach + 1)])
        points = _plane(heights, self._size)
        if self.fields:
            grid = unit_points(points, (count, *self._size))
            moves = functional.grid_sample(
                self.fields[volume][which][None].float(), grid[None], padding_mode="border", align_corners=True
            )
            points = points + moves[0].movedim(0, -1)
        at = self._there(volume, which, points)
        images, depth = self._of(volume, which)
        shown = [_sampled(images, at).movedim(1, 0).flatten(0, 1)]
        if depth is not None:
            shown.append(_sampled(depth, at[reach : reach + 1])[:, 0])
        return torch.cat(shown)


@dataclass(frozen=True)
class _Head:
    """One head: points over it, and the signed distance to its skin (inside negative) at them.

    `points` are voxels (z, y, x) ``[P, 3]``, `distance` ``[d, h, w]`` in mm lies on every `stride`-th voxel.
    """

    points: Tensor
    distance: Tensor
    stride: Tensor
    mm: Tensor

    @classmethod
    def of(cls, shard: Shard, volume: int) -> _Head:
        from scipy.ndimage import distance_transform_edt

        mask, affine = shard.volume_head(volume), shard.volumes[volume].grid_affine
        mm = np.ones(3) if affine is None else np.linalg.norm(affine[:3, :3], axis=0)
        stride = np.maximum(1, np.round(COARSE_MM / mm)).astype(int)
        coarse: NDArray[np.bool_] = mask[tuple(slice(None, None, int(s)) for s in stride)]
        distance = np.zeros(coarse.shape)
        if coarse.any() and not coarse.all():
            spacing = tuple(mm * stride)
            distance = distance_transform_edt(~coarse, spacing) - distance_transform_edt(coarse, spacing)
        clipped = torch.from_numpy(np.clip(distance, -DISTANCE_MM, DISTANCE_MM)).float()
        axes = [torch.arange(n, dtype=torch.float32) * int(s) for n, s in zip(coarse.shape, stride, strict=True)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
        return cls(points, clipped, torch.from_numpy(stride).float(), torch.from_numpy(mm).float())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the centre and the standard deviation of the inside along each axis, in voxels."""
        inside = self.points[(self.distance < 0).flatten()]
        if not len(inside):
            inside = self.points
        return inside.mean(0), inside.std(0).clamp(min=1e-3)

    def moments_onto(self, other: _Head) -> Tensor:
        """Return the affine ``[3, 4]`` that gives both heads one centre and extent."""
        (centre, extent), (there, size) = self.moments(), other.moments()
        scale = size / extent
        return torch.cat([torch.diag(scale), (there - scale * centre)[:, None]], dim=1)

    def overlap(self, other: _Head, affine: Tensor) -> float:
        """Return Dice of both insides."""
        there = other.at(self.points @ affine[:, :3].T + affine[:, 3]) < 0
        here = (self.distance < 0).flatten()
        return float(2 * (here & there).sum() / (here.sum() + there.sum()).clamp(min=1))

    def at(self, points: Tensor) -> Tensor:
        """Return the distances at voxels ``[P, 3]``; beyond the volume those of its border."""
        size = torch.tensor(self.distance.shape)
        unit = 2 * points / (self.stride * (size - 1).clamp(min=1)) - 1
        grid = unit.flip(-1).view(1, 1, 1, -1, 3)
        return functional.grid_sample(
            self.distance[None, None], grid, padding_mode="border", align_corners=True
        ).flatten()

    @torch.enable_grad()
    def fit(self, others: Sequence[_Head], starts: Tensor) -> Tensor:
        """Return affines ``[k, 3, 4]`` at which the distances to both skins are most alike."""
        centre, extent = self.moments()
        # The parameters move the head's surface by about as much each.
        local = (self.points - centre) / extent
        begun = torch.stack([other.moments()[1] for other in others])
        change = torch.zeros_like(starts).requires_grad_()
        optimiser = torch.optim.Adam([change], RATE)
        mine = self.distance.flatten()

        def moved() -> list[Tensor]:
            return [
                self.points @ start[:, :3].T + start[:, 3] + (local @ c[:, :3].T + c[:, 3]) * scale
                for start, c, scale in zip(starts, change, begun, strict=True)
            ]

        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            optimiser.zero_grad()
            loss = torch.stack(
                [(other.at(p) - mine).square().mean() for other, p in zip(others, moved(), strict=True)]
            ).sum()
            torch.autograd.backward(loss)
            optimiser.step()
        added = change.detach() * begun[:, :, None]
        linear = added[:, :, :3] / extent
        offset = added[:, :, 3] - linear @ centre
        return starts + torch.cat([linear, offset[:, :, None]], dim=2)


def _plane(heights: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the voxels (z, y, x) ``[S, H, W, 3]`` of planes."""
    z, y, x = torch.meshgrid(
        heights, torch.arange(size[0], dtype=torch.float32), torch.arange(size[1], dtype=torch.float32), indexing="ij"
    )
    return torch.stack([z, y, x], dim=-1)


def unit_points(points: Tensor, shape: Sequence[int]) -> Tensor:
    """Return voxels (z, y, x) as `grid_sample` counts them: x first, -1 to 1 from the first to the last."""
    last = torch.tensor([max(n - 1, 1) for n in shape], dtype=points.dtype)
    return (2 * points / last - 1).flip(-1)


def _sampled(images: Tensor, points: Tensor) -> Tensor:
    """Return images ``[C, D, H, W]`` at voxels ``[S, H, W, 3]``, ``[C, S, H, W]``; background where there are none."""
    grid = to_device(unit_points(points, images.shape[1:]), images.device)
    shown = functional.grid_sample(images[None] - BACKGROUND, grid[None], padding_mode="zeros", align_corners=True)
    return shown[0] + BACKGROUND
