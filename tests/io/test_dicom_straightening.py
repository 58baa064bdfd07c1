"""Straightening tilted and uneven series: an image that is linear in space is interpolated without error anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import image, save, streams
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ctmr.errors import InputError
from ctmr.imaging.volume import Volume
from ctmr.io.dicom import read_series, write_series
from ctmr.io.dicom.geometry import ROUNDING_MM

Same = Callable[[Volume, Volume], None]
SHAPE, SPACING = (9, 8), (1.5, 1.25)
LPS = np.diag([-1.0, -1.0, 1.0])
STEPS_PER_UNIT = 16.0
"""Values are stored in sixteenths (RescaleSlope), so that rounding them costs 1/32."""


def linear(points: np.ndarray) -> np.ndarray:
    """An image defined everywhere, in LPS mm [..., 3]; between -400 and 1200 for the heads of these tests."""
    return 300.0 + points @ [1.1, -0.7, 0.9]


def tilted(
    along: Sequence[float],
    tilt_deg: tuple[float, float] = (0.0, 0.0),
    *,
    rotation: np.ndarray | None = None,
    slope: float = 1 / STEPS_PER_UNIT,
) -> list[pydicom.Dataset]:
    """Return slices of `linear` at these distances; origins move by the tilts' tangents (down, across)."""
    slices = []
    for origin, across, down in planes(along, tilt_deg, rotation):
        rows, columns = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
        points = origin + rows[..., None] * SPACING[0] * down + columns[..., None] * SPACING[1] * across
        pixels = np.rint(linear(points) * STEPS_PER_UNIT).astype(np.int16)
        cosines = [f"{x:.14f}"[:16] for x in (*across, *down)]
        slices.append(
            image(pixels, origin, PixelSpacing=list(SPACING), ImageOrientationPatient=cosines, RescaleSlope=slope)
        )
    return slices


def planes(
    along: Sequence[float], tilt_deg: tuple[float, float], rotation: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return origin, across and down of each slice."""
    across, down, normal = np.eye(3) if rotation is None else rotation
    shear = np.tan(np.radians(tilt_deg))
    return [(t * (normal + shear[0] * down + shear[1] * across) - 7 * down, across, down) for t in along]


def covered(volume: Volume, along: Sequence[float], tilt_deg: tuple[float, float], rotation: np.ndarray | None = None):
    """Return where a voxel lies within both slices that it lies between, found from the slices' own geometry."""
    points = voxel_places(volume)
    normal = np.eye(3)[2] if rotation is None else rotation[2]
    slices = planes(along, tilt_deg, rotation)
    own = np.stack([origin @ normal for origin, _, _ in slices])
    distance = points @ normal
    within = np.zeros((len(own), *distance.shape), bool)
    for k, (origin, across, down) in enumerate(slices):
        row, column = (points - origin) @ down / SPACING[0], (points - origin) @ across / SPACING[1]
        within[k] = (np.minimum(row, column) > -1e-6) & (row < SHAPE[0] - 1 + 1e-6) & (column < SHAPE[1] - 1 + 1e-6)
    below = np.clip(np.searchsorted(own, distance + 1e-4, side="right") - 1, 0, len(own) - 1)
    above = np.clip(np.searchsorted(own, distance - 1e-4), 0, len(own) - 1)
    both = np.take_along_axis(within, below[None], 0)[0] & np.take_along_axis(within, above[None], 0)[0]
    return both


def voxel_places(volume: Volume) -> np.ndarray:
    """Return ``[D, H, W, 3]`` LPS mm of the voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), axis=-1)
    return (index @ volume.affine[:3, :3].T + volume.affine[:3, 3]) @ LPS


@settings(max_examples=40, deadline=None)
@given(
    tilt=st.tuples(st.floats(-40, 40), st.sampled_from([0.0, 0.0, 12.5])),
    seed=st.integers(0, 10**6),
    count=st.integers(2, 7),
    step=st.floats(0.6, 6.0),
    unevenness=st.sampled_from([0.0, 0.1, 0.24]),
)
def test_every_voxel_holds_the_value_of_its_place(
    tilt: tuple[float, float], seed: int, count: int, step: float, unevenness: float
) -> None:
    rng = np.random.default_rng(seed)
    # Within the share of the median gap that is resampled, whichever gap is the median.
    gaps = step * (1 + unevenness / (2 + unevenness) * rng.uniform(-1, 1, count - 1))
    along, rotation = np.concatenate([[0.0], np.cumsum(gaps)]), Rotation.random(rng=rng).as_matrix()
    volume = read_series(streams(tilted(along, tilt, rotation=rotation)))
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    # What counts as straight: a shear of 0.2 %, or of as much as positions are rounded.
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=max(2e-3, 1.01 * ROUNDING_MM / along[-1]))
    whole = covered(volume, along, tilt, rotation)
    assert whole.sum() > 20 * len(volume.array)
    # Planes that count as even may lie 0.1 mm off, and every millimetre is at most 1.6 units.
    tolerance = 0.3 + 2 / STEPS_PER_UNIT
    np.testing.assert_allclose(volume.array[whole], linear(voxel_places(volume))[whole], atol=tolerance)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tilt_is_straightened_exactly_in_place(sign: int) -> None:
    along, tilt = np.arange(6) * 2.5, (sign * 18.5, 0.0)
    volume = read_series(streams(tilted(along, tilt)))
    # A gap moves the origin by 2.5 mm · tan 18.5° = 0.56 rows: 1.67 before the middle slice and 1.12 after it.
    assert volume.array.shape == (6, SHAPE[0] + 4, SHAPE[1]) and volume.spacing_mm == pytest.approx((2.5, *SPACING))
    whole = covered(volume, along, tilt)
    assert whole.sum(axis=(1, 2)).min() >= (SHAPE[0] - 1) * SHAPE[1]
    np.testing.assert_allclose(volume.array[whole], linear(voxel_places(volume))[whole], atol=1 / STEPS_PER_UNIT)
    (note,) = volume.notes
    assert note.startswith("a gantry tilt of 18.5° was straightened: slices moved by up to 2.5 mm")
    assert volume.array.min() == -1024


def test_the_middle_slice_and_shifts_by_whole_pixels_keep_their_values_exactly() -> None:
    rows_per_gap = 2
    slices = tilted(np.arange(5) * 4.0, (float(np.degrees(np.arctan(rows_per_gap * SPACING[0] / 4.0))), 0.0))
    volume = read_series(streams(slices))
    assert volume.array.shape == (5, SHAPE[0] + 4 * rows_per_gap, SHAPE[1])
    for d, dataset in enumerate(slices):
        own = slice(d * rows_per_gap, d * rows_per_gap + SHAPE[0])
        np.testing.assert_array_equal(volume.array[d, own], dataset.pixel_array / STEPS_PER_UNIT)
        assert (np.delete(volume.array[d], own, axis=0) == -1024).all()
    slices = tilted(np.arange(5) * 4.0, (7.3, 0.0))
    middle = read_series(streams(slices)).array[2]
    first = int(np.flatnonzero((middle > -1024).any(axis=1))[0])
    np.testing.assert_array_equal(middle[first:][: SHAPE[0]], slices[2].pixel_array / STEPS_PER_UNIT)


def test_integers_stay_integers() -> None:
    along, tilt = np.arange(4) * 3.0, (18.5, 0.0)
    volume = read_series(streams(tilted(along, tilt, slope=1)))
    assert volume.array.dtype == np.int16
    whole = covered(volume, along, tilt)
    errors = volume.array[whole] - linear(voxel_places(volume))[whole] * STEPS_PER_UNIT
    assert np.abs(errors).max() < 1.5 and abs(errors.mean()) < 0.15


def test_uneven_gaps_within_the_limit_are_resampled_and_a_slice_that_is_hit_is_kept() -> None:
    slices = tilted([0.0, 4.0, 8.0, 12.9, 16.0, 20.0])
    volume = read_series(streams(slices))
    assert volume.spacing_mm[0] == pytest.approx(4.0) and volume.array.shape == (6, *SHAPE)
    assert volume.notes == ("uneven gaps of 3.10 to 4.90 mm were resampled to 4.00 mm, linearly interpolated",)
    np.testing.assert_allclose(volume.array, linear(voxel_places(volume)), atol=1 / STEPS_PER_UNIT)
    for d, dataset in enumerate(slices):
        kept = np.array_equal(volume.array[d], dataset.pixel_array / STEPS_PER_UNIT)
        assert kept is (d != 3)


def test_the_limit_of_unevenness_can_be_chosen(tmp_path: Path) -> None:
    save(tmp_path, tilted([0.0, 4.0, 8.0, 12.9, 16.0, 20.0]))
    with pytest.raises(InputError, match=r"4\.00 mm apart, but 4\.90 mm between IM_0003\.dcm and IM_0004\.dcm"):
        read_series(tmp_path, uneven_limit=0)
    along, tilt = np.concatenate([np.arange(6) * 4.0, 27.0 + np.arange(4) * 7.0]), (18.5, 0.0)
    slabs = streams(tilted(along, tilt))
    with pytest.raises(InputError, match=r"7\.00 mm between .*gantry tilt 18\.5°, which alone would be straightened"):
        read_series(slabs)
    volume = read_series(slabs, uneven_limit=np.inf)
    whole = covered(volume, along, tilt)
    np.testing.assert_allclose(volume.array[whole], linear(voxel_places(volume))[whole], atol=2 / STEPS_PER_UNIT)
    assert len(volume.notes) == 2 and volume.spacing_mm[0] == pytest.approx(4.0, abs=0.01)


def test_a_straight_series_is_not_touched() -> None:
    slices = tilted(np.arange(5) * 2.0 + [0, 0.02, 0, -0.02, 0])
    volume = read_series(streams(slices))
    np.testing.assert_array_equal(volume.array, [s.pixel_array / STEPS_PER_UNIT for s in slices])
    assert volume.notes == ()


def test_a_straightened_series_can_be_written_and_read_again(tmp_path: Path, assert_same_image: Same) -> None:
    volume = read_series(streams(tilted(np.arange(5) * 3.0, (-18.5, 0.0))))
    write_series(tmp_path / "again", volume)
    again = read_series(tmp_path / "again")
    assert_same_image(again, volume.with_array(np.rint(volume.array).astype(np.int16)))
    assert again.notes == ()


@pytest.mark.shared_data
def test_the_real_tilted_head_comes_out_straight_when_asked(shared_data: Path) -> None:
    folder = shared_data / "dicom_ct_head_ge"
    volume = read_series(folder, uneven_limit=np.inf)
    assert volume.array.dtype == np.int16 and volume.array.min() == -1024
    tilt, uneven = volume.notes
    assert "18.5°" in tilt and "1.08 to 7.00 mm were resampled to 4.00 mm" in uneven
    # Head and air outside: the same share of the millilitres before and after.
    heads = [pydicom.dcmread(p) for p in sorted(folder.glob("*.dcm"))]
    normal = np.cross(*np.array(heads[0].ImageOrientationPatient, float).reshape(2, 3))
    along = np.sort([np.array(h.ImagePositionPatient, float) @ normal for h in heads])
    area = [(h.pixel_array > -300).sum() for h in sorted(heads, key=lambda h: float(h.ImagePositionPatient[2]))]
    before = np.trapezoid(area, along)
    found = (volume.array > -300).sum(axis=(1, 2))
    assert np.trapezoid(found, dx=volume.spacing_mm[0]) == pytest.approx(before, rel=0.01)
