"""An optional lesion of the cerebral white matter: a tumour with oedema, or a haemorrhage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .canvas import Canvas
from .cerebrum import Cerebrum
from .geometry import intersection
from .tissue import Tissue

LesionKind: TypeAlias = Literal["tumour", "haemorrhage"]


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes
    ----------
    kind
        ``"tumour"`` or ``"haemorrhage"``.
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
    tissue = Tissue.TUMOUR if kind == "tumour" else Tissue.HAEMORRHAGE
    canvas.paint(brain, tissue, core, texture=np.float32(0.06) * brain.grain)
    if kind == "tumour":
        canvas.paint(brain, Tissue.CSF, brain.coverage(depth - np.float32(0.6 * radius)) * 0.8)
    centre = (index[0] * brain.spacing_mm, index[1] * brain.spacing_mm, index[2] * brain.spacing_mm)
    return Lesion(kind, centre, float(radius))
