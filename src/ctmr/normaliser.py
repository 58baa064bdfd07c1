"""Normaliser: physical values to [-1, 1] and back; the one implementation of training, evaluation and serving."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ctmr.errors import InputError
from ctmr.recipe import Normalise, Percentile, Window
from ctmr.volume import Unit

STORAGE_DTYPE: dict[Unit, np.dtype[Any]] = {
    Unit.HU: np.dtype(np.int16),
    Unit.ARBITRARY: np.dtype(np.uint16),
    Unit.GREY8: np.dtype(np.uint8),
}
"""What shards and served volumes hold, by unit."""

_BINS = 65536
_RESCALED_MAXIMUM = 60000.0


def to_storage(array: NDArray[Any], unit: Unit) -> NDArray[Any]:
    """Round and clip physical values to the integer type that shards and served volumes hold.

    Parameters
    ----------
    array
        ``[D, H, W]`` of one whole volume.
    unit
        HU → int16, grey8 → uint8, arbitrary → uint16. Arbitrary values that are negative, above 65535 or of a
        range below 256 are first mapped linearly (minimum 0, maximum 60000), because an MR scale means nothing.

    Raises
    ------
    InputError
        When a value is not finite.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"the volume holds {int((~np.isfinite(array)).sum())} values that are not finite; all must be numbers"
        )
    dtype = STORAGE_DTYPE[unit]
    if array.dtype == dtype:
        return array
    if unit is Unit.ARBITRARY:
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > _BINS - 1 or (high < 256 and array.dtype.kind == "f"):
            offset = min(low, 0.0)
            scale = _RESCALED_MAXIMUM / (high - offset) if high > offset else 1.0
            array = (array.astype(np.float64) - offset) * scale
    info = np.iinfo(dtype)
    if array.dtype.kind == "f":
        array = np.rint(array)
    clipped: NDArray[Any] = np.clip(array, info.min, info.max).astype(dtype)
    return clipped


class Normaliser(nn.Module):
    """Maps one unit to [-1, 1] and back.

    Parameters
    ----------
    config
        A fixed window (optionally piecewise linear, optionally quantised) or a percentile of each volume.
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
            ``[C, D, H, W]`` float, physical units as stored (`to_storage`), one channel a sequence.

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
