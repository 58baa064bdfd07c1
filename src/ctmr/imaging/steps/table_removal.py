"""Table, headrest and plates taken out of a CT: threshold, erode, dilate, fill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import ndimage

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import OUTSIDE_VALUE, SKIN_HU
from ctmr.imaging.mask import Mask, fill, largest
from ctmr.imaging.resample import resample_to
from ctmr.imaging.steps.base import ImageStep, Reference, StepResult
from ctmr.imaging.volume import Interpolation, Modality, Unit, Volume

COARSE_MM = 2.0
"""Erosion and dilation run on voxels of about this size."""
SMALL_PART = 0.01
"""Thin parts that touch the head and are smaller than this share of it are ears and nose, and stay."""


class TableRemoval(ImageStep):
    """Table, headrest and plates of a CT become air (`ctmr.imaging.steps.table_removal`)."""

    needs_geometry: ClassVar[bool] = True

    kind: Literal["table_removal"] = "table_removal"
    modality: Modality = Modality.CT
    threshold_hu: float = SKIN_HU
    """What is below is air, foam or cloth."""
    radius_mm: Annotated[float, Field(gt=0, le=30)] = 5.0
    """Of the erosion: plates up to twice as thick are parted from the head."""
    reference: str | None = None
    """Image of the dataset whose one mask all images get, after registration to it; ``null``: each its own mask."""
    served: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.require_modality(Modality.CT)
        if self.reference is not None and self.served:
            raise ValueError(
                "table_removal by the mask of a reference cannot be served, since a client has no reference; "
                "set served to false, or leave reference out"
            )
        return self

    def run(self, volumes: Sequence[Volume], reference: Reference, interpolation: Interpolation) -> StepResult:
        """Run with the mask of the reference, where one is named."""
        fixed = reference(self.reference, volumes[0]) if self.reference is not None else None
        return [remove_table(v, self, fixed) for v in volumes], None


def remove_table(volume: Volume, step: TableRemoval, reference: Volume | None = None) -> Volume:
    """Return a CT with air in place of everything that is not the patient.

    Parameters
    ----------
    volume
        CT in HU with geometry.
    step
        Threshold and radius.
    reference
        CT that the volume was registered to: its mask is used instead of the volume's own, so that a plate which lies
        at one place in every image goes even where it touches the head.

    Returns
    -------
    Volume
        Same voxels and dtype; inside the mask nothing changes.

    Raises
    ------
    InputError
        No Hounsfield units, no geometry, or nothing but air above the threshold.
    """
    patient = patient_mask(volume if reference is None else reference, step)
    if reference is not None:
        masks = reference.with_array(patient)
        patient = resample_to(masks, volume.require_affine(), volume.require_hu().shape, order=0, outside=0.0)
    return volume.with_array(np.where(patient, volume.array, volume.array.dtype.type(OUTSIDE_VALUE[Unit.HU])))


def patient_mask(volume: Volume, step: TableRemoval) -> Mask:
    """Return the patient in a CT without what the patient lies on.

    Everything above the threshold is eroded, which parts the head from plates up to twice the radius thick; the
    largest part is dilated again within what is above the threshold, and filled. (Erosion, dilation and filling of a
    thresholded reference are what Duval et al. took the plates out of CQ500 with.)

    Returns
    -------
    numpy.ndarray
        bool ``[D, H, W]``, airways and sinuses included.
    """
    above = volume.require_hu() > step.threshold_hu
    factors = tuple(max(1, int(COARSE_MM / s)) for s in volume.spacing_mm)
    spacing = tuple(f * s for f, s in zip(factors, volume.spacing_mm, strict=True))
    # Filled before the erosion: airways would be opened from within otherwise.
    coarse = fill(above[tuple(slice(None, None, f) for f in factors)])
    core = largest(_eroded(coarse, spacing, step.radius_mm))
    if not core.any():
        raise InputError(
            f"image {volume.uid or volume.subject!r} shows nothing thicker than {2 * step.radius_mm:g} mm above "
            f"{step.threshold_hu:g} HU; lower threshold_hu or radius_mm of table_removal, or leave the image out"
        )
    reach = step.radius_mm + max(spacing)
    near = ndimage.distance_transform_edt(~core, sampling=spacing) <= reach
    body = above & _enlarged(near, factors, above.shape)
    return fill(body | _small_parts(above & ~body, body))


def _eroded(mask: Mask, spacing: tuple[float, ...], radius_mm: float) -> Mask:
    """Erode by a ball; beyond the field of view the patient goes on."""
    inside: Mask = ndimage.distance_transform_edt(mask, sampling=spacing) > radius_mm
    return inside


def _enlarged(mask: Mask, factors: tuple[int, ...], shape: tuple[int, ...]) -> Mask:
    """Repeat each coarse voxel around the fine one that it was taken from."""
    for axis, (factor, count) in enumerate(zip(factors, shape, strict=True)):
        nearest = np.minimum((np.arange(count) + factor // 2) // factor, mask.shape[axis] - 1)
        mask = np.take(mask, nearest, axis=axis)
    return mask


def _small_parts(rest: Mask, body: Mask) -> Mask:
    """Return the parts of `rest` that touch the body and are small."""
    labels, count = ndimage.label(rest)
    if not count:
        return rest
    sizes = np.bincount(labels.ravel())
    touching = np.zeros(count + 1, dtype=bool)
    for axis in range(3):
        for here, there in (((slice(None, -1)), slice(1, None)), (slice(1, None), slice(None, -1))):
            a = (slice(None),) * axis + (here,)
            b = (slice(None),) * axis + (there,)
            touching[np.unique(labels[a][body[b]])] = True
    kept: NDArray[np.bool_] = touching & (sizes < SMALL_PART * body.sum())
    kept[0] = False
    small: Mask = kept[labels]
    return small
