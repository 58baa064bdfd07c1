"""Interface of the volume model: names, types and shapes of what goes in and comes out, as Triton declares them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ctmr.imaging.storage_types import STORAGE_DTYPE
from ctmr.imaging.volume import Unit
from ctmr.serving.export import ServedSpec


class Tensor(NamedTuple):
    """One input or output; -1 is any extent."""

    name: str
    triton_type: str
    dims: tuple[int, ...]


IMAGE, IMAGE_FP32, SHAPE = "image", "image_fp32", "shape"
"""Voxels in a row and their ``[D, H, W]``. As axes of the tensor itself two negative extents would agree with its
bytes, pass Triton's own check, and end the process behind the model."""
AFFINE, SPACING, SOURCE = "affine", "spacing", "source"
ON_GRID = "volume"
"""``[C, D, H, W]`` that lies on the model's grid already, in its storage type: canaries and load tests."""
TRANSLATION, FINDINGS, UNCERTAINTY, SERIES_UNCERTAINTY = "translation", "findings", "uncertainty", "series_uncertainty"
VERSION, SPEC = "generator_version", "spec"


def triton_type(dtype: np.dtype[Any]) -> str:
    """Return Triton's name of a NumPy type in a request, ``FP32`` for float32."""
    return {"f": "FP", "i": "INT", "u": "UINT"}[dtype.kind] + str(8 * dtype.itemsize)


def image_dtype(unit: Unit) -> np.dtype[Any]:
    """Return the type of the input `image`: signed 16 bits, or 8 bits for pictures."""
    return STORAGE_DTYPE[unit] if unit is Unit.GREY8 else np.dtype(np.int16)


def inputs(spec: ServedSpec) -> list[Tensor]:
    """Return the inputs of a volume model; each may be left out."""
    return [
        Tensor(IMAGE, triton_type(image_dtype(spec.source.unit)), (-1,)),
        Tensor(IMAGE_FP32, "FP32", (-1,)),
        Tensor(SHAPE, "INT64", (-1,)),
        Tensor(AFFINE, "FP64", (4, 4)),
        Tensor(SPACING, "FP64", (3,)),
        Tensor(SOURCE, "UINT8", (-1,)),
        Tensor(ON_GRID, triton_type(STORAGE_DTYPE[spec.source.unit]), (spec.channels, -1, *spec.grid.size)),
    ]


def outputs(spec: ServedSpec) -> list[Tensor]:
    """Return the outputs of a volume model; texts are UTF-8 JSON in bytes."""
    return [
        Tensor(TRANSLATION, triton_type(STORAGE_DTYPE[spec.target.unit]), (-1, -1, -1)),
        Tensor(FINDINGS, "UINT8", (-1,)),
        Tensor(UNCERTAINTY, "FP32", (-1, -1, -1)),
        Tensor(SERIES_UNCERTAINTY, "UINT8", (-1,)),
        Tensor(VERSION, "INT64", (1,)),
        Tensor(SPEC, "UINT8", (-1,)),
    ]
