"""Head of an image: its box decides where the model's grid lies, and what of it the grid does not reach is counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctmr.imaging.mask import Mask, head_mask
from ctmr.imaging.resample import Placement
from ctmr.imaging.volume import Volume

MOST_OUTSIDE = 0.5
"""Share of a head outside the grid above which an image is refused: it is none that the model was made for."""
WORTH_SAYING = 0.0005
"""Share of a head outside the grid that is said; less is a hair's breadth of the mask."""


@dataclass(frozen=True)
class Head:
    """Head of an image with geometry.

    Attributes
    ----------
    mask
        ``[D, H, W]`` bool on the image's voxels.
    centre_mm
        Centre of the mask's bounding box, RAS mm; ``None``: the image shows no head.
    """

    mask: Mask
    centre_mm: NDArray[np.float64] | None

    def share_outside(self, placement: Placement) -> float:
        """Return the share of the head that a grid does not reach; a mask of other voxels than the grid's has none."""
        total = int(self.mask.sum())
        if not total or self.mask.shape != placement.native_shape:
            return 0.0
        kept = self.mask
        to_grid = np.linalg.inv(np.asarray(placement.matrix))
        for axis, count in enumerate(placement.grid_shape):
            source = int(np.abs(to_grid[axis, :3]).argmax())
            at = to_grid[axis, source] * np.arange(self.mask.shape[source]) + to_grid[axis, 3]
            kept = np.compress((at > -0.5 - 1e-6) & (at < count - 0.5 + 1e-6), kept, axis=source)
        return 1 - int(kept.sum()) / total


def head_of(volume: Volume) -> Head:
    """Find the head of an image with geometry."""
    mask = head_mask(volume.array, volume.unit)
    if not mask.any():
        return Head(mask, None)
    box = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)]
    centre = volume.require_affine() @ [*(float(ends.mean()) for ends in box), 1.0]
    return Head(mask, centre[:3])
