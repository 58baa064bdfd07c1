"""Image steps: one row a kind. A step is read, run, recorded in the grid and served through its row alone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from ctmr.imaging.steps.base import ImageStep

REGISTRY: dict[str, str] = {
    "head_mask": "ctmr.imaging.steps.head_mask:HeadMask",
    "table_removal": "ctmr.imaging.steps.table_removal:TableRemoval",
    "bias_field": "ctmr.imaging.steps.bias_field:BiasField",
    "registration": "ctmr.imaging.steps.registration:Registration",
}
"""Kind → module and class of its `ImageStep`; imported when a recipe has one."""


def step_class(kind: str) -> type[ImageStep]:
    """Return the class of a kind of step; KeyError when there is none."""
    module, _, name = REGISTRY[kind].partition(":")
    found: type[ImageStep] = getattr(import_module(module), name)
    return found


def _of_its_kind(value: Any) -> Any:
    if isinstance(value, ImageStep):
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in REGISTRY:
        raise ValueError(f"a step is a mapping with a kind, one of {', '.join(REGISTRY)}; found kind {kind!r}")
    return step_class(kind).model_validate(value)


AnyStep = Annotated[SerializeAsAny[ImageStep], BeforeValidator(_of_its_kind)]
"""Field of a registered step: read by its ``kind``, written with all of its settings."""
