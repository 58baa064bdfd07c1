"""Siemens mosaics unfolded: voxels, places and order as nibabel's reader of them has them, or refused in a sentence."""

from __future__ import annotations

import gzip
import math
import shutil
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import MOSAIC, OBLIQUE, enhanced, image, mosaic, save

from ctmr.datasets.deid.dicom import refuse
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Volume
from ctmr.io.dicom import choose_series, classify, group_series, read_series
from ctmr.io.series_kinds import Kind

REAL = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
NORMAL = np.cross(OBLIQUE[:3], OBLIQUE[3:])
VOLUME = np.random.default_rng(0).integers(0, 900, (5, 6, 8)).astype(np.uint16)


def second_reader(file: Path | pydicom.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels and RAS affine of nibabel's reader, its axes in the order of ctmr's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import wrapper_from_data

        found = wrapper_from_data(file if isinstance(file, pydicom.Dataset) else pydicom.dcmread(file))
        assert found.is_mosaic
        affine = np.diag([-1.0, -1, 1, 1]) @ found.affine
        return np.asarray(found.get_data()).transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]


def placed_alike(found: Volume, values: np.ndarray, affine: np.ndarray) -> bool:
    """True when every voxel has its value at its place, whichever way slices are counted."""
    if float(found.require_affine()[:3, 0] @ affine[:3, 0]) < 0:
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = len(values) - 1
        values, affine = values[::-1], affine @ flip
    return np.array_equal(found.array, values) and np.allclose(found.require_affine(), affine, atol=1e-4)


@pytest.mark.parametrize("name", ["siemens_dwi_0", "siemens_dwi_1000"])
def test_a_real_mosaic_is_the_volume_that_nibabel_reads(name: str, tmp_path: Path) -> None:
    with gzip.open(REAL / f"{name}.dcm.gz") as packed, (tmp_path / "a.dcm").open("wb") as out:
        shutil.copyfileobj(packed, out)
    found = read_series(tmp_path)
    assert found.array.shape == (48, 128, 128) and found.spacing_mm == pytest.approx((3, 1.797, 1.797), abs=1e-3)
    assert placed_alike(found, *second_reader(tmp_path / "a.dcm"))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("slices", [1, 2, 4, 5])
def test_tiles_lie_where_they_were_measured_in_either_order(slices: int, sign: int, tmp_path: Path) -> None:
    made = mosaic(VOLUME[:slices], sign * NORMAL)
    (file,) = save(tmp_path, [made])
    found = read_series(tmp_path)
    assert placed_alike(found, *second_reader(file))
    # By hand: the first tile's corner, half of what the mosaic is larger further in (Siemens' habit).
    side = math.ceil(math.sqrt(slices))
    down, across = np.array(OBLIQUE[3:]) * 1.5, np.array(OBLIQUE[:3]) * 1.25
    corner = np.array([10.0, -20, 30]) + (side - 1) * (6 * down + 8 * across) / 2
    lps = np.diag([-1.0, -1, 1, 1]) @ found.require_affine()
    first = 0 if sign > 0 else slices - 1
    assert np.allclose(lps @ [first, 0, 0, 1], [*corner, 1], atol=1e-6)
    assert np.array_equal(found.array[first], VOLUME[0])


def test_a_mosaic_is_left_out_by_name_and_can_be_kept(tmp_path: Path) -> None:
    save(tmp_path, [mosaic(VOLUME)])
    with pytest.raises(InputError, match=r"mosaic, the slices of a functional .*or --keep mosaic"):
        choose_series(tmp_path, Modality.MR)
    chosen = choose_series(tmp_path, Modality.MR, keep={Kind.MOSAIC})
    assert read_series(chosen.files).array.shape == VOLUME.shape


def test_time_points_of_a_mosaic_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    points = [mosaic(VOLUME + k) for k in range(3)]
    for k, point in enumerate(points):
        point.AcquisitionNumber = k + 1
    save(tmp_path, points)
    groups = group_series(tmp_path)
    assert len(groups) == 3
    for k, files in enumerate(groups.values()):
        assert np.array_equal(read_series(files).array, VOLUME + k)


def test_what_does_not_say_how_tiles_lie_is_refused_in_one_sentence(tmp_path: Path) -> None:
    def without(keyword: str) -> pydicom.Dataset:
        made = mosaic(VOLUME)
        delattr(made, keyword)
        return made

    bare = image(VOLUME[0], Modality="MR", ImageType=MOSAIC)
    counted = image(VOLUME[0], Modality="MR")
    counted.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 36)
    uih = image(VOLUME[0], Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "VFRAME"])
    cut = mosaic(VOLUME)
    cut[0x0029, 0x1010].value = cut[0x0029, 0x1010].value[:150]
    no_private = r"and no private header of Siemens \(0029,1010\) says how its tiles lie; export it as single slices$"
    for made, why in (
        *((m, no_private) for m in (bare, counted, uih, cut)),
        (without("SpacingBetweenSlices"), "and it has no SpacingBetweenSlices"),
        (mosaic(VOLUME, [1, 0, 0]), "the slice normal of its private header is not"),
        (mosaic(VOLUME, count=17), "17 tiles do not part 18×24 pixels"),
        (mosaic(VOLUME, count=-2), "no private header"),
    ):
        folder = tmp_path / str(made.SOPInstanceUID)
        (file,) = save(folder, [made])
        with pytest.raises(InputError, match=f"is a mosaic, the slices of a volume as tiles of one image, .*{why}"):
            read_series(folder)
        assert classify(made).kind is Kind.MOSAIC and list(group_series(folder).values()) == [[file]]


def test_an_enhanced_file_is_no_mosaic() -> None:
    made = enhanced(VOLUME, [(0, 0, 2.0 * k) for k in range(5)])
    made.ImageType = MOSAIC
    assert classify(made).kind is not Kind.MOSAIC


def test_a_mosaic_is_not_de_identified_into_tiles_that_nobody_can_part() -> None:
    with pytest.raises(InputError, match="is a mosaic, whose tiles only the scanner's private header parts"):
        refuse(mosaic(VOLUME))
