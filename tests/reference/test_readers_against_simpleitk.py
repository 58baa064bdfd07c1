"""Reading and writing against SimpleITK (GDCM, NIfTI library): origin, spacing, direction and voxels of every file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import enhanced, image, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ctmr.imaging.hounsfield import FLOOR_HU
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import nifti
from ctmr.io.dicom import read_series, write_series

sitk.ProcessObject.SetGlobalWarningDisplay(False)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(itk: sitk.Image) -> np.ndarray:
    """Return the RAS affine of (slice, row, column) of an ITK image, whose space is LPS and whose order is reversed."""
    affine = np.eye(4)
    affine[:3, :3] = (np.array(itk.GetDirection()).reshape(3, 3) * itk.GetSpacing())[:, ::-1]
    affine[:3, 3] = itk.GetOrigin()
    return LPS @ affine


def assert_same(found: Volume, itk: sitk.Image, *, exact: bool = True) -> None:
    np.testing.assert_allclose(found.affine[:3, :3], affine_of(itk)[:3, :3], atol=1e-4)
    np.testing.assert_allclose(found.affine[:3, 3], affine_of(itk)[:3, 3], atol=1e-3)
    voxels = sitk.GetArrayFromImage(itk)
    if exact:
        np.testing.assert_array_equal(found.array, voxels)
    else:
        np.testing.assert_allclose(found.array, voxels, rtol=1e-6, atol=1e-4)


def itk_series(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.shared_data
def test_the_real_mr_series_is_one_volume_to_both(shared_data: Path) -> None:
    folder = shared_data / "dicom_mr_t1_studyforrest"
    assert_same(read_series(folder), itk_series(folder))


@pytest.mark.shared_data
def test_every_slice_of_the_real_ct_is_one_image_to_both(shared_data: Path) -> None:
    for path in sorted((shared_data / "dicom_ct_head_ge").glob("*.dcm")):
        itk = sitk.ReadImage(str(path))
        found = read_series([path])
        # ITK knows neither padding nor the extent of a lone slice.
        padded = sitk.GetArrayFromImage(itk) == -1500
        assert (found.array[padded] == FLOOR_HU).all() and padded.any()
        np.testing.assert_array_equal(found.array[~padded], sitk.GetArrayFromImage(itk)[~padded])
        np.testing.assert_allclose(found.affine[:3, 1:], affine_of(itk)[:3, 1:], atol=1e-4)


@pytest.mark.shared_data
def test_the_straightened_real_ct_lies_where_itk_finds_its_slices(shared_data: Path) -> None:
    folder = shared_data / "dicom_ct_head_ge"
    volume = read_series(folder, uneven_limit=np.inf)
    # The grid as an ITK image, sampled by ITK at the places of the original slices' pixels.
    matrix = LPS @ volume.affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    itk = sitk.GetImageFromArray(volume.array.astype(np.float32))
    itk.SetOrigin(matrix[:3, 3].tolist())
    itk.SetSpacing(spacing[::-1].tolist())
    itk.SetDirection((matrix[:3, :3] / spacing)[:, ::-1].ravel().tolist())

    def difference(original: sitk.Image, moved_mm: float) -> float:
        move = sitk.TranslationTransform(3, [0.0, moved_mm, 0.0])
        sampled = sitk.GetArrayFromImage(sitk.Resample(itk, original, move, sitk.sitkLinear, -1024))
        truth = np.maximum(sitk.GetArrayFromImage(original), -1024)
        return float(np.abs(sampled - truth)[(truth > -200) & (truth < 200)].mean())

    # Slices of the first slab, whose gaps are the grid's own, so that sampling there needs no neighbour.
    for name in ("03.dcm", "07.dcm", "10.dcm", "14.dcm"):
        original = sitk.ReadImage(str(folder / name), sitk.sitkFloat32)
        assert difference(original, 0.0) < 4 < 8 < min(difference(original, 0.5), difference(original, -0.5))


@pytest.mark.shared_data
def test_every_real_nifti_file_is_one_volume_to_both(shared_data: Path) -> None:
    files = sorted((shared_data / "nifti").glob("*.nii.gz"))
    assert len(files) >= 8
    for path in files:
        found = nifti.read(path, modality=Modality.CT if "scct" in path.name else Modality.MR)
        assert_same(found, sitk.ReadImage(str(path)), exact=False)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), modality=st.sampled_from(Modality))
def test_written_files_are_the_same_volume_to_itk(
    tmp_path_factory: pytest.TempPathFactory, seed: int, modality: Modality
) -> None:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    # Axes of a right-handed (slice, row, column) order, which a series keeps as it is.
    affine[:3, :3] = LPS[:3, :3] @ (Rotation.random(rng=rng).as_matrix() * rng.uniform(0.3, 5, 3))[:, ::-1]
    if np.linalg.det(affine[:3, :3]) > 0:
        affine[:3, 0] *= -1
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    array = rng.integers(0, 3000, (4, 5, 3)).astype(np.int16)
    unit = Unit.HU if modality is Modality.CT else Unit.ARBITRARY
    volume = Volume(array, affine, modality, unit, subject="S")
    folder = tmp_path_factory.mktemp("written")
    write_series(folder / "s", volume)
    nifti.write(folder / "a.nii.gz", volume)
    assert_same(volume, itk_series(folder / "s"))
    assert_same(volume, sitk.ReadImage(str(folder / "a.nii.gz")))
    assert_same(read_series(folder / "s"), itk_series(folder / "s"))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), flips=st.tuples(*[st.booleans()] * 3))
def test_itks_nifti_files_are_read_as_itk_reads_them(
    tmp_path_factory: pytest.TempPathFactory, seed: int, flips: tuple[bool, bool, bool]
) -> None:
    rng = np.random.default_rng(seed)
    itk = sitk.GetImageFromArray(rng.integers(-1000, 1000, (3, 4, 5)).astype(np.int16))
    itk.SetDirection((Rotation.random(rng=rng).as_matrix() * np.where(flips, -1, 1)).ravel().tolist())
    itk.SetSpacing(rng.uniform(0.3, 4, 3).tolist())
    itk.SetOrigin(rng.uniform(-200, 200, 3).tolist())
    path = tmp_path_factory.mktemp("itk") / "a.nii"
    sitk.WriteImage(itk, str(path))
    assert_same(nifti.read(path, modality=Modality.CT), itk)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_enhanced_file_is_one_volume_to_both(tmp_path: Path, modality: str) -> None:
    frames = np.random.default_rng(3).integers(0, 2000, (4, 6, 5)).astype(np.uint16)
    across, down, normal = Rotation.from_euler("xyz", [12, -7, 30], degrees=True).as_matrix()
    cosines = [f"{x:.14f}"[:16] for x in (*across, *down)]
    places = [np.array([11.0, -7.0, 30.0]) + k * 2.5 * normal for k in range(4)]
    dataset = enhanced(frames, places, orientation=cosines, Modality=modality, transforms=[(1.0, -1024.0)])
    (tmp_path / "e.dcm").write_bytes(stream(dataset).getvalue())
    assert_same(read_series([tmp_path / "e.dcm"]), sitk.ReadImage(str(tmp_path / "e.dcm")))


def test_rescaled_values_equal_itks(tmp_path: Path) -> None:
    stored = np.random.default_rng(4).integers(0, 4000, (6, 5)).astype(np.uint16)
    for k, (slope, intercept) in enumerate([(1, -1024), (0.5, 10), (2, 0)]):
        path = tmp_path / f"{k}.dcm"
        path.write_bytes(stream(image(stored, RescaleSlope=slope, RescaleIntercept=intercept)).getvalue())
        np.testing.assert_allclose(read_series([path]).array, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def test_the_product_itself_does_not_load_simpleitk_to_read() -> None:
    code = "import sys, ctmr.io.dicom, ctmr.io.nifti, ctmr.io.raster; print('SimpleITK' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
