"""Augmentation on the device: left-right flip and shift, the same for an image and the maps that belong to it."""

from __future__ import annotations

import torch
from torch import Tensor

BACKGROUND = -1.0
"""Normalised value of air, of no signal and of depth 0."""


def augment(images: Tensor, *, flip: bool, shift: int, rng: torch.Generator) -> Tensor:
    """Flip each image along W with probability one half, and move it by up to `shift` pixels along H and W.

    Parameters
    ----------
    images
        ``[N, C, H, W]`` in [-1, 1]; a depth map is moved with its image when it is one of the channels.
    flip
        Whether to flip. W is left-right on axial and coronal grids.
    shift
        Largest move in pixels; what comes in at the border is background (-1), never the opposite border.
    rng
        CPU source of randomness. As many numbers are drawn for equal arguments, whatever the images.

    Returns
    -------
    Tensor
        Same shape, dtype and device.
    """
    count, channels, height, width = images.shape
    if not flip and not shift:
        return images
    rows = torch.arange(height).expand(count, height)
    columns = torch.arange(width).expand(count, width)
    if shift:
        moves = torch.randint(-shift, shift + 1, (2, count, 1), generator=rng)
        rows, columns = rows - moves[0], columns - moves[1]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    if flip:
        flipped = torch.rand((count, 1), generator=rng) < 0.5
        columns = torch.where(flipped, width - 1 - columns, columns)
    device = images.device
    item = torch.arange(count, device=device).view(count, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, channels, 1, 1)
    moved = images[item, channel, rows.to(device)[:, None, :, None], columns.to(device)[:, None, None, :]]
    return moved.masked_fill_(~inside.to(device)[:, None], BACKGROUND) if shift else moved
