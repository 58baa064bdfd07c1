"""Stacks: a slice between its neighbours as channels, so that a network of two dimensions sees the third."""

from __future__ import annotations

import torch
from torch import Tensor


def stack_size(neighbours: int) -> int:
    """Return the slices of a stack: the middle one and `neighbours` on either side."""
    return 2 * neighbours + 1


def stack_rows(count: int, neighbours: int) -> Tensor:
    """Return which slices of a volume make each of its stacks.

    Parameters
    ----------
    count
        Slices of the volume.
    neighbours
        On either side; beyond the ends the last slice stands in.

    Returns
    -------
    Tensor
        ``[count, 2 * neighbours + 1]`` int64; the middle column is the slice itself.
    """
    offsets = torch.arange(-neighbours, neighbours + 1)
    return (torch.arange(count)[:, None] + offsets).clamp(0, max(count - 1, 0))


def gather_stacks(slices: Tensor, rows: Tensor) -> Tensor:
    """Return stacks as the networks take them.

    Parameters
    ----------
    slices
        ``[D, C, H, W]``.
    rows
        ``[N, S]`` int64 on any device, from `stack_rows`.

    Returns
    -------
    Tensor
        ``[N, S * C, H, W]``: all channels of the first slice, then all of the next.
    """
    return slices[rows.to(slices.device)].flatten(1, 2)


def middle(stacks: Tensor, neighbours: int) -> Tensor:
    """Return the channels ``[N, C, H, W]`` of the middle slice of stacks ``[N, S * C, H, W]``."""
    channels = stacks.shape[1] // stack_size(neighbours)
    return stacks[:, neighbours * channels : (neighbours + 1) * channels]
