"""Masks that came with a dataset: read where the manifest says, and used by the protocols that ask for them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest

from ctmr.errors import InputError

from .conftest import QUICK, pretend

SYNTHRAD = [*QUICK, "evaluate.paired_protocols=[synthrad2023]", "gate={synthrad2023: {psnr: {min: 0.1}}}"]
pytestmark = pytest.mark.usefixtures("unreported")


@pytest.fixture
def masked(world, tmp_path):
    """The test set with a mask beside each CT: the lower half of the head's box, on a grid twice as fine."""
    root = tmp_path / "inputs"
    shutil.copytree(world.inputs["raw"], root / "raw")
    table = pd.read_parquet(world.inputs["manifest"])
    table["mask"] = ""
    for row in table[(table["split"] == "test") & (table["modality"] == "CT")].index:
        image = nibabel.load(root / "raw" / table.loc[row, "path"])
        fine = np.repeat(np.repeat(np.repeat(lower_half(image.shape), 2, 0), 2, 1), 2, 2)
        affine = image.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
        affine[:3, 3] = (image.affine @ [-0.25, -0.25, -0.25, 1.0])[:3]
        path = table.loc[row, "path"].replace(".nii.gz", "_mask.nii.gz")
        nibabel.save(nibabel.Nifti1Image(fine.astype(np.uint8), affine), root / "raw" / path)
        table.loc[row, "mask"] = path
    table.to_parquet(root / "manifest.parquet")
    return replace(world, inputs=world.inputs | {"raw": root / "raw", "manifest": root / "manifest.parquet"})


def lower_half(shape):
    mask = np.zeros(shape, dtype=bool)
    mask[:, : shape[1] // 2] = True
    return mask


def test_a_synthrad_protocol_is_measured_inside_the_mask_that_came_along(masked, home, tmp_path, monkeypatch):
    def answer(array, truth):
        # Axes of the file are (i, j, k), of arrays (k, j, i).
        return truth + np.where(lower_half(truth.shape[::-1]).transpose(), 3.0, 500.0)

    pretend(monkeypatch, masked, answer)
    _, tree = masked.evaluate(home, tmp_path / "out", *SYNTHRAD)
    # The grid lies about the head: a column of air at the edge of one image is beyond it.
    assert tree["summaries"]["synthrad2023"]["metrics"]["mae"]["mean"] == pytest.approx(3.0, abs=0.6)


def test_images_without_a_mask_are_named_and_an_empty_mask_is_refused(masked, home, tmp_path):
    table = pd.read_parquet(masked.inputs["manifest"])
    mask = masked.inputs["raw"] / next(m for m in table["mask"] if m)
    empty = nibabel.load(mask)
    nibabel.save(nibabel.Nifti1Image(np.zeros(empty.shape, np.uint8), empty.affine), mask)
    with pytest.raises(InputError, match=r"the mask test/CT/44_mask.nii.gz marks no voxel of test/CT/44.nii.gz"):
        masked.evaluate(home, tmp_path / "a", *SYNTHRAD)
    table.assign(mask="").to_parquet(masked.inputs["manifest"])
    with pytest.raises(InputError, match=r"none lies beside test/CT/44\.nii\.gz; put mask\.nii\.gz there"):
        masked.evaluate(home, tmp_path / "b", *SYNTHRAD)


def test_a_truth_thinner_than_a_window_or_a_mask_without_a_voxel_ends_in_a_sentence(world, home, tmp_path, monkeypatch):
    pretend(monkeypatch, world, lambda array, truth: truth)
    monkeypatch.setattr("ctmr.evaluation.truth.head_mask_ct", lambda hu: np.zeros(hu.shape, dtype=bool))
    with pytest.raises(InputError, match=r"mask head_from_ct is empty; .*; leave the image out of the test, or"):
        world.evaluate(home, tmp_path / "empty", *QUICK)
    table = pd.read_parquet(world.inputs["manifest"]).assign(depth=6, height=28, width=24)
    table.to_parquet(tmp_path / "manifest.parquet")
    thin = replace(world, inputs=world.inputs | {"manifest": tmp_path / "manifest.parquet"})
    words = r"truth test/CT/44\.nii\.gz has 6 × 28 × 24 voxels, and the SSIM of paired_volume_hu needs 7"
    with pytest.raises(InputError, match=words):
        thin.evaluate(home, tmp_path / "thin", *QUICK)
