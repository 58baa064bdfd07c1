"""Recipe sections of what evaluate measures beside fidelity: lesions, corrupted inputs, uncertainty."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ctmr.recipe.base import Count, Positive, Section


class Lesions(Section):
    """Hallucination test: lesions put into held-out inputs, and taken out again."""

    cases: Annotated[int, Field(ge=0)] = 2
    """Held-out images that get lesions, each direction; 0: no test."""
    radii_mm: Annotated[tuple[Positive, ...], Field(min_length=1)] = (5.0, 10.0)
    """Two lesions of each radius. Of a picture the field of view is taken to be 240 mm."""
    contrast: Positive = 0.4
    """Of inserted lesions: a share of the head's median value, or of 100 HU. Lesions of phantoms are of tissue."""


class Robustness(Section):
    """Measurement of how the model gets worse on corrupted inputs: noise, bias field, rotation, intensity, spacing."""

    cases: Annotated[int, Field(ge=0)] = 2
    """Held-out images that are disturbed; 0: no sweep."""
    slices: Count = 6
    """Slices of each, evenly spaced over the head."""
    strengths: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.5, 1.0)
    """Shares of the strongest disturbance."""


class Uncertainty(Section):
    """Uncertainty by voxel, from the cycle error and from mirrored inputs, against the true error."""

    cases: Annotated[int, Field(ge=0)] = 2
    """Held-out images; 0: none."""
    slices: Count = 12
    """Slices of each, evenly spaced over the head."""
    calibration_cases: Annotated[int, Field(ge=0)] = 16
    """Held-out images with truth that the figure of a whole series is calibrated on, disturbed too; 0: none."""
