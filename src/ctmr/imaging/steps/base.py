"""Image step: the settings of one step on an image's own voxels, and what it does to an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ctmr.imaging.volume import Interpolation, Modality, Volume

Reference = Callable[[str | None, Volume], Volume | None]
"""Finds the image that a step refers to by name, for an image that is prepared; without a name: the same subject's
image of the other modality. ``None``: there is none, and the image stays as it is."""
StepResult = tuple[list[Volume], "Alignment | None"]
"""The channels after a step, and what a registration found; ``None`` after another step, or without a reference."""


def no_reference(name: str | None, volume: Volume) -> Volume | None:
    """Find nothing: what a client has."""
    return None


class Transform(StrEnum):
    """Freedom of a registration."""

    RIGID = "rigid"
    AFFINE = "affine"
    DEFORMABLE = "deformable"


@dataclass(frozen=True)
class Alignment:
    """Map from each point of a reference to the image that was registered to it.

    Attributes
    ----------
    matrix
        4×4, RAS mm of the reference to RAS mm of the image.
    displacement_mm
        float32 ``[D, H, W, 3]`` on the reference's voxels, RAS mm, added after the matrix; ``None``: linear.
    """

    matrix: NDArray[np.float64]
    displacement_mm: NDArray[np.float32] | None = None


class ImageStep(BaseModel):
    """Settings of a step, in the recipe and in the grid. A kind of step is a subclass, and a row of the registry.

    A subclass gives ``kind`` and ``served`` their defaults, and defines `apply`, or `run` where a step needs more than
    one image at a time.

    Attributes
    ----------
    kind
        Its key in `ctmr.imaging.steps.REGISTRY`.
    modality
        Images that it is for; others are passed over.
    served
        False: training only. True: it runs for every served image too.
    needs_geometry
        True: pictures cannot go through it.
    moves
        True: it brings an image onto the voxels of another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    needs_geometry: ClassVar[bool] = False
    moves: ClassVar[bool] = False

    kind: str
    modality: Modality
    if TYPE_CHECKING:
        # Declared by each step as its last field, since a grid is written in the order of declaration.
        served: bool

    @property
    def named_reference(self) -> str | None:
        """Name of the image of the dataset that the step refers to."""
        return getattr(self, "reference", None)

    def apply(self, volume: Volume) -> Volume:
        """Return one channel after the step; a step that works on all channels at once defines `run` instead."""
        raise ValueError(f"image step {self.kind} defines neither apply nor run, one of which does its work")

    def run(self, volumes: Sequence[Volume], reference: Reference, interpolation: Interpolation) -> StepResult:
        """Run on the channels of one subject, which lie on the same voxels.

        Parameters
        ----------
        volumes
            All of the step's modality.
        reference
            Finds references.
        interpolation
            Of images that are moved.
        """
        return [self.apply(volume) for volume in volumes], None

    def require_modality(self, allowed: Modality) -> None:
        """Raise ValueError where the step is set for images that it is not for."""
        if self.modality is not allowed:
            raise ValueError(f"{self.kind} is for {allowed} only, not for {self.modality}")
