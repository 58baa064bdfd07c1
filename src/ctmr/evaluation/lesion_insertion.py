"""Lesion insertion: of tissue where the head is a phantom, as balls of known contrast elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctmr.evaluation.testset import Case, TestSet
from ctmr.imaging.grid import Grid, Plane, ServeStep
from ctmr.imaging.inference_path import prepare
from ctmr.imaging.resample import to_grid
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.metrics.detection import Site, matched_means
from ctmr.phantom import PhantomHead
from ctmr.phantom.twins import Twins, make_twins, seed_of
from ctmr.recipe.evaluation import Lesions

CONTRAST_HU = 100.0
"""What the recipe's contrast is a share of in a CT; in other images it is the head's median value."""
OF_TISSUE = "of tissue in the phantom"
SAME_PHANTOM = 0.9
"""Share of voxels that a rescanned phantom must have in common with the image; a lesion of its own differs."""
SAME_SPACING_MM = 1e-3
_UPRIGHT = Grid(plane=Plane.AXIAL, size=(8, 8), spacing_mm=(1.0, 1.0), steps=(ServeStep.REORIENT,))
"""Brings an image into the orientation in which phantoms are drawn, and does nothing else."""
_SKIN_GAP_MM = 4.0
_GAP_MM = 6.0
_TRIES = 64
_MARK = 1000


@dataclass(frozen=True)
class PreparedCase:
    """One input with lesions and without, on the model's grid.

    Attributes
    ----------
    how
        Where the lesions come from, in a few words.
    healthy, ill
        ``[C, D, H, W]``, as the model takes them.
    sites
        The lesions.
    truth_healthy, truth_ill
        ``[D, H, W]`` true target images, where they exist.
    """

    how: str
    healthy: NDArray[np.generic]
    ill: NDArray[np.generic]
    sites: tuple[Site, ...]
    truth_healthy: NDArray[np.generic] | None = None
    truth_ill: NDArray[np.generic] | None = None


@dataclass
class TwinCache:
    """Remembers the last phantom that was scanned, because both directions ask for the same one."""

    key: tuple[object, ...] = ()
    twins: Twins | None = None

    def get(self, seed: int, shape: tuple[int, int, int], spacing_mm: float, section: Lesions, at: int) -> Twins | None:
        """Return the twins of a seed; ``None`` where no phantom has that shape and spacing."""
        key = (seed, shape, spacing_mm, section.radii_mm, at)
        if key != self.key:
            self.key = key
            try:
                self.twins = make_twins(
                    seed, shape=shape, spacing_mm=spacing_mm, radii_mm=section.radii_mm, lesion_seed=at
                )
            except ValueError:
                self.twins = None
        return self.twins


def insert_by_twin(test_set: TestSet, case: Case, section: Lesions, cache: TwinCache, seed: int) -> PreparedCase | None:
    """Scan the phantom of a case again, with lesions of tissue and without.

    Returns
    -------
    Prepared or None
        ``None`` where the case is no phantom, or not one that this version draws.
    """
    of = seed_of(case.subject)
    if of is None or case.volumes[0].affine is None:
        return None
    channels = [to_grid(v, _UPRIGHT)[0] for v in case.volumes]
    native = channels[0]
    d, h, w = native.array.shape
    if max(native.spacing_mm) - min(native.spacing_mm) > SAME_SPACING_MM:
        return None
    twins = cache.get(of, (d, h, w), round(native.spacing_mm[0], 3), section, seed)
    if twins is None or not twins.inserted or not _same(twins.healthy, native):
        return None
    target = test_set.target.volumes[0].sequences
    sequence = target[0] or None if target and test_set.target.modality is Modality.MR else None

    def source(head: PhantomHead) -> NDArray[np.generic]:
        scans = [v.with_array(_scan(head, v.modality, v.sequence)) for v in channels]
        return prepare(scans, test_set.grid, case.placement)[0]

    def truth(head: PhantomHead) -> NDArray[np.generic]:
        image = _scan(head, test_set.target.modality, sequence)
        return case.prepared(Volume(image, native.affine, test_set.target.modality, test_set.target_unit))

    sites = tuple(
        Site(
            case.prepared(native.with_array(p.mask.astype(native.array.dtype) * _MARK)) > _MARK // 2,
            p.lesion.radius_mm,
            p.lesion.kind,
        )
        for p in twins.inserted
    )
    seen = tuple(s for s in sites if s.mask.any())
    if not seen:
        return None
    return PreparedCase(
        OF_TISSUE, source(twins.healthy), source(twins.ill), seen, truth(twins.healthy), truth(twins.ill)
    )


def insert(case: Case, section: Lesions, rng: np.random.Generator) -> PreparedCase | None:
    """Put a bright and a dark ball of every radius into quiet places of the head.

    Returns
    -------
    Prepared or None
        ``None`` where the head has no room.
    """
    healthy = case.array
    spacing = case.spacing_mm
    head = np.pad(case.head, [(0, 0) if n == 1 else (1, 1) for n in case.head.shape])
    inner = tuple(slice(None) if n == 1 else slice(1, -1) for n in case.head.shape)
    # Padded, because a ball must end before the field of view does.
    depth = ndimage.distance_transform_edt(head, sampling=spacing)[inner]
    scales = [CONTRAST_HU if case.volumes[0].unit is Unit.HU else float(np.median(c[case.head])) for c in healthy]
    limits = np.iinfo(healthy.dtype)
    ill = healthy.astype(np.float32)
    sites = []
    for radius in sorted(section.radii_mm, reverse=True):
        mean, rough = _surroundings(healthy[0], case.head, radius, spacing)
        for kind, sign in (("bright", 1.0), ("dark", -1.0)):
            # Where the stored values end, a lesion would be cut to less than its contrast.
            peak = mean + sign * section.contrast * scales[0]
            room = (peak >= limits.min) & (peak <= limits.max)
            possible = np.argwhere((depth >= radius + _SKIN_GAP_MM) & room)
            if not len(possible):
                continue
            some = possible[rng.integers(len(possible), size=_TRIES)]
            centre = some[int(np.argmin(rough[tuple(some.T)]))]
            distance = _distance(healthy.shape[1:], centre, spacing)
            share = np.clip(0.5 + (radius - distance) / max(spacing[1:]), 0, 1)
            for channel, scale in zip(ill, scales, strict=True):
                channel += np.float32(sign * section.contrast * scale) * share
            sites.append(Site(share >= 0.5, radius, kind))
            depth = np.minimum(depth, distance - 2 * radius - _GAP_MM)
    if not sites:
        return None
    stored = np.clip(np.rint(ill), limits.min, limits.max).astype(healthy.dtype)
    return PreparedCase(f"inserted, contrast {section.contrast:g}", healthy, stored, tuple(sites))


def _scan(head: PhantomHead, modality: Modality, sequence: str | None) -> NDArray[np.generic]:
    if modality is Modality.CT:
        return head.ct
    return head.t2 if sequence == "T2" else head.t1


def _same(head: PhantomHead, native: Volume) -> bool:
    return float((_scan(head, native.modality, native.sequence) == native.array).mean()) >= SAME_PHANTOM


def _surroundings(
    image: NDArray[np.generic], head: NDArray[np.bool_], radius_mm: float, spacing: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and variance of the head around each voxel."""
    values = image.astype(np.float32)
    mean, square = (matched_means(x, head, radius_mm=radius_mm, spacing_mm=spacing) for x in (values, values**2))
    rough: NDArray[np.float32] = square - mean**2
    return mean, rough


def _distance(
    shape: tuple[int, ...], centre: NDArray[np.int64], spacing: tuple[float, float, float]
) -> NDArray[np.float32]:
    places = zip(shape, centre, spacing, strict=True)
    axes = [(np.arange(n, dtype=np.float32) - c) * np.float32(mm) for n, c, mm in places]
    d, h, w = np.meshgrid(*axes, indexing="ij", sparse=True)
    distance: NDArray[np.float32] = np.sqrt(d**2 + h**2 + w**2)
    return distance
