"""NIfTI in and out: geometry against nibabel, values, every refusal."""

from __future__ import annotations

import gzip
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
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import FORMATS, nifti

Build = Callable[..., Volume]
CT = {"modality": Modality.CT, "unit": Unit.HU}
MR = {"modality": Modality.MR, "unit": Unit.ARBITRARY}
SUFFIXES = FORMATS["nifti"].suffixes


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine).to_filename(path)
    return path


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), modality=st.sampled_from(Modality), suffix=st.sampled_from(SUFFIXES))
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
    image = nibabel.load(nifti.write(tmp_path / "a.nii.gz", volume, text={"Description": "synthetic CT"}))
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


@pytest.mark.parametrize(
    ("stored", "slope", "inter", "dtype"),
    [
        (np.arange(24), 1, -1024, np.int16),
        (np.arange(24), 2, 0, np.int16),
        (np.arange(24) + 65000, 1, 0, np.uint16),
        (np.arange(24) + 65000, 2, 0, np.float32),
        (np.arange(24), 0.5, 3, np.float32),
        (np.arange(24) * 1000, 1 / 3, -1024, np.float32),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_scaled_integers_equal_nibabels_float64(
    tmp_path: Path, stored: np.ndarray, slope: float, inter: float, dtype: type, order: str
) -> None:
    kind = f"{order}{'u2' if stored.max() > 32767 else 'i2'}"
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(kind)
    image = nibabel.Nifti1Image(stored.astype(kind).reshape(2, 3, 4), np.eye(4), header)
    image.header.set_slope_inter(slope, inter)
    # to_filename scales what it is given, so that the file means the given numbers; the bytes are set by hand.
    content = bytearray(image.header.binaryblock + bytes(4) + stored.astype(kind).tobytes())
    content[108:112] = np.array(352, f"{order}f4").tobytes()
    (tmp_path / "a.nii").write_bytes(bytes(content))
    truth = nibabel.load(tmp_path / "a.nii").get_fdata()
    assert truth.ravel("F")[1] == pytest.approx(stored[1] * slope + inter)
    found = nifti.read(tmp_path / "a.nii", **MR).array
    assert found.dtype == dtype and found.dtype.isnative
    np.testing.assert_allclose(found, truth.transpose(2, 1, 0), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_every_real_voxel_type_keeps_its_values(tmp_path: Path, dtype: type) -> None:
    truth = np.random.default_rng(0).integers(0, 100, (2, 3, 4)).astype(dtype)
    truth[0, 0, 0] = np.iinfo(dtype).max % 30000 if np.issubdtype(dtype, np.integer) else 0.25
    nibabel.Nifti1Image(truth, np.eye(4), dtype=dtype).to_filename(tmp_path / "a.nii.gz")
    found = nifti.read(tmp_path / "a.nii.gz", **MR).array
    np.testing.assert_array_equal(found, truth.transpose(2, 1, 0))
    assert found.dtype in (np.uint8, np.int16, np.uint16, np.float32)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nifti_2_is_read(tmp_path: Path, suffix: str) -> None:
    truth = np.random.default_rng(0).integers(-1000, 100, (2, 3, 4)).astype(np.int16)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    nibabel.Nifti2Image(truth, affine).to_filename(tmp_path / f"a{suffix}")
    found = nifti.read(tmp_path / f"a{suffix}", **MR)
    np.testing.assert_array_equal(found.array, truth.transpose(2, 1, 0))
    assert found.spacing_mm == (3, 2, 1)


@settings(max_examples=40, deadline=None)
@given(order=st.permutations([0, 1, 2]), signs=st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_all_48_orientations_place_voxels_as_nibabel_does(order: list[int], signs: tuple[int, int, int]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(signs) * [1.0, 2.0, 3.0])[:, order]
    affine[:3, 3] = [5, -7, 11]
    data = np.random.default_rng(0).integers(0, 99, (3, 4, 5)).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        volume = nifti.read(save(Path(folder) / "a.nii", data, affine), **MR)
        codes = nibabel.aff2axcodes(nibabel.load(Path(folder) / "a.nii").affine)
    assert volume.orientation == "".join(codes)[::-1]
    np.testing.assert_array_equal(volume.array.transpose(2, 1, 0), data)
    np.testing.assert_allclose(volume.affine @ [4, 3, 2, 1], affine @ [2, 3, 4, 1])


def test_where_qform_and_sform_disagree_the_sform_is_used_and_it_is_said(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.set_sform(image.affine, code=2)
    moved = image.affine.copy()
    moved[0, 3] = 6.5
    image.set_qform(moved, code=1)
    image.to_filename(tmp_path / "a.nii")
    found = nifti.read(tmp_path / "a.nii", **MR)
    assert found.notes == ("its qform and sform place voxels up to 6.5 mm apart; the sform was used",)
    np.testing.assert_allclose(found.affine[:3, 3], [0, 0, 0])
    image.set_sform(image.affine, code=0)
    image.to_filename(tmp_path / "b.nii")
    qform_only = nifti.read(tmp_path / "b.nii", **MR)
    assert qform_only.notes == () and qform_only.affine[0, 3] == 6.5


def test_an_affine_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    flat = np.diag([1.0, 0.0, 3.0, 1.0])
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.eye(4))
    image.set_sform(flat, code=2)
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a\.nii cannot be read as NIfTI: .*collapses an axis"):
        nifti.read(tmp_path / "a.nii", **MR)


def test_a_ct_is_in_hounsfield_units_only_when_it_shows_air_or_somebody_says_so(tmp_path: Path) -> None:
    air = save(tmp_path / "air.nii", np.array([[[-1000, 40, 1000]]], np.int16))
    cormack = save(tmp_path / "cormack.nii", np.array([[[0, 1440, 3100]]], np.int16))
    for path, modality, unit in (
        (air, Modality.CT, Unit.HU),
        (air, Modality.MR, Unit.ARBITRARY),
        (cormack, Modality.CT, Unit.ARBITRARY),
    ):
        assert nifti.read(path, modality=modality).unit is unit
    assert nifti.read(cormack, modality=Modality.CT, unit=Unit.HU).unit is Unit.HU


def test_what_is_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.ones((3, 3, 3), np.int16))
    found = nifti.read(path, **MR)
    path.write_bytes(bytes(10))
    assert (found.array == 1).all()


def test_metres_become_millimetres(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.diag([0.002, 0.003, 0.004, 1]))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.nii")
    assert nifti.read(tmp_path / "a.nii", **CT).spacing_mm == pytest.approx((4, 3, 2))


def test_trailing_axes_of_one_are_dropped_and_others_refused(tmp_path: Path) -> None:
    assert nifti.read(save(tmp_path / "a.nii", np.zeros((2, 3, 4, 1), np.int16)), **MR).array.shape == (4, 3, 2)
    with pytest.raises(InputError, match=r"\(2, 3, 4, 5\)"):
        nifti.read(save(tmp_path / "b.nii", np.zeros((2, 3, 4, 5), np.int16)), **MR)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_cts_padding_becomes_air_and_an_mrs_is_left_alone(tmp_path: Path, dtype: type) -> None:
    array = np.full((4, 6, 5), -3024, dtype)
    array[1:3, 1:5, 1:4] = np.random.default_rng(0).integers(-1000, 900, (2, 4, 3))
    path = save(tmp_path / "a.nii", array)
    found = nifti.read(path, **CT)
    np.testing.assert_array_equal(found.array.transpose(2, 1, 0), np.where(array == -3024, -1024, array))
    assert found.notes == ("80% of its voxels hold -3024 HU, which nothing has: padding, which became -1024",)
    assert nifti.read(path, **MR).array.min() == -3024 and nifti.read(path, **MR).notes == ()


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
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, keep: int) -> None:
    path = save(tmp_path / f"a{suffix}", np.random.default_rng(0).normal(size=(6, 6, 6)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.nii"):
        nifti.read(path, **MR)


def test_a_shape_that_no_image_has_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.ones((3, 3, 3), np.int16))
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"claims shape \(32000, 32000, 32000\)"):
        nifti.read(path, **MR)
    content[42:48] = np.array([1000, 1000, 1000], "<i2").tobytes()
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"a\.nii cannot be read as NIfTI"):
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
    head = nifti.read(shared_data / "nifti" / "MNI152_T1_2mm.nii.gz", **MR)
    assert head.array.shape == (91, 109, 91) and head.orientation == "SAL" and head.spacing_mm == (2, 2, 2)
    assert nifti.read(shared_data / "nifti" / "scct.nii.gz", modality=Modality.CT).unit is Unit.ARBITRARY
    ct = nifti.read(shared_data / "nifti" / "scct_unsmooth_SS_0.01.nii.gz", **CT)
    # The brain in Hounsfield units: its median over tissue lies between water and blood.
    assert 15 < np.median(ct.array[ct.array > 5]) < 60


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("offset", [0, 16, 348])
@pytest.mark.parametrize("suffix", FORMATS["nifti"].suffixes)
def test_an_impossible_offset_makes_no_voxels_of_the_header(
    tmp_path: Path, kind: type, offset: int, suffix: str
) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(with_offset(array, kind, offset, gzipped=suffix.endswith("gz")))
    read = nifti.read(path, modality=Modality.MR)
    np.testing.assert_array_equal(read.array, array.transpose(2, 1, 0))


def test_an_impossible_offset_of_a_file_whose_length_does_not_tell_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.nii"
    path.write_bytes(with_offset(np.zeros((3, 4, 5), np.int16), nibabel.Nifti1Image, 16) + b"more")
    with pytest.raises(InputError, match=r"image\.nii .*vox_offset is 16, at least 352 is allowed"):
        nifti.read(path, modality=Modality.MR)


def with_offset(array: np.ndarray, kind: type, offset: int, *, gzipped: bool = False) -> bytes:
    """Return a single NIfTI file whose header claims that its voxels begin elsewhere, with a name in it."""
    image = kind(array, np.eye(4))
    image.header["descrip"] = b"DOE^JANE"
    header, content = image.header, image.to_bytes()
    whole = header.template_dtype.itemsize
    header["vox_offset"] = offset
    made = header.binaryblock + content[whole:]
    return gzip.compress(made) if gzipped else made


def test_a_voxel_beyond_float32_is_refused(tmp_path: Path) -> None:
    array = np.ones((3, 3, 3))
    array[1, 1, 1] = 1e300
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(InputError, match="holds 1 values that are NaN or infinite"):
        nifti.read(tmp_path / "a.nii", modality=Modality.MR)
