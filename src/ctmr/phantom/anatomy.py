"""One subject's anatomy: pose, size and warp of the coordinates, then every organ in painting order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, label

from .canvas import Canvas
from .cerebrum import Cerebrum, paint_cerebrum, paint_dural_folds
from .face import paint_face, paint_orbits
from .geometry import Space, Volume, wave_noise
from .hindbrain import paint_hindbrain
from .lesion import Lesion, paint_lesion
from .neck import paint_neck
from .sinuses import paint_sinuses
from .skull import paint_skull, paint_soft_tissue, paint_temporal_bone
from .surfaces import build_surfaces
from .tissue import Tissue

LESION_RATE = 0.3

# The brain's middle lies below the volume's middle, so that the vertex fits and the neck fills the rest.
_RAISED_MM = 1.5
# The nose reaches further forward than the occiput back.
_MOVED_BACK_MM = 5.0
_WARP_MM = (2.0, 2.3, 2.0)


@dataclass(frozen=True)
class Anatomy:
    """A painted subject: its layers, the voxels inside its skin, its lesion if it has one, and its cerebrum."""

    canvas: Canvas
    head: NDArray[np.bool_]
    lesion: Lesion | None
    cerebrum: Cerebrum


def grid_axes(shape: tuple[int, int, int], spacing_mm: float) -> list[NDArray[np.float64]]:
    """Millimetres of the voxel centres along D, H and W, from the middle of the volume."""
    return [np.arange(count, dtype=np.float64) * spacing_mm - (count - 1) / 2 * spacing_mm for count in shape]


def build_anatomy(
    shape: tuple[int, int, int], spacing_mm: float, lesion: bool | None, rng: np.random.Generator
) -> Anatomy:
    """Draw a subject.

    Every organ draws from a generator of its own: a change in one organ leaves all others as they were.
    """
    pose_rng, surface_rng, bone_rng, face_rng, sinus_rng, brain_rng, hind_rng, lesion_rng = rng.spawn(8)
    space = _posed_space(shape, spacing_mm, pose_rng)
    surfaces = build_surfaces(space, surface_rng)
    canvas = Canvas(shape)

    # Painter's order: what is painted later replaces what it covers.
    paint_soft_tissue(canvas, space, surfaces, surface_rng)
    paint_face(canvas, space, surfaces, face_rng)
    paint_skull(canvas, space, surfaces)
    paint_sinuses(canvas, space, surfaces, sinus_rng)
    paint_orbits(canvas, space, surfaces, face_rng)
    paint_temporal_bone(canvas, space, surfaces, bone_rng)
    paint_neck(canvas, space, surfaces)
    cerebrum = paint_cerebrum(canvas, space, surfaces, atrophy=brain_rng.random(), rng=brain_rng)
    paint_hindbrain(canvas, space, surfaces, hind_rng)
    paint_dural_folds(canvas, cerebrum, surfaces)

    has_lesion = lesion_rng.random() < LESION_RATE
    found = paint_lesion(canvas, cerebrum, lesion_rng) if (has_lesion if lesion is None else lesion) else None
    return Anatomy(canvas, _head_mask(np.maximum(surfaces.skin, surfaces.ears) > 0, canvas.labels), found, cerebrum)


def _posed_space(shape: tuple[int, int, int], spacing_mm: float, rng: np.random.Generator) -> Space:
    """Anatomical coordinates of the grid: one rotation, one size and one smooth warp for all organs."""
    axes = grid_axes(shape, spacing_mm)
    centre_mm = np.array([_RAISED_MM, _MOVED_BACK_MM, 0.0]) + rng.uniform(-1.5, 1.5, 3)
    # Nodding tips the nose out of the field of view first, so it gets the smaller range.
    turn, tilt, nod = np.deg2rad([rng.uniform(-8, 8), rng.uniform(-5, 5), rng.uniform(-4, 4)])
    size = rng.uniform(0.95, 1.05) * rng.uniform(0.985, 1.015, 3)
    # Nose and occiput nearly fill the field of view: the longest heads would leave it.
    size = np.minimum(size, [1.04, 1.015, 1.05])
    rotation = _rotation(1, 2, turn) @ _rotation(0, 2, tilt) @ _rotation(0, 1, nod)
    to_anatomy = rotation / size[:, None]

    z, y, x = (_rotated(axes, to_anatomy[row], centre_mm, shape) for row in range(3))
    for coordinate, amount in zip((z, y, x), _WARP_MM, strict=True):
        # In-place: three volumes less at 1 mm, where each is a third of a gigabyte with its temporaries.
        coordinate += np.float32(amount) * wave_noise(rng, 135, points=24).on_grid(axes)
    drift, patch, ripple, grain = (
        wave_noise(rng, wavelength, points=points).on_grid(axes)
        for wavelength, points in ((110, 24), (55, 24), (16, 64), (9, 96))
    )
    fascicle = wave_noise(rng, 21, points=64).on_grid([axes[0] * 0.32, axes[1], axes[2]])
    whole = tuple(slice(0, count) for count in shape)
    window = (whole[0], whole[1], whole[2])
    return Space(z, y, x, np.abs(x), drift, patch, ripple, fascicle, grain, window, spacing_mm)


def _rotation(first: int, second: int, angle: float) -> NDArray[np.float64]:
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def _rotated(
    axes: Sequence[NDArray[np.float64]],
    row: NDArray[np.float64],
    centre_mm: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> Volume:
    d, h, w = (((axis - middle) * factor) for axis, middle, factor in zip(axes, centre_mm, row, strict=True))
    total: Volume = np.zeros(shape, np.float32)
    total += (d[:, None, None] + h[None, :, None] + w[None, None, :]).astype(np.float32)
    return total


def _head_mask(inside_skin: NDArray[np.bool_], labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Everything inside the skin as one piece without holes; voxels of tissue at its surface belong to it."""
    filled = binary_fill_holes(inside_skin | (labels != Tissue.AIR))
    pieces, count = label(filled)
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        filled = pieces == int(sizes.argmax())
    mask: NDArray[np.bool_] = np.asarray(filled, dtype=np.bool_)
    return mask
