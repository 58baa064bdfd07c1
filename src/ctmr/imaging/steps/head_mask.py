"""Everything outside the head becomes air."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ctmr.imaging.hounsfield import OUTSIDE_VALUE
from ctmr.imaging.mask import head_mask
from ctmr.imaging.steps.base import ImageStep
from ctmr.imaging.volume import Volume


class HeadMask(ImageStep):
    """Everything outside the head becomes air."""

    kind: Literal["head_mask"] = "head_mask"
    served: bool = True

    def apply(self, volume: Volume) -> Volume:
        """Return the head alone; values and dtype inside it stay."""
        head = head_mask(volume.array, volume.unit)
        return volume.with_array(np.where(head, volume.array, volume.array.dtype.type(OUTSIDE_VALUE[volume.unit])))
