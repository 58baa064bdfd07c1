"""read_image finds the reader, asks for what a format does not say, and never turns a picture into HU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.io import FORMATS, format_of, nifti, raster, read_image
from ctmr.io.dicom import write_series

Build = Callable[..., Volume]


@pytest.fixture
def ct(random_volume: Build) -> Volume:
    return random_volume(2)


def test_each_format_is_found(tmp_path: Path, ct: Volume) -> None:
    series = write_series(tmp_path / "series", ct)
    series[0].rename(tmp_path / "series" / "no_suffix")
    nifti.write(tmp_path / "a.nii.gz", ct)
    raster.write(tmp_path / "a.png", Volume(np.zeros((1, 8, 8), np.uint8), None, Modality.CT, Unit.GREY8))
    assert read_image(tmp_path / "series").subject == "S01"
    assert read_image(tmp_path / "series", subject="X").subject == "X"
    assert read_image(tmp_path / "series" / "no_suffix").array.shape == (1, 4, 3)
    assert read_image(tmp_path / "a.nii.gz", modality=Modality.CT).unit is Unit.HU
    assert read_image(tmp_path / "a.nii.gz", modality=Modality.MR).unit is Unit.ARBITRARY
    assert read_image(tmp_path / "a.nii.gz", modality=Modality.CT, unit=Unit.ARBITRARY).unit is Unit.ARBITRARY
    assert read_image(tmp_path / "a.png", modality=Modality.CT).unit is Unit.GREY8
    bare = (tmp_path / "series" / "no_suffix").read_bytes()[132:]
    (tmp_path / "bare").write_bytes(bare)
    assert format_of(tmp_path / "bare") == "dicom" and read_image(tmp_path / "bare").array.shape == (1, 4, 3)


def test_formats_are_named_as_in_the_inventory() -> None:
    assert set(FORMATS) == {"dicom", "nifti", "raster"}
    assert format_of(Path("x/A.NII.GZ")) == "nifti" and format_of(Path("x/a.JPEG")) == "raster"
    assert format_of(Path("x/a.doc")) is None


def test_what_a_format_does_not_say_must_be_given(tmp_path: Path, ct: Volume) -> None:
    nifti.write(tmp_path / "a.nii", ct)
    with pytest.raises(InputError, match="does not say its modality"):
        read_image(tmp_path / "a.nii")


def test_a_ct_without_air_never_passes_for_hounsfield_units_unless_somebody_says_so(tmp_path: Path, ct: Volume) -> None:
    path = nifti.write(tmp_path / "cormack.nii", ct.with_array((ct.array + 1024).astype(np.int16)))
    assert read_image(path, modality=Modality.CT).unit is Unit.ARBITRARY
    assert read_image(path, modality=Modality.CT, unit=Unit.HU).unit is Unit.HU


@pytest.mark.shared_data
def test_the_real_template_in_cormack_units_is_not_in_hounsfield_units(shared_data: Path) -> None:
    assert read_image(shared_data / "nifti" / "scct.nii.gz", modality=Modality.CT).unit is Unit.ARBITRARY


def test_a_picture_never_yields_hounsfield_units(tmp_path: Path) -> None:
    raster.write(tmp_path / "a.png", Volume(np.zeros((1, 8, 8), np.uint8), None, Modality.CT, Unit.GREY8))
    with pytest.raises(InputError, match="grey8, not HU"):
        read_image(tmp_path / "a.png", modality=Modality.CT, unit=Unit.HU)


def test_a_dicom_of_another_modality_is_refused(tmp_path: Path, ct: Volume) -> None:
    write_series(tmp_path / "series", ct)
    with pytest.raises(InputError, match="wrong modality"):
        read_image(tmp_path / "series", modality=Modality.MR)


def test_unknown_paths_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_image(tmp_path / "absent.nii")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="no known format"):
        read_image(tmp_path / "a.txt")


def test_readers_load_neither_torch_nor_each_other() -> None:
    heavy = ("torch", "pydicom", "nibabel")
    code = f"import sys, ctmr.io, ctmr.io.raster; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
