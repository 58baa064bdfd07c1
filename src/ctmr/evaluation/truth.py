"""Truth: the target image of a subject, its masks, and where it lies in the frame of the source image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import OUTSIDE_VALUE
from ctmr.imaging.mask import head_mask_ct, head_mask_grey
from ctmr.imaging.resample import resample_to
from ctmr.imaging.steps.base import Transform
from ctmr.imaging.steps.registration import Registration, align
from ctmr.imaging.volume import Unit, Volume
from ctmr.metrics.protocol import Mask

SAME_PLACE_MM = 1e-3

Found = NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """The target image of the same subject, on its own voxels.

    Attributes
    ----------
    volume, source
        Target and source image, native.
    placed
        Affine of `volume` in the frame of the source. It is the volume's own unless preprocessing registers one to the
        other; ``None`` for pictures.
    given
        Reads the mask that came with the dataset, on an image's voxels; InputError without one.
    """

    volume: Volume
    source: Volume
    placed: NDArray[np.float64] | None
    given: Callable[[Volume], Found]
    _masks: dict[Mask, Found] = field(default_factory=dict)

    def mask(self, kind: Mask) -> Found | None:
        """Return the mask that a protocol names, on the voxels of the truth, found once.

        Raises
        ------
        InputError
            The protocol takes a mask that comes with the dataset, and none came, or an unusable one.
        """
        if kind is Mask.NONE:
            return None
        if kind not in self._masks:
            self._masks[kind] = self._find(kind)
        return self._masks[kind]

    def _find(self, kind: Mask) -> Found:
        if kind is Mask.GIVEN:
            return self.given(self.volume)
        if kind is Mask.HEAD_FROM_GREY:
            return head_mask_grey(self.volume.array)
        head = head_mask_ct(self.volume.array)
        if kind is Mask.HEAD_FROM_CT_AND_MR:
            other = self.source.with_array(head_mask_grey(self.source.array).astype(np.uint8))
            return head & (self._here(other, order=0, outside=0) > 0)
        return head

    @property
    def head(self) -> Found:
        """The head as the truth shows it."""
        found = self.mask(Mask.HEAD_FROM_CT if self.volume.unit is Unit.HU else Mask.HEAD_FROM_GREY)
        assert found is not None
        return found

    @property
    def moved(self) -> Volume:
        """The truth in the frame of the source, voxel for voxel."""
        return self.volume.with_array(self.volume.array, self.placed)

    def covers(self, made: Volume) -> bool:
        """True when an image lies on the truth's voxels."""
        return made.array.shape == self.volume.array.shape and _same_place(made.affine, self.placed)

    def receive(self, made: Volume) -> NDArray[Any]:
        """Return a translation on the truth's voxels."""
        return self._here(made, order=1, outside=OUTSIDE_VALUE[made.unit])

    def _here(self, image: Volume, *, order: int, outside: float) -> NDArray[Any]:
        if self.placed is None or self.covers(image):
            return image.array
        d, h, w = self.volume.array.shape
        return resample_to(image, self.placed, (d, h, w), order=order, outside=outside)


def place(truth: Volume, source: Volume, step: Registration) -> NDArray[np.float64]:
    """Return the affine of a truth in the frame of a source, by a rigid registration.

    Rigid whatever the step allows: a truth that is scaled or bent towards the source would no longer be the truth. No
    voxel is interpolated.
    """
    found = align(truth, source, transform=Transform.RIGID, engine=step.engine)
    affine: NDArray[np.float64] = np.linalg.inv(found.matrix) @ truth.require_affine()
    return affine


def no_mask(image: str) -> InputError:
    """Return the error of a protocol that takes the mask of a dataset whose images came without."""
    return InputError(
        f"a synthrad protocol is measured in the mask that comes with a dataset, and none lies beside {image}; put "
        "mask.nii.gz there, or take the protocol out of evaluate.paired_protocols"
    )


def _same_place(a: NDArray[np.float64] | None, b: NDArray[np.float64] | None) -> bool:
    return a is None or b is None or bool(np.allclose(a, b, atol=SAME_PLACE_MM))
