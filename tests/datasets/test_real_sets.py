"""Importers and de-identification on real images, where they lie."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pydicom
import pytest

from ctmr.datasets.build import build
from ctmr.datasets.deid.pseudonyms import Key
from ctmr.datasets.deid.residual import remaining
from ctmr.datasets.dvc import unpack
from ctmr.datasets.importers import plan
from ctmr.datasets.names import Dates, FolderLayout
from ctmr.datasets.scanning import Scan, scanned
from ctmr.io.dicom import read_series

pytestmark = [pytest.mark.slow, pytest.mark.shared_data]
KEY = Key(b"k" * 32)


def built(made, folder, said):
    return build(made, folder, name="x", key=KEY, dates=Dates.REMOVE, skip_refused=True, report=said).index


def test_the_kaggle_set_is_found_with_its_splits(shared_data, tmp_path, said):
    with scanned(shared_data / "kaggle_ct_mr", tmp_path / "ids") as scan:
        made = plan(scan, FolderLayout.AUTO)
        some = plan(Scan(scan.items[::100]), FolderLayout.KAGGLE)
    counts = Counter((f.split, f.modality.value) for f in made.images)
    assert made.layout is FolderLayout.KAGGLE
    assert counts == {("train", "CT"): 700, ("test", "CT"): 250, ("train", "MR"): 895, ("test", "MR"): 237}
    index = built(some, tmp_path / "out", said)
    assert index["pairs"] == 0 and index["subjects"] == index["images"] == len(some.images)
    for archive in (tmp_path / "out").rglob("*.zip"):
        unpack(archive, archive.with_suffix(""))
    files = list((tmp_path / "out").rglob("*.png"))
    assert len(files) == len(some.images) and remaining("raster", files) == ()


def cleaned(source, tmp_path, said):
    """De-identify a series and return the folder of the result."""
    with scanned(source, tmp_path / "ids") as scan:
        built(plan(scan, FolderLayout.AUTO), tmp_path / "out", said)
    (archive,) = (tmp_path / "out").rglob("*.zip")
    unpack(archive, tmp_path / "series")
    files = sorted((tmp_path / "series").iterdir())
    assert remaining("dicom", files) == ("RecognizableVisualFeatures",)
    content = b"".join(f.read_bytes() for f in files)
    for word in (b"Jane", b"20130717", b"19660101", b"Hanke", b"QMNx85rKkkg", b"HiSpeed"):
        assert word not in content
    return tmp_path / "series"


def test_a_real_mr_series_reads_as_before_and_names_nobody(shared_data, tmp_path, said):
    series = cleaned(shared_data / "dicom_mr_t1_studyforrest", tmp_path, said)
    before, after = read_series(shared_data / "dicom_mr_t1_studyforrest"), read_series(series)
    np.testing.assert_array_equal(before.array, after.array)
    np.testing.assert_allclose(before.affine, after.affine, atol=1e-9)
    assert (after.modality, after.unit, after.sequence) == (before.modality, before.unit, before.sequence)


def test_a_real_ct_series_keeps_every_slice_and_names_nobody(shared_data, tmp_path, said):
    series = cleaned(shared_data / "dicom_ct_head_ge", tmp_path, said)
    kept = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "GantryDetectorTilt", "RescaleSlope")
    seen = []
    for folder in (shared_data / "dicom_ct_head_ge", series):
        images = [pydicom.dcmread(f) for f in sorted(folder.glob("*.dcm"))]
        seen.append([([str(i[k].value) for k in kept], i.PixelPaddingValue, i.pixel_array.tobytes()) for i in images])
    assert len(seen[0]) == 28 and seen[0] == seen[1]
