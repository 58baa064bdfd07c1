"""Exponential moving average of the generators' weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def move(average: nn.Module, networks: nn.Module, ema: float, step: int) -> None:
    """Move the average towards the weights after a step (from 0).

    The decay rises from 1/10 to `ema`, ``min(ema, (step + 1) / (step + 10))``, so that early weights are forgotten.
    """
    decay = min(ema, (step + 1) / (step + 10))
    for mean, weight in zip(average.parameters(), networks.parameters(), strict=True):
        mean.lerp_(weight, 1.0 - decay)
    # Statistics of batch norm are averages already.
    for kept, statistic in zip(average.buffers(), networks.buffers(), strict=True):
        kept.copy_(statistic)
