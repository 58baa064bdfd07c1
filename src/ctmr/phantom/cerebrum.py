"""The cerebral hemispheres: lobes, folds, cortex, deep nuclei and ventricles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas
from .geometry import NoiseLattice, Space, Volume, intersection, step, union, wave_noise
from .hindbrain import brainstem_depth
from .surfaces import Surfaces, height_over_tentorium, petrous_ridge_y
from .tissue import Tissue

# Folding noise is read on a shell of this radius, so that sulci run perpendicular to the brain's surface.
_SHELL_MM = 62.0
# Share of the radial distance that the shell keeps: 0 would draw straight spokes down to the ventricles.
_SHELL_SLOPE = 0.5


@dataclass(frozen=True)
class Cerebrum:
    """Parts of a painted cerebrum that other organs need.

    Attributes
    ----------
    space
        The box of all volumes below.
    above_tentorium
        Depth above the tentorium.
    callosal
        Depth inside the block of corpus callosum, septum and diencephalon, where no fissure divides the halves.
    parenchyma
        Depth inside the cerebrum's hull, sulci included.
    white
        Depth inside white matter.
    fissure
        Distance from the wavy midline.
    """

    space: Space
    above_tentorium: Volume
    callosal: Volume
    parenchyma: Volume
    white: Volume
    fissure: Volume


def paint_cerebrum(
    canvas: Canvas, space: Space, surfaces: Surfaces, atrophy: float, rng: np.random.Generator
) -> Cerebrum:
    """Paint meninges, CSF and both hemispheres.

    `atrophy`, 0 to 1, widens sulci, the subarachnoid space and the ventricles together.
    """
    inside = space.box(z=(-72, 90), y=(-95, 95), side=(0, 80))
    depth_in_cavity = surfaces.cavity[inside.window]
    canvas.paint(inside, Tissue.DURA, inside.coverage(depth_in_cavity))
    canvas.paint(inside, Tissue.CSF, inside.coverage(depth_in_cavity - np.float32(0.9)))

    brain = inside.box(z=(-48, 90))
    cavity = surfaces.cavity[brain.window]
    above = height_over_tentorium(brain)
    pial_gap = np.float32(1.9 + 1.3 * atrophy) + np.float32(0.3) * brain.patch
    hull = _hull(brain, cavity - pial_gap, above)

    callosal = _callosal_block(brain)
    wavy_x = brain.x + np.float32(1.3) * brain.ripple + np.float32(0.6) * brain.patch
    fissure = np.sqrt(wavy_x**2 + np.maximum(callosal, 0) ** 2)
    # Sulci of the medial wall are shallower than those of the vault, and end at the cingulate gyrus.
    from_medial_wall = np.abs(wavy_x) + 5 + 4 * np.maximum(callosal + 4, 0)
    from_vault = brain.ellipsoid((6.0, 0.0, 0.0), (65.0, 82.0, 66.0)) - 3
    sulci = _sulci(brain, np.minimum(from_vault, from_medial_wall), np.minimum(hull, from_medial_wall), rng)
    sylvian, insula = _sylvian(brain)
    course = callosal + 12 + 2 * brain.patch + 2 * brain.ripple
    cingulate = np.hypot(course, np.maximum(np.abs(wavy_x) - 9, 0))
    # Below the genu the cingulate sulcus ends.
    cingulate = cingulate + np.maximum(-6 - brain.z, 0)

    fluid = [(sulci, 0.36 + 0.36 * atrophy), (sylvian, 1.1 + 1.2 * atrophy), (insula, 0.7 + 0.8 * atrophy)]
    fluid += [(fissure, 0.6 + 0.5 * atrophy), (cingulate, 0.5 + 0.4 * atrophy)]
    to_pia = hull
    for distance, half_width in fluid:
        to_pia = np.minimum(to_pia, distance - np.float32(half_width / 2))
    cortex_mm = np.float32(rng.uniform(2.7, 3.2)) + np.float32(0.2) * brain.patch
    white = to_pia - cortex_mm

    in_hull = brain.coverage(hull)
    canvas.paint(brain, Tissue.GREY_MATTER, in_hull)
    canvas.paint(brain, Tissue.WHITE_MATTER, brain.coverage(white) * in_hull, texture=np.float32(0.012) * brain.ripple)
    _paint_deep_grey(canvas, brain, in_hull)
    for distance, half_width in fluid:
        canvas.paint(brain, Tissue.CSF, brain.sheet(distance, half_width) * in_hull * 0.95)
    _paint_ventricles(canvas, brain, 0.5 + 0.75 * rng.beta(2, 2.5) + 0.4 * atrophy, rng)
    return Cerebrum(brain, above, callosal, hull, white, fissure)


def _hull(brain: Space, inner_surface: Volume, above: Volume) -> Volume:
    """Hemispheres without folds: above the tentorium, around the midbrain and its cistern."""
    hull = intersection(inner_surface, above - np.float32(1.2), 3)
    midbrain = intersection(brainstem_depth(brain) + np.float32(2.4), -3 - brain.z, 3)
    hull = intersection(hull, -midbrain, 2)
    # Chiasm and pituitary, not brain, fill the middle between the temporal poles.
    sellar = np.minimum(np.minimum(9 - brain.side, -16 - brain.z), np.minimum(brain.y + 24, 3 - brain.y))
    return intersection(hull, -sellar, 4)


def _callosal_block(brain: Space) -> Volume:
    ellipse = brain.ellipsoid((6.0, 2.0, 0.0), (22.0, 38.0, 1000.0))
    # In front of the diencephalon, under the genu, the hemispheres are apart again.
    behind_genu = np.maximum(brain.y + 20, 0)
    under_genu: Volume = (brain.z + 5 + np.float32(0.9) * behind_genu).astype(np.float32, copy=False)
    # Behind the pineal, under the splenium, the cistern takes over.
    before_pineal = np.maximum(24 - brain.y, 0)
    under_splenium = brain.z - 3 + 4 * before_pineal
    return intersection(intersection(ellipse, under_genu, 4), under_splenium, 4)


def _sulci(brain: Space, primary_depth: Volume, secondary_depth: Volume, rng: np.random.Generator) -> Volume:
    """Distance from the middle of the nearest sulcus: zero surfaces of noise, to a depth of about 15 mm.

    Both depths count from the medial wall too: with the vault alone the sulci would vanish beside the
    interhemispheric fissure and midline slices would show a smooth wedge. Only the secondary sulci reach in from
    the lobes' lower surface, where the primary ones would be spokes.
    """
    wavelength_mm = float(rng.uniform(20, 23))
    y, z = brain.y - 2, brain.z - 2
    radius = np.sqrt(brain.x**2 + y**2 + z**2) + np.float32(1e-3)
    project = (np.float32(_SHELL_MM * (1 - _SHELL_SLOPE)) + np.float32(_SHELL_SLOPE) * radius) / radius
    # A little torsion, or every fold would point at the origin. The lateral shift parts the hemispheres' patterns.
    twist = 2 * brain.patch
    lateral = brain.x * project + np.float32(40) * np.sign(brain.x)
    shell = (z * project + twist, y * project - twist, lateral)
    nearest: Volume | None = None
    # Primary sulci are deep; secondary ones, shallow, divide the gyri that the first would leave too broad.
    for depth, reach_mm in ((primary_depth, 15.0), (secondary_depth, 8.0)):
        main = wave_noise(rng, wavelength_mm, bandwidth=0.28, points=96)
        detail = wave_noise(rng, 12.5, bandwidth=0.3, points=96)
        folds = NoiseLattice(main.values + np.float32(0.3) * detail.values).at_points(*shell)
        reach = np.float32(reach_mm) * (1 + np.float32(0.2) * brain.patch)
        distance = np.hypot(folds / _slope(folds, brain.spacing_mm), np.maximum(depth - reach, 0))
        nearest = distance if nearest is None else np.minimum(nearest, distance)
    assert nearest is not None
    return nearest


def _slope(folds: Volume, spacing_mm: float) -> Volume:
    """Steepness per millimetre, capped to what the noise itself has: more comes from the hemispheres' seam."""
    squared = np.zeros_like(folds)
    for axis in range(3):
        if folds.shape[axis] > 1:
            squared += np.gradient(folds, spacing_mm, axis=axis) ** 2
    return np.clip(np.sqrt(squared), 0.06, 0.7)


def _sylvian(brain: Space) -> tuple[Volume, Volume]:
    """Distances from the lateral fissure and from the cistern over the insula at its bottom."""
    level = -5 + np.float32(0.36) * (brain.y + 18) + np.float32(1.5) * brain.patch
    beyond = np.hypot(np.maximum(35 - brain.side, 0), np.maximum(np.abs(brain.y - 2) - 34, 0))
    fissure = np.hypot(brain.z - level, beyond)
    rim = np.hypot(np.maximum(np.abs(brain.z - level - 3) - 9, 0), np.maximum(np.abs(brain.y + 1) - 22, 0))
    insula = np.hypot(brain.side - 37 - np.float32(0.4) * brain.ripple, rim)
    return fissure, insula


def _paint_deep_grey(canvas: Canvas, brain: Space, in_hull: Volume) -> None:
    thalamus = brain.ellipsoid((8.0, 9.0, 11.0), (9.0, 14.5, 8.5), paired=True)
    head_of_caudate = [((8.0, -25.0, 13.0), 6.0), ((20.0, -12.0, 15.0), 3.8), ((24.0, 10.0, 20.0), 2.4)]
    nuclei = np.maximum(thalamus, brain.tube(head_of_caudate))
    putamen = brain.ellipsoid((5.0, -4.0, 27.5), (10.0, 16.0, 4.8), paired=True)
    canvas.paint(brain, Tissue.DEEP_GREY, brain.coverage(np.maximum(nuclei, putamen)))
    pallidum = brain.ellipsoid((4.0, -1.0, 21.0), (6.0, 9.0, 3.4), paired=True)
    # Myelinated fibres cross the pallidum: halfway to white matter.
    canvas.paint(brain, Tissue.DEEP_GREY, brain.coverage(pallidum) * 0.5)
    hypothalamus = brain.ellipsoid((-7.0, -2.0, 0.0), (5.0, 10.0, 8.0))
    canvas.paint(brain, Tissue.DEEP_GREY, brain.coverage(hypothalamus) * in_hull)
    hippocampus = brain.tube([((-20.0, -8.0, 26.0), 7.0), ((-20.0, 2.0, 27.0), 5.0), ((-10.0, 22.0, 25.0), 3.8)])
    canvas.paint(brain, Tissue.GREY_MATTER, brain.coverage(hippocampus) * in_hull)


def _paint_ventricles(canvas: Canvas, brain: Space, size: float, rng: np.random.Generator) -> None:
    lateral = brain.tube(
        [
            ((8.0, -36.0, 8.0), 3.6 * size),
            ((20.0, -14.0, 7.5), 4.4 * size),
            ((23.0, 10.0, 10.0), 4.4 * size),
            ((15.0, 32.0, 19.0), 6.0 * size),
            ((5.0, 40.0, 25.0), 4.6 * size),
        ]
    )
    occipital = brain.tube([((12.0, 36.0, 21.0), 4.2 * size), ((7.0, 60.0, 22.0), 1.6 * size)])
    temporal = brain.tube(
        [
            ((5.0, 39.0, 25.0), 3.8 * size),
            ((-11.0, 18.0, 33.0), 1.9 * size),
            ((-17.0, -4.0, 31.0), 1.6 * size),
        ]
    )
    septum = brain.coverage(brain.side - np.float32(0.7))
    canvas.paint(brain, Tissue.CSF, brain.coverage(union(union(lateral, occipital, 2), temporal, 2)) * septum)
    third = brain.ellipsoid((2.0, 5.0, 0.0), (10.0, 14.0, 1.3 + 1.2 * size))
    adhesion = brain.ellipsoid((7.0, 3.0, 0.0), (3.0, 3.5, 6.0))
    canvas.paint(brain, Tissue.CSF, brain.coverage(third) * (1 - brain.coverage(adhesion)))
    # Choroid plexus and pineal calcify with age, in some people not at all.
    plexus = brain.ellipsoid((13.0, 34.0, 19.5), (2.4, 3.6, 2.4), paired=True)
    canvas.paint(brain, Tissue.CALCIFICATION, brain.coverage(plexus) * np.float32(rng.uniform(0.1, 0.9)))
    pineal = brain.ellipsoid((7.0, 27.0, 0.0), (2.3, 2.8, 2.3))
    canvas.paint(brain, Tissue.DEEP_GREY, brain.coverage(pineal + 1))
    canvas.paint(brain, Tissue.CALCIFICATION, brain.coverage(pineal) * np.float32(rng.uniform(0, 0.9)))


def paint_dural_folds(canvas: Canvas, cerebrum: Cerebrum, surfaces: Surfaces) -> None:
    """Falx, tentorium and the venous sinuses along their edges."""
    brain = cerebrum.space
    cavity = surfaces.cavity[brain.window]
    within = brain.coverage(cavity - np.float32(0.5))
    # The falx hangs down to a few millimetres above the corpus callosum and ends at the crista galli.
    hanging = brain.coverage(-cerebrum.callosal - 6) * step(brain.z + 6, 2) * step(cerebrum.above_tentorium, 1)
    canvas.paint(brain, Tissue.DURA, brain.sheet(cerebrum.fissure, 0.45) * within * hanging * np.float32(0.85))
    behind_notch = step(brain.y - 14 - np.float32(0.4) * (24 - brain.side), 2)
    behind_ridge = step(brain.y - petrous_ridge_y(brain), 2)
    tentorium = brain.sheet(np.abs(cerebrum.above_tentorium), 0.5)
    canvas.paint(brain, Tissue.DURA, tentorium * within * behind_notch * behind_ridge * 0.7)

    sagittal = np.float32(3.6) - np.hypot(brain.x, cavity - np.float32(1.5))
    sagittal = np.minimum(sagittal, np.where(brain.z > -12, np.maximum(brain.y + 50, brain.z - 40), np.float32(-9)))
    transverse = np.float32(3.6) - np.hypot(cerebrum.above_tentorium, cavity - 2)
    transverse = np.minimum(transverse, np.minimum(brain.y - 30, 50 - brain.side))
    straight = brain.tube([((5.0, 44.0, 0.0), 1.8), ((-10.0, 78.0, 0.0), 2.0)], paired=False)
    canvas.paint(brain, Tissue.BLOOD, brain.coverage(np.maximum(np.maximum(sagittal, transverse), straight)) * within)
