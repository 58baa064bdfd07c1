"""Recipe section of what a served model does not answer, or only with a warning."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from ctmr.recipe.base import Positive, Section


class UncertaintyLimits(Section):
    """Limits of the expected error of a series; they hold only where evaluate calibrated the model's uncertainty."""

    flag_above_hu: Positive | None = None
    """Above it a finding says so (output unit for pictures); ``null``: never."""
    refuse_above_hu: Positive | None = None
    """Above it there is no answer; ``null``: never."""

    @model_validator(mode="after")
    def _flags_before_it_refuses(self) -> Self:
        if self.flag_above_hu and self.refuse_above_hu and self.flag_above_hu > self.refuse_above_hu:
            raise ValueError(f"flag_above_hu {self.flag_above_hu:g} is above refuse_above_hu {self.refuse_above_hu:g}")
        return self
