"""Normaliser: physical values to [-1, 1] and back; the one implementation of training, evaluation and serving."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctmr.imaging.volume import Unit
from ctmr.recipe.recipe import Normalise, Percentile, Window

_BINS = 65536


class Normaliser(nn.Module):
    """Maps one unit to [-1, 1] and back.

    Parameters
    ----------
    config
        A fixed window (optionally piecewise linear, optionally quantised) or a percentile of each volume.

    Examples
    --------
    >>> normaliser = Normaliser(Window(low=-1000, high=1000))
    >>> volume = torch.tensor([-1000.0, 0.0, 500.0, 3000.0]).reshape(1, 1, 1, 4)
    >>> limits = normaliser.measure(volume)
    >>> limits.tolist()
    [[-1000.0, 1000.0]]
    >>> normal = normaliser(volume, limits[None])
    >>> normal.flatten().tolist()
    [-1.0, 0.0, 0.5, 1.0]
    >>> normaliser.inverse(normal, limits[None]).flatten().tolist()
    [-1000.0, 0.0, 500.0, 1000.0]
    """

    knots_t: Tensor
    knots_y: Tensor

    def __init__(self, config: Window | Percentile) -> None:
        super().__init__()
        self.config = config
        knots = list(config.knots) if isinstance(config, Window) and config.knots else [(0.0, -1.0), (1.0, 1.0)]
        if isinstance(config, Window) and config.knots:
            knots = [((x - config.low) / (config.high - config.low), y) for x, y in knots]
        self.register_buffer("knots_t", torch.tensor([k[0] for k in knots], dtype=torch.float32), persistent=False)
        self.register_buffer("knots_y", torch.tensor([k[1] for k in knots], dtype=torch.float32), persistent=False)

    def measure(self, volume: Tensor) -> Tensor:
        """Return the range of a whole volume.

        Parameters
        ----------
        volume
            ``[C, D, H, W]`` float, physical units as stored (`ctmr.imaging.storage_types.to_storage`), one channel
            a sequence.

        Returns
        -------
        Tensor
            ``[C, 2]`` float32, (low, high) a channel. Percentiles equal numpy's linear interpolation.
        """
        channels = volume.shape[0]
        if isinstance(self.config, Window):
            fixed = torch.tensor([self.config.low, self.config.high], dtype=torch.float32, device=volume.device)
            return fixed.expand(channels, 2) + 0.0 * volume.reshape(channels, -1)[:, :1].float()
        index = volume.reshape(channels, -1).round().clamp(0, _BINS - 1).long()
        counts = torch.zeros(channels, _BINS, dtype=torch.int64, device=volume.device)
        counts = counts.scatter_add(1, index, torch.ones_like(index))
        bins = torch.arange(_BINS, dtype=torch.int64, device=volume.device)
        total = counts.sum(1, keepdim=True)
        # An integer bin b lies above the mean when b * n > sum: exact, whatever the order of summation.
        foreground = counts * (bins * total > (counts * bins).sum(1, keepdim=True)).long()
        cumulative = foreground.cumsum(1)
        last = (cumulative[:, -1:] - 1).clamp(min=0)
        rank = last.double() * (self.config.percentile / 100.0)
        below = rank.floor().long()
        above = torch.minimum(below + 1, last)
        value_below = (cumulative <= below).long().sum(1, keepdim=True).double()
        value_above = (cumulative <= above).long().sum(1, keepdim=True).double()
        value = value_below + (rank - below.double()) * (value_above - value_below)
        empty = cumulative[:, -1:] == 0
        high = torch.where(empty, torch.ones_like(value), value).clamp(min=1.0) * self.config.headroom
        return torch.cat([torch.zeros_like(high), high], dim=1).float()

    def forward(self, x: Tensor, limits: Tensor) -> Tensor:
        """Physical values to [-1, 1].

        Parameters
        ----------
        x
            ``[N, C, H, W]`` physical units.
        limits
            ``[N, C, 2]`` (low, high), from `measure`.
        """
        low, high = limits[..., 0, None, None], limits[..., 1, None, None]
        t = ((x - low) / (high - low)).clamp(0.0, 1.0)
        if self.config.levels is not None:
            t = (t * (self.config.levels - 1)).round() / (self.config.levels - 1)
        return _piecewise(t, self.knots_t, self.knots_y)

    def inverse(self, y: Tensor, limits: Tensor) -> Tensor:
        """[-1, 1] to physical values: the inverse of `forward` up to clipping and quantisation."""
        low, high = limits[..., 0, None, None], limits[..., 1, None, None]
        return low + _piecewise(y.clamp(-1.0, 1.0), self.knots_y, self.knots_t) * (high - low)


def _piecewise(x: Tensor, knots_x: Tensor, knots_y: Tensor) -> Tensor:
    """Piecewise-linear interpolation as a sum of ramps; few knots, so this is exact and exports to plain operators."""
    slopes = (knots_y[1:] - knots_y[:-1]) / (knots_x[1:] - knots_x[:-1])
    out = knots_y[0] + slopes[0] * (x - knots_x[0])
    for k in range(1, slopes.shape[0]):
        out = out + (slopes[k] - slopes[k - 1]) * (x - knots_x[k]).clamp(min=0.0)
    return out


def normaliser_for(unit: Unit, config: Normalise) -> Normaliser:
    """Return the normaliser a recipe gives to a unit."""
    return Normaliser({Unit.HU: config.hu, Unit.ARBITRARY: config.arbitrary, Unit.GREY8: config.grey8}[unit])
