"""The nested surfaces that every organ refers to: cranial cavity, skull and skin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Space, Volume, intersection, step, union

# The eyeballs' centre fixes orbit, brow and lens.
EYE_CENTRE = (-24.0, -61.0, 32.0)


@dataclass(frozen=True)
class Surfaces:
    """Depths of the nested surfaces over the whole grid.

    Attributes
    ----------
    cavity
        Cranial cavity: everything inside the inner table.
    skull
        Cavity plus the thickness of vault and base (facial bones are separate).
    skin
        Outer surface of head and neck, without ears.
    ears
        Both auricles.
    bone_mm
        Thickness of the skull.
    petrous
        The petrous ridges, which stand between middle and posterior fossa.
    """

    cavity: Volume
    skull: Volume
    skin: Volume
    ears: Volume
    bone_mm: Volume
    petrous: Volume


def petrous_ridge_y(space: Space) -> Volume:
    """Course of the petrous ridge, running backwards from the clivus to the mastoid: y over ``|x|``."""
    ridge: Volume = np.float32(0.5) * np.maximum(space.side - 8, 0) - 4
    return ridge


def height_over_tentorium(space: Space) -> Volume:
    """Distance above the tentorium, a tent between petrous ridges and occiput with its apex behind the midbrain."""
    roof = 6 - np.float32(0.42) * space.side - np.float32(0.32) * np.maximum(space.y - 25, 0)
    from_ridge = np.float32(0.08) * space.side - 28 + np.float32(0.9) * (space.y - petrous_ridge_y(space))
    height: Volume = (space.z - np.minimum(roof, from_ridge)) * np.float32(0.85)
    return height


def build_surfaces(space: Space, rng: np.random.Generator) -> Surfaces:
    """Draw a subject's cavity, skull and skin."""
    petrous = _petrous(space)
    cavity = _cavity(space, petrous)
    squama = step(space.side - 54, 3) * step(space.z + 28, 4) * step(4 - space.z, 6) * step(30 - space.y, 8)
    bone = (
        np.float32(rng.uniform(6.0, 7.6))
        + np.float32(0.6) * space.drift
        + np.float32(0.4) * space.patch
        + np.float32(1.6) * step(-space.y - 55, 8)
        + np.float32(1.6) * step(space.y - 70, 6)
        - np.float32(2.2) * squama
    )
    skull = cavity + bone
    scalp = np.float32(rng.uniform(5.2, 7.2)) + np.float32(0.6) * space.patch
    return Surfaces(cavity, skull, _skin(space, skull + scalp, rng), _ears(space), bone, petrous)


def _petrous(space: Space) -> Volume:
    nodes = [((-31.0, 25.0, 60.0), 9.0), ((-31.0, 13.0, 40.0), 8.0), ((-34.0, 2.0, 19.0), 5.0)]
    return space.tube(nodes, blend=5)


def _cavity(space: Space, petrous: Volume) -> Volume:
    """Egg-shaped vault over a stepped floor, joined with the posterior fossa behind clivus and ridges."""
    # The head is narrower at the forehead than at the parietal eminences.
    narrowing = 1 - np.float32(0.07) * (np.clip(18 - space.y, 0, 100) / 85) ** 2
    egg = Space(**{**space.__dict__, "x": space.x / narrowing})
    vault = egg.ellipsoid((6.0, 0.0, 0.0), (65.0, 82.0, 66.0))

    side, y = space.side, space.y
    orbital_roof = np.float32(3.5) * np.exp(-(((side - 27) / 14) ** 2)) * step(-y - 28, 5)
    cribriform = np.float32(4) * step(7 - side, 1.5) * step(-y - 40, 4)
    sphenoid_wing_y = -33 + np.float32(0.1) * side
    middle_fossa = np.float32(21) * step(y - sphenoid_wing_y, 3) * step(side - 16, 2.2)
    sella = np.float32(6) * step(y + 18, 1.5) * step(13 - side, 2)
    floor = -21 + orbital_roof - cribriform - middle_fossa - sella
    upper = intersection(vault, (space.z - floor) * np.float32(0.85), 7)

    # Clivus and ridges form one oblique wall; its normal points up and back.
    wall = np.float32(0.45) * (space.z + 24) + np.float32(0.85) * (y - petrous_ridge_y(space))
    fossa = intersection(space.ellipsoid((-31.0, 38.0, 0.0), (34.0, 43.0, 49.0)), wall, 5)
    # Above the ridge the vault already is behind the wall, so both parts overlap and leave no gap.
    return intersection(union(upper, fossa, 7), -petrous, 3)


def _skin(space: Space, scalp: Volume, rng: np.random.Generator) -> Volume:
    breadth = rng.uniform(-3, 3)
    face = space.ellipsoid((-46.0, -38.0, 0.0), (64.0, 48.0, 57.0 + breadth))
    jaw = space.ellipsoid((-92.0, -38.0, 0.0), (48.0, 46.0, 49.0 + breadth))
    cheek = space.ellipsoid((-52.0, -52.0, 32.0), (32.0, 30.0, 27.0), paired=True)
    brow = space.ellipsoid((-11.0, -77.0, 21.0), (7.0, 9.0, 21.0), paired=True)
    skin = union(union(scalp, union(face, jaw, 14), 14), union(cheek, brow, 8), 11)

    cross_section = np.sqrt((space.x / 55) ** 2 + ((space.y - 22 - np.float32(0.06) * (space.z + 60)) / 57) ** 2)
    # Limited from above, or the neck's axis would reach through the vault.
    neck = intersection(np.minimum(1 - cross_section, 0.6) * 52, -(space.z + 18), 20)
    skin = union(skin, neck, 22)

    projection = rng.uniform(-2.5, 2.0)
    nose = space.tube(
        [
            ((-19.0, -83.0, 0.0), 4.5),
            ((-36.0, -92.0 - projection / 2, 0.0), 6.0),
            ((-53.0, -97.0 - projection, 0.0), 8.0 + rng.uniform(-0.8, 1.2)),
            ((-60.0, -88.0, 0.0), 10.0),
        ],
        paired=False,
        blend=6,
    )
    wings = space.ellipsoid((-56.0, -91.0, 9.0), (6.5, 9.0, 6.5), paired=True)
    skin = union(skin, union(nose, wings, 4), 6)
    upper_lip = space.ellipsoid((-76.0, -86.0, 0.0), (5.5, 9.0, 24.0))
    lower_lip = space.ellipsoid((-87.0, -84.0, 0.0), (6.0, 9.0, 22.0))
    return union(skin, union(upper_lip, lower_lip, 2.5), 6)


def _ears(space: Space) -> Volume:
    """Two hollowed plates, leaning outwards and backwards from a stalk at the ear canal."""
    lateral = space.side - np.float32(0.35) * (space.y - 12)
    leaning = Space(**{**space.__dict__, "side": lateral})
    plate = leaning.ellipsoid((-28.0, 22.0, 70.0), (27.0, 15.0, 5.0), paired=True)
    concha = leaning.ellipsoid((-29.0, 19.0, 74.0), (12.0, 7.5, 5.0), paired=True)
    stalk = space.ellipsoid((-30.0, 14.0, 64.0), (17.0, 8.0, 8.0), paired=True)
    return union(intersection(plate, -concha, 2), stalk, 4)
