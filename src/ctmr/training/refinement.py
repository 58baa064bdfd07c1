"""Refinement of atlases: brought onto what the generator makes of each MR volume so far, an image of their own kind."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctmr.data.atlases import Atlases
from ctmr.training.demons import demons

SIDE = 64
"""Most voxels along an axis of the grid that demons work on."""
STORED = 2
"""Times coarser than that grid are the fields that are kept: demons are smooth."""
_CHUNK = 16


@torch.no_grad()
def refine(atlases: Atlases, generator: nn.Module) -> Atlases:
    """Return atlases that also follow the translations of their MR volumes.

    Registration across modalities is hard; between a translated MR and a real CT it is not, even while the translation
    is blurred. So pairs get better as the generator does. The affine stays; the fields are found anew.

    Parameters
    ----------
    generator
        From MR to CT, both in [-1, 1].
    """
    fields = []
    for volume in range(len(atlases.placement.chosen)):
        moving = atlases.whole(volume)[:, :1]
        factors = [math.ceil(n / SIDE) for n in moving.shape[2:]]
        fixed = _translated(atlases, generator, volume)[None, None]
        moves = demons(functional.avg_pool3d(fixed, factors), functional.avg_pool3d(moving, factors))
        moves *= torch.tensor(factors, device=moves.device).view(1, 3, 1, 1, 1)
        fields.append(functional.avg_pool3d(moves, [min(STORED, n) for n in moves.shape[2:]]).to("cpu", torch.float16))
    return dataclasses.replace(atlases, fields=fields)


def _translated(atlases: Atlases, generator: nn.Module, volume: int) -> Tensor:
    """Return the translation ``[D, H, W]`` of an MR volume."""
    rows = atlases.mr.rows(volume)
    planes = [
        generator(atlases.mr.take(torch.arange(first, min(first + _CHUNK, rows.stop)))).float()
        for first in range(rows.start, rows.stop, _CHUNK)
    ]
    made = torch.cat(planes)
    slices = 1 if atlases.ct.stacks is None else int(atlases.ct.stacks.shape[1])
    return made.view(len(made), slices, -1, *made.shape[2:])[:, slices // 2, 0]
