"""Scalp soft tissue, vault and base of the skull, petrous bone and mastoid cells."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas
from .geometry import Space, Volume, intersection
from .surfaces import Surfaces
from .tissue import Tissue

SKIN_MM = 1.6


def paint_soft_tissue(canvas: Canvas, space: Space, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Skin, subcutaneous fat, ears and the muscles of head and neck."""
    canvas.paint(space, Tissue.SKIN, space.coverage(np.maximum(surfaces.skin, surfaces.ears)))
    canvas.paint(space, Tissue.FAT, space.coverage(surfaces.skin - SKIN_MM))
    beyond_skin = 1 - space.coverage(surfaces.skin - SKIN_MM)
    canvas.paint(space, Tissue.CARTILAGE, space.coverage(surfaces.ears - np.float32(1.6)) * beyond_skin * 0.7)

    fat_mm = np.float32(rng.uniform(6, 9)) + np.float32(1.2) * space.drift
    below_vault = intersection(surfaces.skin - fat_mm, 16 - space.z, 6)
    # The scalp keeps its fat: over the vault only temporalis is thick enough to be seen.
    over_vault = np.maximum(surfaces.cavity + surfaces.bone_mm + 12, 0) * (space.z > -8)
    below_vault = np.minimum(below_vault, -surfaces.skull + 1 - over_vault)
    temporal_bed = space.ellipsoid((-10.0, -20.0, 66.0), (46.0, 40.0, 16.0), paired=True)
    temporalis = intersection(intersection(surfaces.skin - np.float32(4.4), temporal_bed, 2), 1 - surfaces.skull, 2)
    muscle = np.maximum(below_vault, temporalis)
    # Fat septa lie between muscle bellies: the zero surfaces of a noise drawn out along the neck.
    bellies = space.coverage(np.abs(space.fascicle) * np.float32(4.5) - np.float32(0.4))
    canvas.paint(space, Tissue.MUSCLE, space.coverage(muscle) * (np.float32(0.4) + np.float32(0.6) * bellies))


def paint_skull(canvas: Canvas, space: Space, surfaces: Surfaces) -> None:
    """Vault and base with two tables, diploe between them, and the sutures of the vault."""
    skull = space.coverage(surfaces.skull)
    canvas.paint(space, Tissue.CORTICAL_BONE, skull, texture=np.float32(0.05) * space.grain)
    to_nearest_table = np.minimum(surfaces.skull, -surfaces.cavity)
    table_mm = np.float32(1.9) + np.float32(0.2) * space.ripple
    diploe = space.coverage(to_nearest_table - table_mm) * (space.z > -38)
    canvas.paint(space, Tissue.DIPLOE, diploe, texture=np.float32(0.2) * space.grain)

    vault = space.box(z=(20, 120))
    zigzag = np.float32(1.6) * np.sin(vault.side * np.float32(0.5)) + np.float32(1.5) * vault.patch
    coronal = np.abs(vault.y + 18 + np.float32(0.12) * (vault.z - 60) + zigzag)
    lambdoid = np.abs(vault.y - 62 + np.float32(0.45) * vault.side + zigzag)
    sagittal = np.abs(vault.x + zigzag) + np.maximum(-18 - vault.y, 0) + np.maximum(vault.y - 62, 0)
    gap = vault.sheet(np.minimum(np.minimum(coronal, lambdoid), sagittal), 0.4)
    canvas.paint(vault, Tissue.MUCOSA, gap * skull[_within(space, vault)] * (vault.z > 30) * np.float32(0.7))


def paint_temporal_bone(canvas: Canvas, space: Space, surfaces: Surfaces, rng: np.random.Generator) -> None:
    """Dense petrous pyramid, pneumatised mastoid, ear canal and middle ear."""
    here = space.box(z=(-75, 0), y=(-15, 55), side=(5, 95))
    cavity, skin = surfaces.cavity[here.window], surfaces.skin[here.window]
    outside = -cavity - np.float32(1.2)

    pyramid = np.minimum(np.minimum(surfaces.petrous[here.window] + 1.5, skin - 7), -cavity)
    canvas.paint(here, Tissue.PETROUS_BONE, here.coverage(pyramid) * 0.95, texture=np.float32(0.1) * here.grain)
    mastoid = intersection(here.ellipsoid((-42.0, 27.0, 56.0), (19.0, 14.0, 12.0), paired=True), skin - 8, 3)
    canvas.paint(here, Tissue.CORTICAL_BONE, here.coverage(np.minimum(mastoid + 1.5, -cavity)) * 0.8)
    cells = here.coverage(np.minimum(mastoid - 1, outside)) * here.coverage(here.grain * 2 - np.float32(0.2))
    canvas.paint(here, Tissue.AIRWAY, cells * np.float32(rng.uniform(0.7, 1.0)))

    canal = here.tube([((-31.0, 11.0, 78.0), 3.0), ((-31.0, 11.0, 58.0), 2.6), ((-31.0, 10.0, 46.0), 3.0)])
    canal = np.minimum(canal, np.maximum(skin, surfaces.ears[here.window]) - 1)
    canvas.paint(here, Tissue.SKIN, here.coverage(canal + 1) * 0.8)
    canvas.paint(here, Tissue.AIRWAY, here.coverage(canal))
    # Cochlea and vestibule hold fluid: two bright dots in T2, inside the densest bone of the body.
    labyrinth = here.ellipsoid((-31.0, 11.0, 36.0), (2.4, 3.2, 3.2), paired=True)
    meatus = here.tube([((-31.0, 14.0, 31.0), 1.8), ((-31.0, 15.0, 20.0), 2.2)])
    canvas.paint(here, Tissue.CSF, here.coverage(np.maximum(labyrinth, meatus)))


def _within(outer: Space, inner: Space) -> tuple[slice, ...]:
    """Slices that cut `inner` out of a volume over `outer`."""
    return tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner.window, outer.window, strict=True))


def facial_support(space: Space, surfaces: Surfaces) -> Volume:
    """Depth outside the cranial cavity: facial bones and sinuses may reach no further."""
    return -surfaces.cavity[space.window] - np.float32(1.2)
