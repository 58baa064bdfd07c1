"""Exponential moving average of the generators' weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update(ema_networks: nn.Module, networks: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights after a step (from 0).

    The decay in effect rises from 1/10, ``min(decay, (step + 1) / (step + 10))``, so that early weights are forgotten.
    """
    now = min(decay, (step + 1) / (step + 10))
    for mean, weight in zip(ema_networks.parameters(), networks.parameters(), strict=True):
        mean.lerp_(weight, 1.0 - now)
    # Statistics of batch norm are averages already.
    for kept, statistic in zip(ema_networks.buffers(), networks.buffers(), strict=True):
        kept.copy_(statistic)
