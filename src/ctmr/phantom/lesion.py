"""Lesions of the cerebrum: one at random with oedema, or balls of known size inserted for a test of detection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas
from .cerebrum import Cerebrum
from .geometry import intersection
from .tissue import Tissue

LesionKind: TypeAlias = Literal["tumour", "haemorrhage", "calcified"]

_TISSUE: dict[LesionKind, Tissue] = {
    "tumour": Tissue.TUMOUR,
    "haemorrhage": Tissue.HAEMORRHAGE,
    "calcified": Tissue.CALCIFICATION,
}


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes
    ----------
    kind
        ``"tumour"`` or ``"haemorrhage"``; inserted ones also ``"calcified"``.
    centre_mm
        Centre along D, H and W, in millimetres from the centre of the first voxel.
    radius_mm
        Radius without oedema.
    """

    kind: LesionKind
    centre_mm: tuple[float, float, float]
    radius_mm: float


def paint_lesion(canvas: Canvas, cerebrum: Cerebrum, rng: np.random.Generator) -> Lesion:
    """Paint a lesion at a random place in one hemisphere and say where it is."""
    brain = cerebrum.space
    kind: LesionKind = "tumour" if rng.random() < 0.5 else "haemorrhage"
    hemisphere = 1.0 if rng.random() < 0.5 else -1.0
    z, y, x = rng.uniform(14, 38), rng.uniform(-35, 40), hemisphere * rng.uniform(24, 38)
    radius = rng.uniform(7, 14)
    distance = np.sqrt((brain.x - x) ** 2 + (brain.y - y) ** 2 + ((brain.z - z) * np.float32(1.1)) ** 2)
    nearest = np.unravel_index(int(np.argmin(distance)), distance.shape)
    index = [int(i) + w.start for i, w in zip(nearest, brain.window, strict=True)]

    depth = np.float32(radius) - distance + np.float32(1.4) * brain.ripple + np.float32(1.2) * brain.patch
    # Oedema spreads along white matter and spares the cortex.
    spread = np.float32(radius * (0.65 if kind == "tumour" else 0.35)) + np.float32(1.5) * brain.ripple
    oedema = intersection(depth + spread, cerebrum.white + np.float32(0.5), 2)
    canvas.paint(brain, Tissue.OEDEMA, brain.coverage(oedema) * 0.85)
    core = brain.coverage(intersection(depth, cerebrum.parenchyma - 1, 2))
    canvas.paint(brain, _TISSUE[kind], core, texture=np.float32(0.06) * brain.grain)
    if kind == "tumour":
        canvas.paint(brain, Tissue.CSF, brain.coverage(depth - np.float32(0.6 * radius)) * 0.8)
    centre = (index[0] * brain.spacing_mm, index[1] * brain.spacing_mm, index[2] * brain.spacing_mm)
    return Lesion(kind, centre, float(radius))


def insert_lesion(
    canvas: Canvas, cerebrum: Cerebrum, kind: LesionKind, centre: tuple[int, int, int], radius_mm: float
) -> NDArray[np.bool_]:
    """Paint a ball of one tissue into the cerebrum, without oedema, and return the voxels that it fills.

    Parameters
    ----------
    canvas
        Painted over.
    cerebrum
        Of the same subject; the ball ends at its surface.
    kind
        Which tissue.
    centre
        Voxel in the box of ``cerebrum.space``.
    radius_mm
        Of the ball.

    Returns
    -------
    numpy.ndarray
        ``[D, H, W]`` bool of the whole canvas: at least half filled.
    """
    brain = cerebrum.space
    axes = [
        (np.arange(count, dtype=np.float32) - at) * np.float32(brain.spacing_mm)
        for count, at in zip(brain.z.shape, centre, strict=True)
    ]
    d, h, w = np.meshgrid(*axes, indexing="ij", sparse=True)
    depth = np.float32(radius_mm) - np.sqrt(d**2 + h**2 + w**2)
    share = brain.coverage(intersection(depth, cerebrum.parenchyma, 1))
    canvas.paint(brain, _TISSUE[kind], share)
    filled = np.zeros(canvas.labels.shape, dtype=bool)
    filled[brain.window] = share >= 0.5
    return filled
