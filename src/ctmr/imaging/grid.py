"""Grid: what a model was trained on: geometry, and the ordered steps between a native image and the model."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from ctmr.imaging.volume import HOUNSFIELD_FLOOR_HU, Modality, Unit

OUTSIDE_VALUE: dict[Unit, float] = {Unit.HU: HOUNSFIELD_FLOOR_HU, Unit.ARBITRARY: 0.0, Unit.GREY8: 0.0}
"""What stands outside the field of view, in each unit."""


class Plane(StrEnum):
    """The plane of the slices a model sees; ``picture`` has no geometry."""

    AXIAL = "axial"
    SAGITTAL = "sagittal"
    CORONAL = "coronal"
    PICTURE = "picture"


ORIENTATION: dict[Plane, str] = {Plane.AXIAL: "SPL", Plane.SAGITTAL: "LIP", Plane.CORONAL: "PIL"}
"""Array orientation (D, H, W) of each plane, as radiologists see it: row 0 on top, column 0 on the left."""


class ServeStep(StrEnum):
    """A geometric step that runs in preprocessing and again for every served image."""

    REORIENT = "reorient"
    RESAMPLE = "resample"
    RESIZE = "resize"
    CROP_OR_PAD = "crop_or_pad"


Millimetres = Annotated[float, Field(gt=0, le=50)]
Pixels = Annotated[int, Field(ge=8, le=4096)]


class Interpolation(StrEnum):
    """Interpolation between voxels when an image is brought onto the grid."""

    NEAREST = "nearest"
    LINEAR = "linear"
    SPLINE = "spline"

    @property
    def order(self) -> int:
        """Degree of the spline: 0, 1 or 3."""
        return {Interpolation.NEAREST: 0, Interpolation.LINEAR: 1, Interpolation.SPLINE: 3}[self]


class Transform(StrEnum):
    """Freedom of a registration."""

    RIGID = "rigid"
    AFFINE = "affine"
    DEFORMABLE = "deformable"


class Engine(StrEnum):
    """Library that registers; ``auto`` is ANTs where it is installed, else SimpleITK."""

    AUTO = "auto"
    SIMPLEITK = "simpleitk"
    ANTS = "ants"


class _ImageStep(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeadMask(_ImageStep):
    """Everything outside the head becomes air."""

    kind: Literal["head_mask"] = "head_mask"
    modality: Modality
    served: bool = True


class TableRemoval(_ImageStep):
    """Table, headrest and plates of a CT become air (`ctmr.imaging.steps.table_removal`)."""

    kind: Literal["table_removal"] = "table_removal"
    modality: Modality = Modality.CT
    threshold_hu: float = -500.0
    """What is below is air, foam or cloth."""
    radius_mm: Annotated[float, Field(gt=0, le=30)] = 5.0
    """Of the erosion: plates up to twice as thick are parted from the head."""
    reference: str | None = None
    """Image of the dataset whose one mask all images get, after registration to it; ``null``: each its own mask."""
    served: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _require(self.kind, self.modality, Modality.CT)
        if self.reference is not None and self.served:
            raise ValueError(
                "table_removal by the mask of a reference cannot be served, since a client has no reference; "
                "set served to false, or leave reference out"
            )
        return self


class BiasField(_ImageStep):
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
        _require(self.kind, self.modality, Modality.MR)
        return self


class Registration(_ImageStep):
    """An image is moved onto the voxels of a reference by mutual information (`ctmr.imaging.steps.registration`)."""

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


def _require(kind: str, modality: Modality, allowed: Modality) -> None:
    if modality is not allowed:
        raise ValueError(f"{kind} is for {allowed} only, not for {modality}")


def check_order(steps: Sequence[HeadMask | TableRemoval | BiasField | Registration]) -> None:
    """Raise ValueError where one step takes the ground from under another."""
    moves: dict[Modality, Registration] = {}
    for step in steps:
        if isinstance(step, Registration):
            if step.modality in moves:
                raise ValueError(f"{step.modality} images are registered twice; leave one registration")
            moves[step.modality] = step
        elif isinstance(step, TableRemoval) and step.reference is not None:
            before = moves.get(step.modality)
            if before is None or before.reference != step.reference:
                raise ValueError(
                    f"table_removal by the mask of {step.reference} needs a registration of {step.modality} images to "
                    "it before; add one, or leave reference out"
                )
        elif isinstance(step, BiasField | HeadMask | TableRemoval) and step.served and step.modality in moves:
            raise ValueError(
                f"{step.kind} is served and comes after a registration, which is not, so served images would go "
                "through other steps in another order; put it before the registration, or set served to false"
            )
    to_each_other = [m for m, step in moves.items() if step.reference is None]
    if to_each_other and len(moves) > 1:
        raise ValueError(
            f"{to_each_other[0]} images are registered to the same subject's other image, which is registered itself; "
            "let one of both stay where it is, or name one reference for both"
        )


ImageStep = Annotated[HeadMask | TableRemoval | BiasField | Registration, Field(discriminator="kind")]
"""A step on the image's own voxels, before the geometry; for the images of one modality."""


class Grid(BaseModel):
    """Kind of images that a model was trained on.

    Attributes
    ----------
    plane
        Plane of the slices.
    spacing_mm
        In-plane spacing (H, W); ``None`` for pictures.
    slice_spacing_mm
        Distance of slices; ``None`` keeps the image's own.
    size
        Pixels (H, W) of a slice.
    interpolation
        Between voxels.
    steps
        Every step in order: those on native voxels, then the geometry. An image step with ``served: false`` is
        training-only; all others run for every served image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plane: Plane
    size: tuple[Pixels, Pixels]
    spacing_mm: tuple[Millimetres, Millimetres] | None = None
    slice_spacing_mm: Millimetres | None = None
    interpolation: Interpolation = Interpolation.LINEAR
    steps: tuple[ImageStep | ServeStep, ...]

    @model_validator(mode="before")
    @classmethod
    def _training_only_is_derived(cls, tree: Any) -> Any:
        """Written for readers; what counts is each step's own `served`."""
        return {k: v for k, v in tree.items() if k != "training_only"} if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _steps_fit(self) -> Grid:
        if self.plane is Plane.PICTURE:
            if self.spacing_mm is not None or self.slice_spacing_mm is not None:
                raise ValueError("a picture grid has no spacing; leave spacing_mm and slice_spacing_mm out")
            foreign = set(self.geometry) & {ServeStep.REORIENT, ServeStep.RESAMPLE}
            if foreign:
                raise ValueError(f"a picture grid cannot {sorted(foreign)}; pictures have no geometry")
            needs_mm = sorted({s.kind for s in self.image_steps if isinstance(s, TableRemoval | Registration)})
            if needs_mm:
                raise ValueError(f"pictures have no geometry, so {' and '.join(needs_mm)} cannot run on them")
        elif self.spacing_mm is None:
            raise ValueError(f"a {self.plane} grid needs spacing_mm (H, W)")
        if self.steps != (*self.image_steps, *self.geometry):
            raise ValueError("steps on native voxels come before the geometry")
        check_order(self.image_steps)
        return self

    @property
    def image_steps(self) -> tuple[HeadMask | TableRemoval | BiasField | Registration, ...]:
        """The steps on native voxels, training-only ones included, in order."""
        return tuple(s for s in self.steps if not isinstance(s, ServeStep))

    @property
    def geometry(self) -> tuple[ServeStep, ...]:
        """The steps that bring an image onto the grid, in order."""
        return tuple(s for s in self.steps if isinstance(s, ServeStep))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def training_only(self) -> tuple[str, ...]:
        """Names of the steps that training data go through and served images do not."""
        return tuple(s.kind for s in self.image_steps if not s.served)

    @property
    def orientation(self) -> str:
        """Orientation letters of (D, H, W); InputError-free because pictures answer an empty string."""
        return ORIENTATION.get(self.plane, "")


def volume_grid(
    plane: Plane,
    size: tuple[int, int],
    spacing_mm: tuple[float, float],
    slice_spacing_mm: float | None = None,
    image_steps: tuple[ImageStep, ...] = (),
    interpolation: Interpolation = Interpolation.LINEAR,
) -> Grid:
    """Return the grid of a volume model: the image steps, then reorient, resample, crop or pad."""
    return Grid(
        plane=plane,
        size=size,
        spacing_mm=spacing_mm,
        slice_spacing_mm=slice_spacing_mm,
        interpolation=interpolation,
        steps=(*image_steps, ServeStep.REORIENT, ServeStep.RESAMPLE, ServeStep.CROP_OR_PAD),
    )


def picture_grid(
    size: tuple[int, int],
    image_steps: tuple[ImageStep, ...] = (),
    interpolation: Interpolation = Interpolation.LINEAR,
) -> Grid:
    """Return the grid of a picture model: the image steps, resize (keeping the aspect ratio), then pad."""
    steps = (*image_steps, ServeStep.RESIZE, ServeStep.CROP_OR_PAD)
    return Grid(plane=Plane.PICTURE, size=size, interpolation=interpolation, steps=steps)
