"""Rigid, affine and deformable registration of an image to a reference by mutual information."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from scipy import ndimage

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import OUTSIDE_VALUE, SKIN_HU
from ctmr.imaging.mask import Mask, head_mask
from ctmr.imaging.plan import refuse_shear
from ctmr.imaging.resample import resample_to
from ctmr.imaging.steps import ants
from ctmr.imaging.steps.base import Alignment, ImageStep, Reference, StepResult, Transform
from ctmr.imaging.steps.itk import RAS_LPS, named, one_thread, simple_itk, to_itk
from ctmr.imaging.volume import Interpolation, Modality, Unit, Volume

CT_RANGE_HU = (SKIN_HU, 400.0)
"""Values beyond are clipped for the histogram: all air is one, all bone is one. Smoothing then keeps skin and skull at
their places; with a wider or higher range the best affine transform of a head is several per cent too large."""
BINS = 48
LEVELS_MM = (8.0, 4.0, 2.0)
"""Voxel sizes of the pyramid, coarse to fine; never finer than the reference's own."""
SAMPLED_SHARE = (0.5, 0.3, 0.15)
"""Share of the voxels that the histogram is made of on each level."""
PITCH_DEG = (-24.0, -12.0, 0.0, 12.0, 24.0)
"""Nods of the head that are tried before the descent starts: chins are the least alike."""
MARGIN_MM = 12.0
"""Around the reference's head: the edge of the head is what aligns it, a table is not."""
SMALLEST_STEP_MM = 0.002
AFFINE_STEP = 0.1
"""An affine transform starts close to the truth, and with larger steps it leaves."""
AIR_MM = 40.0
"""Around the moving head."""
CONTROL_MM = 40.0
"""Distance of the control points of a deformation; what is finer is not recovered."""
SPLINE_SAMPLES = 20_000
SPLINE_BINS = 32
SPLINE_ITERATIONS = 20
PLAUSIBLE_SCALE = (0.7, 1.4)
"""Heads of adults differ by less."""
PLAUSIBLE_TURN_DEG = 60.0
_SEED = 1


class Engine(StrEnum):
    """Library that registers; ``auto`` is ANTs where it is installed, else SimpleITK."""

    AUTO = "auto"
    SIMPLEITK = "simpleitk"
    ANTS = "ants"


class Registration(ImageStep):
    """An image is moved onto the voxels of a reference by mutual information (`ctmr.imaging.steps.registration`)."""

    needs_geometry: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    kind: Literal["registration"] = "registration"
    modality: Modality
    """The image that is moved."""
    transform: Transform = Transform.RIGID
    reference: str | None = None
    """Image of the dataset; ``null``: the same subject's image of the other modality."""
    engine: Engine = Engine.AUTO
    """The grid records the one that ran."""
    served: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.served:
            raise ValueError("registration cannot be served, since a client has no reference; set served to false")
        if self.reference is None and self.transform is not Transform.RIGID:
            raise ValueError(
                f"registration to the same subject's other image is rigid, not {self.transform}; one head has one "
                "shape; name a reference image, or set transform to rigid"
            )
        return self

    def run(self, volumes: Sequence[Volume], reference: Reference, interpolation: Interpolation) -> StepResult:
        """Register the first channel and move all: they share their voxels, so what is found for one holds for all."""
        fixed = reference(self.reference, volumes[0])
        if fixed is None:
            return list(volumes), None
        alignment = register(volumes[0], fixed, self)
        return [move(v, alignment, fixed, interpolation=interpolation) for v in volumes], alignment


def align(moving: Volume, fixed: Volume, *, transform: Transform, engine: Engine = Engine.AUTO) -> Alignment:
    """Register one head to another.

    The transform maximises Mattes' mutual information (D. Mattes et al., PET-CT image registration in the chest using
    free-form deformations, IEEE Trans. Med. Imaging 22(1), 2003), coarse to fine, from the centres of both heads. Equal
    images give equal transforms: one thread, one seed.

    Parameters
    ----------
    moving, fixed
        Image and reference, of any modality, with geometry.
    transform
        Rigid: turn and shift. Affine: scale and shear as well. Deformable: B-splines (SimpleITK) or SyN (ANTs) on top.
    engine
        ``auto`` is ANTs where it is installed.

    Raises
    ------
    InputError
        An image without a head, or a result that no head could have.
    EnvironmentFault
        The engine is not installed.
    """
    for volume in (moving, fixed):
        refuse_shear(volume.require_affine(), volume)
    heads = _head(moving), _head(fixed)
    if resolve_engine(engine) is Engine.ANTS:
        matrix, displacement = ants.register(_clipped(moving), _clipped(fixed), transform)
        alignment = Alignment(matrix, displacement)
    else:
        with one_thread(simple_itk()), named(moving, f"{transform} registration to {fixed.uid or fixed.subject!r}"):
            alignment = _by_simple_itk(moving, fixed, heads, transform)
    _refuse_implausible(alignment, moving, transform)
    return alignment


def resolve_engine(engine: Engine) -> Engine:
    """Return the engine that ``auto`` stands for here; others stay."""
    if engine is not Engine.AUTO:
        return engine
    return Engine.ANTS if ants.installed() else Engine.SIMPLEITK


def move(
    volume: Volume, alignment: Alignment, fixed: Volume, *, interpolation: Interpolation = Interpolation.LINEAR
) -> Volume:
    """Sample a registered image on the voxels of its reference.

    Returns
    -------
    Volume
        The image's own values, unit and dtype on the reference's voxels and affine; `OUTSIDE_VALUE` beyond its field
        of view.
    """
    outside, order = OUTSIDE_VALUE[volume.unit], interpolation.order
    affine, shape = fixed.require_affine(), fixed.array.shape
    if alignment.displacement_mm is None:
        carried = volume.with_array(volume.array, np.linalg.inv(alignment.matrix) @ volume.require_affine())
        array = resample_to(carried, affine, (shape[0], shape[1], shape[2]), order=order, outside=outside)
    else:
        array = _warped(volume, alignment.matrix @ affine, alignment.displacement_mm, order, outside)
    return volume.with_array(array, affine)


def register(moving: Volume, fixed: Volume, step: Registration) -> Alignment:
    """Register as a recipe's step says."""
    return align(moving, fixed, transform=step.transform, engine=step.engine)


def _by_simple_itk(moving: Volume, fixed: Volume, heads: tuple[Mask, Mask], transform: Transform) -> Alignment:
    sitk = simple_itk()
    centre_moving, centre = (RAS_LPS[:3, :3] @ _centre_mm(h, v) for h, v in zip(heads, (moving, fixed), strict=True))
    region = fixed.with_array(_around(heads[1], fixed))
    moving = _in_air(moving, heads[0])
    levels = [_Level(sitk, moving, fixed, region, k) for k in range(len(LEVELS_MM))]
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre.tolist())
    rigid.SetTranslation((centre_moving - centre).tolist())
    levels[0].nod(rigid)
    for level in levels:
        level.descend(rigid)
    if transform is Transform.RIGID:
        return Alignment(_matrix(rigid))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetCenter(rigid.GetCenter())
    affine.SetTranslation(rigid.GetTranslation())
    for level in levels[1:]:
        level.descend(affine, first_step=AFFINE_STEP)
    if transform is Transform.AFFINE:
        return Alignment(_matrix(affine))
    spline = levels[1].deform(affine, levels[2])
    return Alignment(_matrix(affine), _displacement(sitk, spline, affine, to_itk(fixed)))


class _Level:
    """One level of the pyramid: both images on voxels of its size, and the region that counts."""

    def __init__(self, sitk: Any, moving: Volume, fixed: Volume, region: Volume, index: int) -> None:
        self.sitk, self.share = sitk, SAMPLED_SHARE[index]
        self.fixed, self.moving = (to_itk(_isotropic(_clipped(v), LEVELS_MM[index])) for v in (fixed, moving))
        self.region = to_itk(_isotropic(region, LEVELS_MM[index], order=0))

    def method(self, bins: int = BINS) -> Any:
        """Return the metric, ready for a transform and an optimiser."""
        method = self.sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(bins)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(self.share, _SEED)
        method.SetMetricFixedMask(self.region)
        method.SetInterpolator(self.sitk.sitkLinear)
        method.SetNumberOfThreads(1)
        return method

    def nod(self, rigid: Any) -> None:
        """Turn the transform by the nod of the head from which the images agree best."""
        scores = []
        for pitch in PITCH_DEG:
            rigid.SetRotation(np.radians(pitch), 0.0, 0.0)
            method = self.method()
            method.SetInitialTransform(rigid)
            scores.append(method.MetricEvaluate(self.fixed, self.moving))
        rigid.SetRotation(np.radians(PITCH_DEG[int(np.argmin(scores))]), 0.0, 0.0)

    def descend(self, transform: Any, first_step: float = 1.0) -> None:
        """Improve a linear transform in place; the first step moves points by about so many voxels."""
        method = self.method()
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=first_step * float(self.fixed.GetSpacing()[0]),
            minStep=SMALLEST_STEP_MM,
            numberOfIterations=200,
            relaxationFactor=0.7,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(self.fixed, self.moving)

    def deform(self, affine: Any, finer: _Level) -> Any:
        """Return a B-spline that improves on a linear transform: found on these voxels, then on finer ones."""
        sizes = zip(self.fixed.GetSize(), self.fixed.GetSpacing(), strict=True)
        mesh = [max(1, round(n * s / CONTROL_MM)) for n, s in sizes]
        spline = self.sitk.BSplineTransformInitializer(self.fixed, mesh, order=3)
        for level in (self, finer):
            method = level.method(SPLINE_BINS)
            method.SetMetricSamplingPercentage(min(1.0, SPLINE_SAMPLES / level.fixed.GetNumberOfPixels()), _SEED)
            method.SetMovingInitialTransform(affine)
            method.SetInitialTransform(spline, inPlace=True)
            method.SetOptimizerAsLBFGS2(numberOfIterations=SPLINE_ITERATIONS, lineSearchMaximumEvaluations=8)
            method.Execute(level.fixed, level.moving)
        return spline


def _displacement(sitk: Any, spline: Any, affine: Any, fixed: Any) -> NDArray[np.float32]:
    """Return affine(spline(x)) - affine(x) on the reference's voxels, RAS mm."""
    field = sitk.GetArrayFromImage(
        sitk.TransformToDisplacementField(
            spline, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
        )
    )
    lps = field @ np.array(affine.GetMatrix()).reshape(3, 3).T
    displacement: NDArray[np.float32] = (lps @ RAS_LPS[:3, :3]).astype(np.float32)
    return displacement


def _matrix(transform: Any) -> NDArray[np.float64]:
    """Return a linear ITK transform, turned about its centre, as 4×4 in RAS mm."""
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + np.array(transform.GetTranslation()) - linear @ centre
    return RAS_LPS @ matrix @ RAS_LPS


def _in_air(volume: Volume, head: Mask) -> Volume:
    """Surround the head with air on every side where the field of view does not cut it.

    Mutual information is of the points that lie in both images. Without the air around, an affine transform could
    gain by pushing the outline of the head out of the image.
    """
    faces = [[bool(np.take(head, end, axis=axis).any()) for end in (0, -1)] for axis in range(3)]
    counts = [int(np.ceil(AIR_MM / s)) for s in volume.spacing_mm]
    room = [[0 if cut else count for cut in pair] for pair, count in zip(faces, counts, strict=True)]
    shift = np.eye(4)
    shift[:3, 3] = [-before for before, _ in room]
    array = np.pad(volume.array, room, mode="constant", constant_values=volume.array.min())
    return volume.with_array(array, volume.require_affine() @ shift)


def _isotropic(volume: Volume, size_mm: float, order: int = 1) -> Volume:
    """Sample a volume on cubic voxels of a size, or on its own along axes that are coarser already."""
    affine = volume.require_affine()
    steps = np.maximum(1.0, size_mm / np.array(volume.spacing_mm))
    d, h, w = (max(1, int(n / s)) for n, s in zip(volume.array.shape, steps, strict=True))
    like = affine @ np.diag([*steps, 1.0])
    return volume.with_array(resample_to(volume, like, (d, h, w), order=order, outside=0.0), like)


def _clipped(volume: Volume) -> Volume:
    """Return float32 values in the range that tells tissues apart."""
    low, high = CT_RANGE_HU if volume.unit is Unit.HU else np.percentile(volume.array[::2, ::2, ::2], (0.0, 99.5))
    return volume.with_array(np.clip(volume.array, low, high).astype(np.float32))


def _head(volume: Volume) -> Mask:
    head = head_mask(volume.array, volume.unit)
    if not head.any():
        raise InputError(f"image {volume.uid or volume.subject!r} shows no head, so it cannot be registered")
    return head


def _centre_mm(head: Mask, volume: Volume) -> NDArray[np.float64]:
    centre: NDArray[np.float64] = (volume.require_affine() @ [*np.argwhere(head).mean(0), 1.0])[:3]
    return centre


def _around(head: Mask, volume: Volume) -> Mask:
    near: Mask = ndimage.distance_transform_edt(~head, sampling=volume.spacing_mm) <= MARGIN_MM
    return near


def _warped(
    volume: Volume, matrix: NDArray[np.float64], displacement_mm: NDArray[np.float32], order: int, outside: float
) -> NDArray[Any]:
    """Sample slice by slice of the reference, so that memory does not grow with the number of coordinates."""
    to_index = np.linalg.inv(volume.require_affine())
    info = None if volume.array.dtype.kind == "f" else np.iinfo(volume.array.dtype)
    values = volume.array.astype(np.float32)
    if order > 1:
        values = ndimage.spline_filter(values, order=order, output=np.float32, mode="nearest")
    depth, height, width = displacement_mm.shape[:3]
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    out = np.empty((depth, height, width), dtype=volume.array.dtype)
    last = np.array(volume.array.shape).reshape(3, 1, 1) - 1
    for d in range(depth):
        index = np.stack([np.full_like(rows, d), rows, columns, np.ones_like(rows)], axis=-1)
        mm = (index @ matrix.T)[..., :3] + displacement_mm[d]
        where = np.moveaxis(mm @ to_index[:3, :3].T + to_index[:3, 3], -1, 0)
        plane = ndimage.map_coordinates(values, where, order=order, mode="nearest", prefilter=False)
        plane = np.where(((where < -0.5) | (where > last + 0.5)).any(0), outside, plane)
        out[d] = plane if info is None else np.clip(np.rint(plane), info.min, info.max)
    return out


def _refuse_implausible(alignment: Alignment, moving: Volume, transform: Transform) -> None:
    left, scale, right = np.linalg.svd(alignment.matrix[:3, :3])
    turn = left @ right
    angle = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    low, high = PLAUSIBLE_SCALE
    if np.linalg.det(turn) < 0 or angle > PLAUSIBLE_TURN_DEG or scale.min() < low or scale.max() > high:
        raise InputError(
            f"image {moving.uid or moving.subject!r}: {transform} registration found a turn of {angle:.0f}° and scales "
            f"of {scale.min():.2f} to {scale.max():.2f}; a head turns by at most {PLAUSIBLE_TURN_DEG:g}° and scales by "
            f"{low:g} to {high:g}, so the images do not show the same part"
        )
