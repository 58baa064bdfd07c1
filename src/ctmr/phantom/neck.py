"""Upper neck: pharynx and airway, cervical spine, vessels."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas
from .geometry import Space, Volume, intersection
from .skull import facial_support
from .surfaces import Surfaces
from .tissue import Tissue

# Middle of the arch of each vertebra; C1 (the atlas) is a ring without a body.
_VERTEBRAE_Z = {"C1": -69.0, "C2": -87.0, "C3": -106.0, "C4": -124.0}


def paint_neck(canvas: Canvas, space: Space, surfaces: Surfaces) -> None:
    """Paint the midline of the skull base and neck, from clivus to the lowest slice."""
    here = space.box(z=(-160, -22), y=(-50, 85), side=(0, 45))
    outside = facial_support(here, surfaces)
    clivus = here.tube([((-32.0, -3.0, 0.0), 6.0), ((-55.0, 8.0, 0.0), 4.5)], paired=False)
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(np.minimum(clivus, outside + 1)))
    canvas.paint(here, Tissue.DIPLOE, here.coverage(np.minimum(clivus - 2, outside - 1)))
    _paint_vertebrae(canvas, here)
    for nodes, radius in (
        ([(-130.0, 6.0, 24.0), (-60.0, 6.0, 26.0), (-40.0, 2.0, 24.0)], 3.0),
        ([(-130.0, 12.0, 30.0), (-60.0, 12.0, 32.0), (-44.0, 14.0, 28.0)], 4.2),
    ):
        vessel = here.tube([((z, y, x), radius) for z, y, x in nodes])
        canvas.paint(here, Tissue.BLOOD, here.coverage(np.minimum(vessel, outside)))

    pharynx = here.tube(
        [
            ((-50.0, -22.0, 0.0), 7.0),
            ((-62.0, -14.0, 0.0), 7.5),
            ((-84.0, -10.0, 0.0), 7.0),
            ((-140.0, -8.0, 0.0), 8.0),
        ],
        paired=False,
    )
    canvas.paint(here, Tissue.MUCOSA, here.coverage(pharynx + 2))
    soft_palate = here.sheet(np.abs(here.y + 15 + np.float32(0.35) * (here.z + 68)), 1.8)
    hanging = here.coverage(6 - np.abs(here.z + 70))
    canvas.paint(
        here,
        Tissue.AIRWAY,
        here.coverage(pharynx - np.float32(0.3) * here.ripple) * (1 - soft_palate * hanging),
    )


def _paint_vertebrae(canvas: Canvas, here: Space) -> None:
    for name, level in _VERTEBRAE_Z.items():
        slab = np.float32(7.5) - np.abs(here.z - level)
        bone = _vertebra(here, level, slab, has_body=name != "C1")
        canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(bone))
        canvas.paint(here, Tissue.DIPLOE, here.coverage(bone - np.float32(1.8)), texture=np.float32(0.1) * here.grain)
    dens = here.tube([((-84.0, 12.0, 0.0), 5.5), ((-64.0, 12.0, 0.0), 4.5)], paired=False)
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(dens))
    canvas.paint(here, Tissue.DIPLOE, here.coverage(dens - 2))


def _vertebra(here: Space, level: float, slab: Volume, *, has_body: bool) -> Volume:
    radius = np.sqrt((here.x / np.float32(1.2)) ** 2 + (here.y - 30) ** 2)
    arch = intersection(np.float32(3.2) - np.abs(radius - np.float32(14.5)), slab - np.float32(2), 2)
    transverse = here.tube([((level, 18.0, 15.0), 5.5), ((level, 20.0, 29.0), 3.4)])
    bone = np.maximum(arch, intersection(transverse, slab, 2))
    if has_body:
        body = here.ellipsoid((level, 12.0, 0.0), (10.0, 8.5, 11.5))
        spine = here.tube([((level, 44.0, 0.0), 3.8), ((level - 4, 60.0, 0.0), 3.6)], paired=False)
        bone = np.maximum(bone, np.maximum(intersection(body, slab, 2), spine))
    return bone
