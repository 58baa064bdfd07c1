"""N4: the slow multiplicative shading that coils lay over an MR is estimated and divided out."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ctmr.errors import InputError
from ctmr.imaging.mask import head_mask_grey, tissue_grey
from ctmr.imaging.steps.base import ImageStep
from ctmr.imaging.steps.itk import named, one_thread, simple_itk, to_itk
from ctmr.imaging.volume import Modality, Volume

CONVERGED = 1e-4
"""A level ends early when the field changes by less, as a coefficient of variation."""


class BiasField(ImageStep):
    """The slow multiplicative shading of an MR is divided out by N4 (`ctmr.imaging.steps.bias_field`)."""

    kind: Literal["bias_field"] = "bias_field"
    modality: Modality = Modality.MR
    shrink_mm: Annotated[float, Field(gt=0, le=20)] = 4.0
    """The field is estimated on voxels about this large."""
    control_points: Annotated[int, Field(ge=4, le=16)] = 4
    """Of the coarsest B-spline, along each axis; doubled from level to level."""
    iterations: Annotated[tuple[Annotated[int, Field(ge=1, le=500)], ...], Field(min_length=1, max_length=6)] = (
        50,
        50,
        50,
    )
    """At most this many on each level."""
    served: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.require_modality(Modality.MR)
        return self

    def apply(self, volume: Volume) -> Volume:
        """Return the image without its bias field."""
        return correct_bias_field(volume, self)


def correct_bias_field(volume: Volume, step: BiasField) -> Volume:
    """Return an MR without its bias field.

    N. Tustison et al., N4ITK: improved N3 bias correction, IEEE Trans. Med. Imaging 29(6), 2010.

    Parameters
    ----------
    volume
        MR of any shape, or a picture of one.
    step
        Resolution and effort of the estimate.

    Returns
    -------
    Volume
        float32; the geometric mean of the field over the head is 1, so values keep their size.

    Raises
    ------
    InputError
        Another modality, or an image without a head.
    """
    if volume.modality is not Modality.MR:
        raise InputError(f"image {volume.uid or volume.subject!r} is {volume.modality}; only an MR has a bias field")
    return volume.with_array((volume.array / bias_field(volume, step)).astype(np.float32))


def bias_field(volume: Volume, step: BiasField) -> NDArray[np.float32]:
    """Estimate the field by which an MR was multiplied.

    Returns
    -------
    numpy.ndarray
        float32 ``[D, H, W]``, positive, geometric mean 1 over the head.
    """
    tissue = tissue_grey(volume.array)
    if not tissue.any():
        raise InputError(f"image {volume.uid or volume.subject!r} shows no head, so it has no bias field to correct")
    sitk = simple_itk()
    spacing = np.ones(3) if volume.affine is None else np.array(volume.spacing_mm)
    shape = volume.array.shape
    factors = [max(1, min(round(step.shrink_mm / s), n // 16)) for s, n in zip(spacing, shape, strict=True)]
    coarse = _shrunk(volume, factors)
    dimension = 2 if volume.affine is None else 3
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(step.iterations))
    n4.SetNumberOfControlPoints([step.control_points] * dimension)
    n4.SetConvergenceThreshold(CONVERGED)
    n4.SetNumberOfThreads(1)
    with one_thread(sitk), named(volume, "N4 bias field correction"):
        n4.Execute(to_itk(coarse), to_itk(coarse, _shrunk(volume.with_array(tissue), factors).array))
        log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(to_itk(volume)))
    log_field = log_field.reshape(shape).astype(np.float64)
    log_field -= log_field[head_mask_grey(volume.array)].mean()
    field: NDArray[np.float32] = np.exp(log_field).astype(np.float32)
    return field


def _shrunk(volume: Volume, factors: list[int]) -> Volume:
    """Take every k-th voxel, with the affine to match."""
    part: NDArray[Any] = volume.array[tuple(slice(None, None, f) for f in factors)]
    if volume.affine is None:
        return replace(volume, array=part)
    return replace(volume, array=part, affine=volume.affine @ np.diag([*map(float, factors), 1.0]))
