"""Twins: one phantom head scanned with and without lesions of known place and size, so that truth exists for both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.data.manifest import PHANTOM_PREFIX

from . import PhantomHead, check_arguments
from .acquisition import acquire
from .anatomy import Anatomy, build_anatomy, grid_axes
from .lesion import Lesion, LesionKind, insert_lesion

KINDS: tuple[LesionKind, ...] = ("tumour", "calcified")
"""Tissues that T1, T2 and CT all show against brain. An acute haemorrhage is hardly seen in T1."""
_GAP_MM = 6.0
_MARGIN_MM = 2.0
_WHITEST = 0.8
_SUBJECT = re.compile(rf"{PHANTOM_PREFIX}(\d+)")


@dataclass(frozen=True)
class InsertedLesion:
    """One lesion of a twin.

    Attributes
    ----------
    lesion
        Kind, centre and radius.
    mask
        ``[D, H, W]`` bool: the voxels that it fills by half or more.
    """

    lesion: Lesion
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Twins:
    """The same person, pose and noise twice.

    Attributes
    ----------
    healthy, ill
        Without any lesion, and with all of `inserted`.
    inserted
        The lesions. Fewer than asked for where the brain had no room.
    """

    healthy: PhantomHead
    ill: PhantomHead
    inserted: tuple[InsertedLesion, ...]


def seed_of(subject: str) -> int | None:
    """Return the seed in a phantom subject's name, ``None`` for anybody else."""
    found = _SUBJECT.fullmatch(subject)
    return int(found.group(1)) if found else None


def make_twins(
    seed: int,
    *,
    shape: tuple[int, int, int],
    spacing_mm: float,
    radii_mm: Sequence[float],
    kinds: Sequence[LesionKind] = KINDS,
    lesion_seed: int = 0,
) -> Twins:
    """Scan the head of a seed twice, with and without lesions.

    Parameters
    ----------
    seed, shape, spacing_mm
        As for `make_head`. Away from its own lesion, if it has one, `make_head` gives the healthy twin's arrays.
    radii_mm
        One lesion of each radius and kind.
    kinds
        Tissues of the lesions.
    lesion_seed
        Of their places.

    Raises
    ------
    ValueError
        If an argument is outside its range.
    """
    check_arguments(seed, shape, spacing_mm)
    if not radii_mm or min(radii_mm) <= 0:
        raise ValueError(f"radii_mm is {tuple(radii_mm)}, allowed is at least one positive radius")
    anatomy_rng = np.random.default_rng(seed).spawn(2)[0]
    healthy = build_anatomy(shape, spacing_mm, False, anatomy_rng)
    ill = replace(healthy, canvas=healthy.canvas.duplicate())
    wanted = [(radius, kind) for radius in sorted(radii_mm, reverse=True) for kind in kinds]
    inserted = tuple(_insert(ill, wanted, np.random.default_rng((seed, lesion_seed)), spacing_mm))
    return Twins(_scan(healthy, seed, spacing_mm, None), _scan(ill, seed, spacing_mm, inserted), inserted)


def _insert(
    anatomy: Anatomy, wanted: Sequence[tuple[float, LesionKind]], rng: np.random.Generator, spacing_mm: float
) -> list[InsertedLesion]:
    """Place lesions one by one, largest first, wholly inside the brain and apart from each other."""
    cerebrum = anatomy.cerebrum
    inside = (cerebrum.parenchyma > 0) & (cerebrum.above_tentorium > 0)
    depth = ndimage.distance_transform_edt(inside, sampling=spacing_mm)
    white = (cerebrum.white > 0).astype(np.float32)
    made: list[InsertedLesion] = []
    starts = [w.start for w in cerebrum.space.window]
    for radius, kind in wanted:
        possible = np.argwhere(depth >= radius + _MARGIN_MM)
        if not len(possible):
            continue
        # Grey matter and fluid look like a tumour in T1: a lesion that its own source hides tests nothing.
        share = ndimage.gaussian_filter(white, radius / spacing_mm / np.sqrt(5))[tuple(possible.T)]
        possible = possible[share >= np.quantile(share, _WHITEST)]
        at = possible[rng.integers(len(possible))]
        centre = (int(at[0]), int(at[1]), int(at[2]))
        mask = insert_lesion(anatomy.canvas, cerebrum, kind, centre, radius)
        z, y, x = (float((c + s) * spacing_mm) for c, s in zip(centre, starts, strict=True))
        made.append(InsertedLesion(Lesion(kind, (z, y, x), radius), mask))
        axes = [(np.arange(n) - c) * spacing_mm for n, c in zip(depth.shape, centre, strict=True)]
        d, h, w = np.meshgrid(*axes, indexing="ij", sparse=True)
        # The next ball ends a gap away from where the influence of this one ends, a radius around it.
        depth = np.minimum(depth, np.sqrt(d**2 + h**2 + w**2) - 2 * radius - _GAP_MM)
    return made


def _scan(anatomy: Anatomy, seed: int, spacing_mm: float, inserted: Sequence[InsertedLesion] | None) -> PhantomHead:
    shape = anatomy.canvas.labels.shape
    scanner_rng = np.random.default_rng(seed).spawn(2)[1]
    scans = acquire(anatomy.canvas, grid_axes((shape[0], shape[1], shape[2]), spacing_mm), scanner_rng)
    lesion = inserted[0].lesion if inserted else None
    return PhantomHead(scans.ct, scans.t1, scans.t2, anatomy.canvas.labels, anatomy.head, float(spacing_mm), lesion)
