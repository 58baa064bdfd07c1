"""Nose and paranasal sinuses: air behind bone, lined with mucosa."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas
from .face import orbit_depth
from .geometry import Point, Space, Volume, intersection
from .skull import facial_support
from .surfaces import Surfaces
from .tissue import Tissue


def paint_sinuses(canvas: Canvas, space: Space, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Paint maxillary, ethmoid, sphenoid and frontal sinuses and the nasal cavity."""
    here = space.box(z=(-75, 22), y=(-108, 5), side=(0, 50))
    skin = surfaces.skin[here.window]
    beyond_orbit = -orbit_depth(here, surfaces) - np.float32(1.5)
    outside_cavity = facial_support(here, surfaces)
    room = np.minimum(outside_cavity, skin - 7)

    def chamber(centre: Point, radii: Point, limit: Volume) -> Volume:
        varied = (radii[0] * rng.uniform(0.88, 1.12), radii[1] * rng.uniform(0.88, 1.12), radii[2])
        return np.minimum(here.ellipsoid(centre, varied, paired=centre[2] != 0) + np.float32(0.6) * here.ripple, limit)

    maxillary = chamber((-48.0, -54.0, 26.0), (16.0, 16.0, 13.0), np.minimum(room, beyond_orbit))
    _paint_chamber(canvas, here, maxillary, room, lining_mm=0.7 + rng.exponential(0.7))
    _paint_nose(canvas, here, skin, outside_cavity)
    ethmoid = chamber((-26.0, -47.0, 7.5), (10.0, 21.0, 8.0), np.minimum(room, beyond_orbit))
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(ethmoid + 1.2) * 0.6)
    cells = here.coverage(np.abs(here.grain) * 3 - np.float32(0.5))
    canvas.paint(here, Tissue.AIRWAY, here.coverage(ethmoid) * cells)
    sphenoid = chamber((-37.0, -20.0, 0.0), (9.0, 13.0, 14.0), room)
    septum = here.coverage(np.abs(here.x - 3 * here.patch) - np.float32(0.6))
    _paint_chamber(canvas, here, sphenoid, room, lining_mm=0.6, septum=septum)
    # Frontal sinuses vary more than any other: from two dents to half the forehead.
    extent = rng.uniform(0.55, 1.2)
    frontal = chamber((-5.0, -79.0, 11.0), (12 * extent, 5.0 * extent, 11.0 * extent), room)
    # They lie between the tables of the frontal bone.
    frontal = np.minimum(frontal, surfaces.skull[here.window] - np.float32(1.5))
    _paint_chamber(canvas, here, frontal, room, lining_mm=0.5)


def _paint_chamber(
    canvas: Canvas, here: Space, air: Volume, room: Volume, *, lining_mm: float, septum: Volume | None = None
) -> None:
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(np.minimum(air + np.float32(lining_mm + 1.7), room + 1)))
    canvas.paint(here, Tissue.MUCOSA, here.coverage(air + np.float32(lining_mm)))
    canvas.paint(here, Tissue.AIRWAY, here.coverage(air) if septum is None else here.coverage(air) * septum)


def _paint_nose(canvas: Canvas, here: Space, skin: Volume, outside_cavity: Volume) -> None:
    """Nasal cavity with septum and turbinates, open at the nostrils and towards the pharynx."""
    hollow = here.ellipsoid((-47.0, -56.0, 0.0), (19.0, 36.0, 13.5))
    hollow = intersection(intersection(hollow, skin - 4, 2), outside_cavity, 2)
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(hollow + np.float32(1.8)) * 0.6)
    canvas.paint(here, Tissue.MUCOSA, here.coverage(hollow + np.float32(0.5)))
    curl = np.abs(here.side - 7 - 2 * np.sin((here.z + 40) * np.float32(0.35)))
    shelf = np.abs(here.z + 46 + 4 * np.sin(here.side * np.float32(0.5)))
    turbinate = np.minimum(curl, shelf) - 2 - np.float32(0.4) * here.ripple
    passage = here.coverage(hollow - 1) * here.coverage(turbinate) * here.coverage(here.side - np.float32(1.4))
    canvas.paint(here, Tissue.AIRWAY, passage)
    tip = np.minimum(here.ellipsoid((-52.0, -94.0, 0.0), (9.0, 10.0, 11.0)), skin - np.float32(2.2))
    canvas.paint(here, Tissue.CARTILAGE, here.coverage(tip) * 0.75)
    septum = here.sheet(np.abs(here.x + np.float32(1.4) * np.sin((here.y + 50) * np.float32(0.07))), 0.7)
    bony = here.coverage(-here.y - 72)
    canvas.paint(here, Tissue.CORTICAL_BONE, septum * here.coverage(hollow) * (1 - bony) * 0.7)
    canvas.paint(here, Tissue.CARTILAGE, septum * here.coverage(hollow) * bony)
    nostril = here.tube([((-63.0, -92.0, 6.0), 2.6), ((-56.0, -86.0, 5.0), 3.0), ((-53.0, -74.0, 5.0), 3.0)])
    canvas.paint(here, Tissue.AIRWAY, here.coverage(nostril))
