"""Layers of tissue painted over one another, and the volumes that can be read from them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .geometry import Space, Volume
from .tissue import Tissue

# A share this small changes no voxel by more than 10 HU, even bone over air, and CT noise hides it.
_NEGLIGIBLE_SHARE = 0.004


@dataclass(frozen=True)
class Layer:
    """One tissue laid over what was there: flat voxel indices, share covered, relative texture."""

    tissue: Tissue
    index: NDArray[np.int32]
    share: Volume
    texture: Volume | None


class Canvas:
    """Collects layers, so that one anatomy can be rendered in any contrast.

    Parameters
    ----------
    shape
        Voxels along D, H and W.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.labels = np.zeros(shape, np.uint8)
        self._layers: list[Layer] = []
        self._index = np.arange(self.labels.size, dtype=np.int32).reshape(shape)
        self._majority = np.ones(self.labels.size, np.float32)

    def duplicate(self) -> Canvas:
        """Return a canvas with the same layers, on which painting leaves this one alone."""
        other = copy(self)
        other.labels = self.labels.copy()
        other._layers = list(self._layers)
        other._majority = self._majority.copy()
        return other

    def paint(self, space: Space, tissue: Tissue, share: Volume, texture: Volume | None = None) -> None:
        """Cover `share` of each voxel of `space` with a tissue, whose values vary by ``1 + texture``."""
        touched = share > _NEGLIGIBLE_SHARE
        index = self._index[space.window][touched]
        if not index.size:
            return
        layer = Layer(tissue, index, share[touched], None if texture is None else texture[touched])
        self._layers.append(layer)
        self._relabel(layer)

    def _relabel(self, layer: Layer) -> None:
        """Keep the label of the tissue with the largest share of each voxel."""
        flat = self.labels.reshape(-1)
        same = flat[layer.index] == layer.tissue
        remaining = self._majority[layer.index] * (1 - layer.share)
        wins = same | (layer.share > remaining)
        self._majority[layer.index] = np.where(same, remaining + layer.share, np.maximum(layer.share, remaining))
        flat[layer.index[wins]] = layer.tissue

    def render(self, values: NDArray[np.float32]) -> Volume:
        """Mix the tissues' values in every voxel.

        Parameters
        ----------
        values
            Shape (tissues, contrasts): the value of each `Tissue` in each contrast.

        Returns
        -------
        Volume
            Shape (contrasts, D, H, W).
        """
        mixed = np.tile(values[Tissue.AIR], (self.labels.size, 1))
        for layer in self._layers:
            target = values[layer.tissue][None, :]
            if layer.texture is not None:
                target = target * (1 + layer.texture[:, None])
            below = mixed[layer.index]
            below += layer.share[:, None] * (target - below)
            mixed[layer.index] = below
        volumes = mixed.T.reshape(values.shape[1], *self.labels.shape)
        return np.ascontiguousarray(volumes)
