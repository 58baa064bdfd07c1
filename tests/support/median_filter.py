"""An image step that the package does not have: the example of docs/extending.md."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from scipy import ndimage

from ctmr.imaging.steps.base import ImageStep
from ctmr.imaging.volume import Volume


class MedianFilter(ImageStep):
    """Each voxel becomes the median of its neighbours within the slice."""

    kind: Literal["median_filter"] = "median_filter"
    width: Annotated[int, Field(ge=3, le=9)] = 3
    """Voxels along each side of the neighbourhood."""
    served: bool = True

    def apply(self, volume: Volume) -> Volume:
        """Return the filtered image, same dtype."""
        return volume.with_array(ndimage.median_filter(volume.array, size=(1, self.width, self.width)))
