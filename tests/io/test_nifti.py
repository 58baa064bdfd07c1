"""NIfTI in and out: geometry against nibabel, values, every refusal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.errors import InputError
from ctmr.io import nifti
from ctmr.volume import Modality, Unit, Volume

Build = Callable[..., Volume]
CT = {"modality": Modality.CT, "unit": Unit.HU}
MR = {"modality": Modality.MR, "unit": Unit.ARBITRARY}


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine).to_filename(path)
    return path


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), modality=st.sampled_from(Modality), suffix=st.sampled_from(nifti.SUFFIXES))
def test_a_volume_comes_back_with_its_values_and_places(
    random_volume: Build, seed: int, modality: Modality, suffix: str
) -> None:
    volume = random_volume(seed, modality)
    with tempfile.TemporaryDirectory() as folder:
        path = nifti.write(Path(folder) / f"a{suffix}", volume)
        found = nifti.read(path, modality=modality, unit=volume.unit, subject="S01")
    np.testing.assert_array_equal(found.array, volume.array)
    assert found.array.dtype == volume.array.dtype
    np.testing.assert_allclose(found.affine, volume.affine, atol=1e-3)


def test_every_voxel_stands_where_nibabel_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4)) * 20
    volume = nifti.read(save(tmp_path / "a.nii", rng.normal(size=(3, 4, 5)), affine), **MR)
    image = nibabel.load(tmp_path / "a.nii")
    data = image.get_fdata()
    assert volume.array.shape == (5, 4, 3)
    for i, j, k in ((0, 0, 0), (2, 3, 4), (1, 0, 4)):
        assert volume.array[k, j, i] == pytest.approx(data[i, j, k])
        np.testing.assert_allclose(volume.affine @ [k, j, i, 1], image.affine @ [i, j, k, 1], atol=1e-4)


def test_nibabel_reads_what_is_written(tmp_path: Path, random_volume: Build) -> None:
    volume = random_volume(3)
    image = nibabel.load(nifti.write(tmp_path / "a.nii.gz", volume, description="synthetic CT"))
    assert image.get_data_dtype() == np.int16 and image.header["descrip"].item() == b"synthetic CT"
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume.array.transpose(2, 1, 0))
    for matrix in (image.get_sform(), image.get_qform()):
        np.testing.assert_allclose(matrix, volume.affine[:, [2, 1, 0, 3]], atol=1e-3)


def test_hounsfield_units_are_rounded_to_int16(tmp_path: Path, random_volume: Build) -> None:
    volume = random_volume(3).with_array(np.array([[[-1000.4, 39.6, 1200.0]]], dtype=np.float32))
    found = nifti.read(nifti.write(tmp_path / "a.nii", volume), **CT)
    assert found.array.dtype == np.int16 and found.array.ravel().tolist() == [-1000, 40, 1200]


def test_scale_factors_are_honoured(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(2, -1024)
    image.to_filename(tmp_path / "a.nii")
    # nibabel stores the given numbers as they are, so the file means 2·stored - 1024.
    stored = np.asarray(nibabel.load(tmp_path / "a.nii").dataobj.get_unscaled())
    found = nifti.read(tmp_path / "a.nii", **CT)
    np.testing.assert_array_equal(found.array, (2 * stored.astype(int) - 1024).transpose(2, 1, 0))
    assert found.array.dtype == np.int16


def test_metres_become_millimetres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.diag([0.002, 0.003, 0.004, 1]))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.nii")
    assert nifti.read(tmp_path / "a.nii", **CT).spacing_mm == pytest.approx((4, 3, 2))


def test_trailing_axes_of_one_are_dropped_and_others_refused(tmp_path: Path) -> None:
    assert nifti.read(save(tmp_path / "a.nii", np.zeros((2, 3, 4, 1), np.int16)), **MR).array.shape == (4, 3, 2)
    with pytest.raises(InputError, match=r"\(2, 3, 4, 5\)"):
        nifti.read(save(tmp_path / "b.nii", np.zeros((2, 3, 4, 5), np.int16)), **MR)


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 values that are NaN"):
        nifti.read(save(tmp_path / "a.nii", np.array([[[1.0, np.nan]]])), **MR)
    with pytest.raises(InputError, match="NaN"):
        nifti.write(tmp_path / "b.nii", Volume(np.full((1, 2, 2), np.inf), np.eye(4), **MR))


def test_a_file_without_orientation_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), None)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(InputError, match="no orientation"):
        nifti.read(tmp_path / "a.nii", **MR)


def test_colour_is_refused(tmp_path: Path) -> None:
    rgb = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match="real numbers"):
        nifti.read(save(tmp_path / "a.nii", rgb), **MR)


@pytest.mark.parametrize("keep", [0, 100, 360, 400])
@pytest.mark.parametrize("suffix", nifti.SUFFIXES)
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, keep: int) -> None:
    path = save(tmp_path / f"a{suffix}", np.random.default_rng(0).normal(size=(6, 6, 6)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.nii"):
        nifti.read(path, **MR)


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 351), value=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused_but_never_crashes(position: int, value: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "a.nii", np.ones((3, 3, 3), np.int16))
        content = bytearray(path.read_bytes())
        content[position] = value
        path.write_bytes(bytes(content))
        try:
            nifti.read(path, **MR)
        except InputError as error:
            assert "\n" not in str(error)


def test_writing_is_deterministic_and_never_overwrites(tmp_path: Path, random_volume: Build) -> None:
    volume = random_volume(5)
    a = nifti.write(tmp_path / "a.nii.gz", volume)
    assert a.read_bytes() == nifti.write(tmp_path / "b.nii.gz", volume).read_bytes()
    with pytest.raises(InputError, match="exists already"):
        nifti.write(a, volume)
    with pytest.raises(InputError, match="ends in"):
        nifti.write(tmp_path / "a.img", volume)
    with pytest.raises(InputError, match="without geometry"):
        nifti.write(tmp_path / "c.nii", replace(volume, affine=None))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.shared_data
def test_real_templates_are_read(shared_data: Path) -> None:
    head = nifti.read(shared_data / "nifti" / "MNI152_T1_2mm.nii.gz", sequence="T1", **MR)
    assert head.array.shape == (91, 109, 91) and head.orientation == "SAL" and head.spacing_mm == (2, 2, 2)
    ct = nifti.read(shared_data / "nifti" / "scct_unsmooth_SS_0.01.nii.gz", **CT)
    # The brain in Hounsfield units: its median over tissue lies between water and blood.
    assert 15 < np.median(ct.array[ct.array > 5]) < 60
