"""Two images under one protocol: what the function of every metric of image pairs is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.metrics.protocol import Protocol


@dataclass(frozen=True)
class ImagePair:
    """An image and what it is measured against, on one grid in one unit.

    Attributes
    ----------
    prediction
        ``[D, H, W]``; the translation, or the reconstruction of a cycle.
    reference
        Same shape; the truth of the same patient, or under ``cycle_slice`` and ``structure`` the input.
    inside
        Same shape, bool; where the protocol measures. Not empty.
    protocol
        Names mask, clip, range and window.
    slice_axis
        Along which the model's slices are stacked; ``None``: not known.
    """

    prediction: NDArray[Any]
    reference: NDArray[Any]
    inside: NDArray[np.bool_]
    protocol: Protocol
    slice_axis: int | None = None

    @cached_property
    def values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Prediction and reference inside the mask, ``[N]`` each, clipped as the protocol says."""
        p, r = self._raw
        return self.clipped(p), self.clipped(r)

    @cached_property
    def absolute(self) -> NDArray[np.float64]:
        """Absolute errors inside the mask, ``[N]``; of unclipped values where the protocol takes the MAE before."""
        p, r = self.values if self.protocol.mae_clipped else self._raw
        return np.abs(p - r)

    @cached_property
    def squared_error(self) -> float:
        """Mean squared error inside the mask, of clipped values."""
        p, r = self.values
        return float(np.square(p - r).mean())

    def clipped(self, image: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the image clipped as the protocol says."""
        return image if self.protocol.clip is None else np.clip(image, *self.protocol.clip)

    @cached_property
    def _raw(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.prediction[self.inside].astype(np.float64), self.reference[self.inside].astype(np.float64)
