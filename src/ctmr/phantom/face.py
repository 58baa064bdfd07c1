"""Jaws, teeth, cheekbones and orbits."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas
from .geometry import Space, Volume, intersection
from .skull import facial_support
from .surfaces import EYE_CENTRE, Surfaces
from .tissue import Tissue


def paint_face(canvas: Canvas, space: Space, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Paint everything bony in front of the skull base, with the chewing muscles around it."""
    here = space.box(z=(-140, 5), y=(-115, 45), side=(0, 90))
    skin = surfaces.skin[here.window]
    _paint_chewing_muscles(canvas, here, skin)
    _paint_cheekbones(canvas, here, skin)
    _paint_jaws(canvas, here, skin, rng)


def orbit_depth(space: Space, surfaces: Surfaces) -> Volume:
    """Cone-shaped orbits between frontal lobe, nose and cheek."""
    nodes = [((-24.0, -68.0, 31.5), 16.2), ((-24.0, -52.0, 27.5), 15.5), ((-24.0, -36.0, 20.0), 9.0)]
    cone = space.tube([*nodes, ((-23.0, -20.0, 12.5), 3.0)], blend=8)
    return intersection(cone, facial_support(space, surfaces), 2)


def paint_orbits(canvas: Canvas, space: Space, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Orbital walls and fat, globe with lens, the four straight muscles, optic nerve, lids."""
    here = space.box(z=(-50, 5), y=(-95, -5), side=(0, 60))
    skin = surfaces.skin[here.window]
    orbit = orbit_depth(here, surfaces)
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(intersection(orbit + 2, skin - 9, 3)))
    canvas.paint(here, Tissue.FAT, here.coverage(intersection(orbit, skin - 2.5, 2)))

    rim = here.tube([((-10.0, -64.0, 46.0), 4.0), ((-5.0, -75.0, 31.0), 4.2), ((-8.0, -81.0, 14.0), 4.2)])
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(intersection(rim, skin - 5, 2)))

    z, y, lateral = EYE_CENTRE
    for dz, dx in ((8.5, 0.0), (-8.5, 0.0), (0.0, 8.5), (0.0, -8.5)):
        insertion = ((z + dz * 1.25, y + 1, lateral + dx * 1.25), 1.3)
        belly = ((z + dz * 0.8, y + 16, lateral - 5 + dx * 0.8), 2.4)
        origin = ((-22.0, -22.0, 13.0), 1.2)
        canvas.paint(here, Tissue.MUSCLE, here.coverage(here.tube([insertion, belly, origin])))
    nerve = here.tube([((z, y + 11, lateral - 1), 2.0), ((z, -35.0, 21.0), 1.9), ((-22.0, -16.0, 8.0), 2.0)])
    canvas.paint(here, Tissue.NERVE, here.coverage(nerve))

    radius = rng.uniform(11.8, 12.8)
    globe = here.ellipsoid(EYE_CENTRE, (radius, radius, radius), paired=True)
    lid_plate = here.ellipsoid((z, y - 13.5, lateral), (12.0, 6.0, 16.0), paired=True)
    lids = np.minimum(intersection(lid_plate, skin, 2), -globe - np.float32(0.8))
    canvas.paint(here, Tissue.SKIN, here.coverage(lids) * 0.85)
    canvas.paint(here, Tissue.MUCOSA, here.coverage(globe + 1.0))
    canvas.paint(here, Tissue.VITREOUS, here.coverage(globe - np.float32(0.3)))
    canvas.paint(here, Tissue.LENS, here.coverage(here.ellipsoid((z, y - 9, lateral), (4.4, 2.3, 4.4), paired=True)))


def _paint_chewing_muscles(canvas: Canvas, here: Space, skin: Volume) -> None:
    masseter = here.ellipsoid((-72.0, -12.0, 53.0), (26.0, 17.0, 8.0), paired=True)
    pterygoid = here.tube([((-40.0, -16.0, 24.0), 6.0), ((-72.0, -2.0, 43.0), 6.0)])
    chewing = np.minimum(np.maximum(masseter, pterygoid), skin - 5)
    canvas.paint(here, Tissue.MUSCLE, here.coverage(chewing))
    buccal = here.ellipsoid((-60.0, -40.0, 42.0), (16.0, 15.0, 8.0), paired=True)
    canvas.paint(here, Tissue.FAT, here.coverage(buccal) * 0.9)
    parotid = intersection(here.ellipsoid((-64.0, 14.0, 56.0), (22.0, 13.0, 10.0), paired=True), skin - 5, 2)
    canvas.paint(here, Tissue.GLAND, here.coverage(parotid), texture=np.float32(0.06) * here.grain)


def _paint_cheekbones(canvas: Canvas, here: Space, skin: Volume) -> None:
    body = ((-39.0, -62.0, 42.0), 5.5)
    arch = here.tube([body, ((-38.0, -48.0, 56.0), 4.0), ((-34.0, -22.0, 66.0), 2.6), ((-32.0, 0.0, 66.0), 3.2)])
    lateral_rim = here.tube([body, ((-24.0, -56.0, 50.0), 3.4), ((-8.0, -62.0, 46.0), 4.2)])
    cheekbone = intersection(np.maximum(arch, lateral_rim), skin - np.float32(4.5), 2)
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(cheekbone))
    canvas.paint(here, Tissue.DIPLOE, here.coverage(cheekbone - 2))
    nasal_bone = here.tube([((-18.0, -80.0, 3.0), 2.2), ((-36.0, -90.0, 3.0), 1.6)])
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(np.minimum(nasal_bone, skin - 3)))


def _paint_jaws(canvas: Canvas, here: Space, skin: Volume, rng: np.random.Generator) -> None:
    maxilla = intersection(here.ellipsoid((-67.0, -52.0, 0.0), (4.5, 30.0, 30.0)), skin - 8, 3)
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(maxilla) * 0.8, texture=np.float32(0.1) * here.grain)
    pterygoid_plates = here.tube([((-34.0, -18.0, 13.0), 1.8), ((-64.0, -20.0, 14.0), 1.6)])
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(pterygoid_plates))

    condyle, angle = ((-38.0, 4.0, 50.0), 4.0), ((-94.0, -12.0, 46.0), 5.0)
    mandible = here.tube([condyle, ((-66.0, -6.0, 49.0), 4.2), angle, ((-102.0, -58.0, 27.0), 6.5)])
    chin = here.tube([((-102.0, -58.0, 27.0), 6.5), ((-104.0, -72.0, 10.0), 7.0), ((-104.0, -73.0, 0.0), 7.0)])
    coronoid = here.tube([((-48.0, -22.0, 51.0), 2.2), ((-68.0, -12.0, 49.0), 3.5)])
    mandible = np.maximum(np.maximum(mandible, coronoid), intersection(chin, skin - 5, 2))
    mandible = np.minimum(mandible, skin - 4)
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(mandible))
    canvas.paint(here, Tissue.DIPLOE, here.coverage(mandible - np.float32(2.4)))

    tongue = here.ellipsoid((-89.0, -42.0, 0.0), (15.0, 30.0, 22.0))
    canvas.paint(here, Tissue.MUSCLE, here.coverage(tongue), texture=np.float32(0.1) * here.grain)
    # Between tongue and palate lies a thin film of air.
    mouth = here.sheet(np.abs(here.z + 73 + np.float32(0.004) * (here.y + 42) ** 2), 0.8)
    canvas.paint(here, Tissue.AIRWAY, mouth * here.coverage(here.ellipsoid((-74.0, -44.0, 0.0), (8.0, 26.0, 17.0))))
    _paint_teeth(canvas, here, rng)


def _paint_teeth(canvas: Canvas, here: Space, rng: np.random.Generator) -> None:
    """Two rows along a dental arch, each in an alveolar ridge, with gaps between crowns."""
    radius = np.sqrt((here.x / 25) ** 2 + ((here.y + 44) / 31) ** 2)
    on_arch = 3 - np.abs(radius - 1) * 27
    front = -(here.y + 30)
    angle = np.arctan2(here.x, -(here.y + 44))
    crowns = np.float32(0.3) + np.float32(0.7) * (np.cos(angle * 17 + rng.uniform(0, 6)) > np.float32(-0.65))
    for crown_z, ridge_z in ((-77.5, -69.0), (-86.5, -95.0)):
        ridge = intersection(intersection(on_arch + 2.5, 6 - np.abs(here.z - ridge_z), 2), front, 2)
        canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(ridge) * 0.75)
        crown = intersection(intersection(on_arch, np.float32(4) - np.abs(here.z - crown_z), 2), front, 2)
        canvas.paint(here, Tissue.TOOTH, here.coverage(crown) * crowns)
