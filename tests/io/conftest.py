"""Fixtures of the image readers' tests: random volumes in any orientation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ctmr.imaging.volume import Modality, Unit, Volume


@pytest.fixture(scope="session")
def random_volume() -> Callable[..., Volume]:
    """Build a volume with random voxels whose axes are a random rotation (and, by the seed, a mirror image)."""

    def build(seed: int, modality: Modality = Modality.CT, shape: tuple[int, int, int] = (5, 4, 3)) -> Volume:
        rng = np.random.default_rng(seed)
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.uniform(0.3, 6.0, 3)
        if seed % 2:
            affine[:3, 0] *= -1
        affine[:3, 3] = rng.uniform(-300, 300, 3)
        low, high = (-1024, 3071) if modality is Modality.CT else (0, 4095)
        array = rng.integers(low, high, shape, endpoint=True).astype(np.int16 if modality is Modality.CT else np.uint16)
        unit = Unit.HU if modality is Modality.CT else Unit.ARBITRARY
        return Volume(array, affine, modality, unit, subject="S01", uid="1.2.3")

    return build


@pytest.fixture(scope="session")
def assert_same_image() -> Callable[[Volume, Volume], None]:
    """Assert that equal values stand at equal places in mm, whichever way the slices are stored."""

    def check(found: Volume, truth: Volume) -> None:
        a, b = found.array, truth.array
        affine = found.require_affine()
        if not np.allclose(affine[:3, 0], truth.require_affine()[:3, 0], atol=1e-3):
            a = a[::-1]
            flip = np.eye(4)
            flip[0, 0], flip[0, 3] = -1, a.shape[0] - 1
            affine = affine @ flip
        np.testing.assert_array_equal(a, b)
        last = [*np.subtract(b.shape, 1), 1]
        corners = np.array([[d, h, w, 1] for d in (0, 1) for h in (0, 1) for w in (0, 1)]) * last
        np.testing.assert_allclose(affine @ corners.T, truth.require_affine() @ corners.T, atol=1e-3)

    return check
