"""Demons: a smooth displacement that brings one volume onto another of the same modality."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ITERATIONS = 30
SIGMA = 1.5
"""Standard deviation of the displacement's smoothing after each iteration, in voxels."""
LONGEST = 0.5
"""Of an update, in voxels."""


def demons(fixed: Tensor, moving: Tensor, *, iterations: int = ITERATIONS) -> Tensor:
    """Return displacements after which moving volumes look like a fixed one, in least squares.

    Fast symmetric forces: the gradients of the fixed and of the moved volume together point the way (Thirion 1998,
    Medical Image Analysis 2(3); Vercauteren et al. 2009, NeuroImage 45). The displacement, not its update, is smoothed.

    Parameters
    ----------
    fixed
        ``[1, 1, D, H, W]`` float32.
    moving
        ``[K, 1, D, H, W]``.

    Returns
    -------
    Tensor
        ``[K, 3, D, H, W]`` in voxels (z, y, x): ``moving(v + displacement(v))`` looks like ``fixed(v)``.
    """
    kernel = _gaussian(SIGMA).to(fixed.device)
    base = _voxels(fixed.shape[2:]).to(fixed.device)
    displacement = torch.zeros((len(moving), 3, *fixed.shape[2:]), device=fixed.device)
    mine = _gradient(fixed)
    for _ in range(iterations):
        moved = _moved(moving, base, displacement)
        difference = fixed - moved
        both = (mine + _gradient(moved)) / 2
        strength = both.square().sum(1, keepdim=True) + difference.square()
        update = difference * both / strength.clamp(min=1e-9)
        length = update.square().sum(1, keepdim=True).sqrt()
        displacement += update * (LONGEST / length.clamp(min=LONGEST))
        displacement = _smoothed(displacement, kernel)
    return displacement


def _voxels(shape: torch.Size) -> Tensor:
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _moved(moving: Tensor, base: Tensor, displacement: Tensor) -> Tensor:
    last = torch.tensor([max(n - 1, 1) for n in moving.shape[2:]], device=moving.device).view(1, 3, 1, 1, 1)
    grid = (2 * (base + displacement) / last - 1).flip(1).movedim(1, -1)
    return functional.grid_sample(moving, grid, padding_mode="border", align_corners=True)


def _gradient(volume: Tensor) -> Tensor:
    """``[K, 1, D, H, W]`` → ``[K, 3, D, H, W]``, central differences."""
    return torch.stack(torch.gradient(volume[:, 0], dim=(1, 2, 3)), dim=1)


def _gaussian(sigma: float) -> Tensor:
    reach = round(2 * sigma)
    values = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    return values / values.sum()


def _smoothed(fields: Tensor, kernel: Tensor) -> Tensor:
    flat, reach = fields.flatten(0, 1)[:, None], len(kernel) // 2
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        padding = [0, 0, 0]
        padding[axis] = reach
        flat = functional.conv3d(flat, kernel.view(shape), padding=padding)
    return flat.view(fields.shape)
