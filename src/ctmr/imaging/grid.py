"""Grid: what a model was trained on: geometry, and the ordered steps between a native image and the model."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from ctmr.imaging.steps import AnyStep
from ctmr.imaging.steps.base import ImageStep
from ctmr.imaging.steps.order import check_order
from ctmr.imaging.volume import Interpolation


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
    steps: tuple[AnyStep | ServeStep, ...]

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
            needs_mm = sorted({s.kind for s in self.image_steps if s.needs_geometry})
            if needs_mm:
                raise ValueError(f"pictures have no geometry, so {' and '.join(needs_mm)} cannot run on them")
        elif self.spacing_mm is None:
            raise ValueError(f"a {self.plane} grid needs spacing_mm (H, W)")
        if self.steps != (*self.image_steps, *self.geometry):
            raise ValueError("steps on native voxels come before the geometry")
        check_order(self.image_steps)
        return self

    @property
    def image_steps(self) -> tuple[ImageStep, ...]:
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
