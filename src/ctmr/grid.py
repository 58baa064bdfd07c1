"""Grid: the geometry a model was trained on, and the ordered steps that bring any image onto it at serving time."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ctmr.volume import HOUNSFIELD_FLOOR_HU, Unit

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


class TrainingOnlyStep(StrEnum):
    """A step that only training data goes through; evaluation also measures without it."""

    BIAS_FIELD = "bias_field"
    TABLE_REMOVAL = "table_removal"
    REGISTRATION = "registration"


Millimetres = Annotated[float, Field(gt=0, le=50)]
Pixels = Annotated[int, Field(ge=8, le=4096)]


class Grid(BaseModel):
    """What a model was trained on.

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
    steps
        The serve-time steps, in order.
    training_only
        Steps that were applied to training data and are not served.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plane: Plane
    size: tuple[Pixels, Pixels]
    spacing_mm: tuple[Millimetres, Millimetres] | None = None
    slice_spacing_mm: Millimetres | None = None
    steps: tuple[ServeStep, ...]
    training_only: tuple[TrainingOnlyStep, ...] = ()

    @model_validator(mode="after")
    def _geometry_belongs_to_volumes(self) -> Grid:
        if self.plane is Plane.PICTURE:
            if self.spacing_mm is not None or self.slice_spacing_mm is not None:
                raise ValueError("a picture grid has no spacing; leave spacing_mm and slice_spacing_mm out")
            foreign = set(self.steps) & {ServeStep.REORIENT, ServeStep.RESAMPLE}
            if foreign:
                raise ValueError(f"a picture grid cannot {sorted(foreign)}; pictures have no geometry")
        elif self.spacing_mm is None:
            raise ValueError(f"a {self.plane} grid needs spacing_mm (H, W)")
        return self

    @property
    def orientation(self) -> str:
        """Orientation letters of (D, H, W); InputError-free because pictures answer an empty string."""
        return ORIENTATION.get(self.plane, "")


def volume_grid(
    plane: Plane,
    size: tuple[int, int],
    spacing_mm: tuple[float, float],
    slice_spacing_mm: float | None = None,
    training_only: tuple[TrainingOnlyStep, ...] = (),
) -> Grid:
    """Return the grid of a volume model: reorient, resample, crop or pad."""
    return Grid(
        plane=plane,
        size=size,
        spacing_mm=spacing_mm,
        slice_spacing_mm=slice_spacing_mm,
        steps=(ServeStep.REORIENT, ServeStep.RESAMPLE, ServeStep.CROP_OR_PAD),
        training_only=training_only,
    )


def picture_grid(size: tuple[int, int]) -> Grid:
    """Return the grid of a picture model: resize (keeping the aspect ratio), then pad."""
    return Grid(plane=Plane.PICTURE, size=size, steps=(ServeStep.RESIZE, ServeStep.CROP_OR_PAD))
