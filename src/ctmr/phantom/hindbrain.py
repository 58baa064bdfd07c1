"""Brainstem, cerebellum, the cisterns around them and the arteries of the skull base."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas
from .geometry import Space, Volume, intersection
from .surfaces import Surfaces, height_over_tentorium
from .tissue import Tissue


def paint_hindbrain(canvas: Canvas, space: Space, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Paint everything under the tentorium, and the spinal canal."""
    here = space.box(z=(-160, 16), y=(-30, 95), side=(0, 65))
    cavity = surfaces.cavity[here.window]
    canal = here.tube(
        [((-52.0, 26.0, 0.0), 15.0), ((-66.0, 29.0, 0.0), 11.0), ((-160.0, 31.0, 0.0), 10.0)], paired=False
    )
    canvas.paint(here, Tissue.DURA, here.coverage(canal + 1) * here.coverage(-here.z - 54))
    canvas.paint(here, Tissue.CSF, here.coverage(canal))

    stem = brainstem_depth(here)
    cerebellum = _cerebellum(here, cavity, stem)
    quadrigeminal = here.ellipsoid((0.0, 33.0, 0.0), (6.0, 7.0, 9.0))
    ambient = intersection(stem + np.float32(2.6), 2 - here.z, 2)
    canvas.paint(here, Tissue.CSF, here.coverage(np.minimum(np.maximum(quadrigeminal, ambient), cavity - 1)))
    _paint_cerebellum(canvas, here, cerebellum)
    _paint_brainstem(canvas, here, stem)
    fourth = here.ellipsoid((-33.0, 33.5, 0.0), (9.0, 3.6, 6.0))
    aqueduct = here.tube([((-25.0, 30.0, 0.0), 1.4), ((-4.0, 20.0, 0.0), 1.0)], paired=False)
    canvas.paint(here, Tissue.CSF, here.coverage(np.maximum(fourth, aqueduct)))
    _paint_sella(canvas, space, surfaces)
    _paint_arteries(canvas, space, surfaces, rng)


def brainstem_depth(here: Space) -> Volume:
    """Peduncles, midbrain, pons following the clivus, medulla, cord."""
    peduncles = here.tube([((2.0, 4.0, 9.0), 6.0), ((-11.0, 8.0, 6.5), 7.0)], blend=5)
    nodes = [((-8.0, 15.0, 0.0), 9.0), ((-18.0, 14.0, 0.0), 11.0), ((-31.0, 15.5, 0.0), 13.0)]
    nodes += [
        ((-42.0, 19.0, 0.0), 9.5),
        ((-54.0, 24.0, 0.0), 7.0),
        ((-68.0, 29.0, 0.0), 5.8),
        ((-160.0, 31.0, 0.0), 5.4),
    ]
    axis = here.tube(nodes, paired=False, blend=6)
    return np.maximum(axis, intersection(peduncles, 4 - here.z, 3))


def _paint_brainstem(canvas: Canvas, here: Space, stem: Volume) -> None:
    canvas.paint(here, Tissue.WHITE_MATTER, here.coverage(stem))
    # Pontine nuclei and reticular formation are interwoven with the tracts.
    core = here.coverage(stem - 3) * np.float32(0.4)
    canvas.paint(here, Tissue.DEEP_GREY, core * here.coverage(5 - here.z))
    colliculi = here.ellipsoid((-6.0, 25.0, 4.0), (5.0, 3.5, 4.0), paired=True)
    canvas.paint(here, Tissue.DEEP_GREY, here.coverage(colliculi) * 0.7)


def _cerebellum(here: Space, cavity: Volume, stem: Volume) -> Volume:
    below = -height_over_tentorium(here) - np.float32(1.4)
    lobes = here.ellipsoid((-33.0, 46.0, 0.0), (38.0, 44.0, 60.0))
    room = np.minimum(intersection(lobes, below, 3), cavity - np.float32(1.8))
    beside_stem = np.minimum(room, -stem - np.float32(1.0))
    behind_stem = np.float32(0.94) * (here.y - 16 - np.float32(0.12) * (here.z + 30))
    notch = np.float32(4.5) - np.hypot(here.x, (here.y - 84) * np.float32(0.8))
    vallecula = here.ellipsoid((-62.0, 46.0, 0.0), (12.0, 16.0, 5.0))
    return intersection(intersection(beside_stem, behind_stem, 4), -np.maximum(notch, vallecula), 3)


def _paint_cerebellum(canvas: Canvas, here: Space, cerebellum: Volume) -> None:
    inside = here.coverage(cerebellum)
    # Folia run around the horizontal fissure; their height over it, tilted and bent, is the phase.
    height = np.abs(here.z + 32 + np.float32(0.15) * (here.y - 50)) + np.float32(0.22) * np.abs(here.y - 46)
    phase = height + np.float32(1.6) * here.patch + np.float32(0.9) * here.ripple + np.float32(0.06) * here.side
    folia = np.abs(np.sin(phase * np.float32(np.pi / 7.5)))
    rim = 1 - np.clip((cerebellum - 8) / 6, 0, 1)
    canvas.paint(here, Tissue.CEREBELLAR_CORTEX, inside)
    blades = here.coverage(cerebellum - 3) * np.clip((folia - np.float32(0.55)) * 2, 0, np.float32(0.75))
    canvas.paint(here, Tissue.WHITE_MATTER, blades)
    core = here.ellipsoid((-34.0, 42.0, 20.0), (7.0, 13.0, 16.0), paired=True) + np.float32(1.5) * here.ripple
    canvas.paint(here, Tissue.WHITE_MATTER, here.coverage(core) * here.coverage(cerebellum - 3))
    dentate = here.sheet(np.abs(here.ellipsoid((-34.0, 43.0, 14.0), (5.0, 7.0, 6.0), paired=True)), 0.8)
    canvas.paint(here, Tissue.DEEP_GREY, dentate * inside * 0.6)
    clefts = np.clip((np.float32(0.3) - folia) * np.float32(2.6), 0, np.float32(0.75))
    canvas.paint(here, Tissue.CSF, inside * clefts * rim)


def _paint_sella(canvas: Canvas, space: Space, surfaces: Surfaces) -> None:
    here = space.box(z=(-36, -2), y=(-32, 8), side=(0, 22))
    cavity = surfaces.cavity[here.window]
    suprasellar = here.ellipsoid((-14.0, -8.0, 0.0), (4.5, 9.0, 11.0))
    canvas.paint(here, Tissue.CSF, here.coverage(np.minimum(suprasellar, cavity - 1)) * 0.9)
    pituitary = here.ellipsoid((-24.5, -11.0, 0.0), (3.5, 5.0, 6.5))
    stalk = here.tube([((-23.0, -10.0, 0.0), 1.2), ((-11.0, -7.0, 0.0), 1.4)], paired=False)
    canvas.paint(here, Tissue.NERVE, here.coverage(np.maximum(pituitary, stalk)))
    chiasm = here.tube([((-18.0, -18.0, 8.0), 1.9), ((-14.0, -10.0, 0.0), 2.2), ((-12.0, -2.0, 9.0), 1.9)])
    canvas.paint(here, Tissue.NERVE, here.coverage(chiasm) * 0.9)
    sinus = here.ellipsoid((-25.0, -10.0, 13.0), (6.0, 10.0, 4.5), paired=True)
    canvas.paint(here, Tissue.DURA, here.coverage(np.minimum(sinus, cavity + 1)) * 0.7)


def _paint_arteries(canvas: Canvas, space: Space, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Basilar, carotid and middle cerebral arteries: flow voids in the cisterns."""
    here = space.box(z=(-66, 8), y=(-32, 36), side=(0, 48))
    scale = rng.uniform(0.85, 1.15)
    basilar = here.tube([((-52.0, 14.5, 0.0), 1.5 * scale), ((-20.0, 0.5, 0.5), 1.6 * scale)], paired=False)
    carotid = here.tube(
        [
            ((-34.0, -2.0, 14.0), 2.3 * scale),
            ((-24.0, -14.0, 12.5), 2.2 * scale),
            ((-15.0, -9.0, 13.0), 1.9 * scale),
            ((-11.0, -8.0, 28.0), 1.4 * scale),
            ((-6.0, -12.0, 37.0), 1.1 * scale),
        ]
    )
    posterior = here.tube(
        [((-20.0, 1.0, 1.0), 1.2 * scale), ((-13.0, 8.0, 16.0), 1.1 * scale), ((-8.0, 26.0, 16.0), 1.0)]
    )
    vessel = np.maximum(np.maximum(basilar, carotid), posterior)
    canvas.paint(here, Tissue.BLOOD, here.coverage(vessel) * here.coverage(surfaces.cavity[here.window] + 8))
