"""Truth: masks that come with a dataset, pairs that a registration joins, and inputs with training-only steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctmr.errors import InputError
from ctmr.evaluation.candidates import AS_TRAINED, OWN, Model
from ctmr.evaluation.direction import measure_direction
from ctmr.imaging.volume import Direction
from ctmr.metrics.protocol import Mask

from .conftest import QUICK, pretend, recipe

SYNTHRAD = 'evaluate.paired_protocols=["paired_volume_hu", "synthrad2023"]'


def with_raw(world, tmp_path):
    shutil.copytree(world.inputs["raw"], tmp_path / "raw")
    return replace(world, inputs=world.inputs | {"raw": tmp_path / "raw"})


def with_steps(world, tmp_path, *steps):
    shutil.copytree(world.inputs["preprocessed"], tmp_path / "preprocess")
    grid = json.loads((tmp_path / "preprocess" / "grid.json").read_text())
    grid["steps"] = [*steps, *grid["steps"]]
    (tmp_path / "preprocess" / "grid.json").write_text(json.dumps(grid))
    return replace(world, inputs=world.inputs | {"preprocessed": tmp_path / "preprocess"})


def silent(message, fraction=None):
    pass


def side_of(world, *settings, direction=Direction.MR2CT):
    model = Model.load(world.inputs["model"], direction)
    return measure_direction(world.test_set(direction), model, recipe(*QUICK, *settings), tell=silent)


def write_mask(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), affine), path)
    return path


# Masks that come with a dataset


def test_synthrad_without_a_mask_is_refused_before_anything_is_translated(world, monkeypatch):
    def never(self, array, slices=None):
        raise AssertionError("translated")

    monkeypatch.setattr(Model, "translate", never)
    with pytest.raises(InputError, match=r"none lies beside test/CT/44\.nii\.gz; put mask\.nii\.gz there"):
        side_of(world, SYNTHRAD)


# Registered pairs


SHIFT = np.array([[0.97, -0.24, 0, 9.0], [0.24, 0.97, 0, -14.0], [0, 0, 1, 12.0], [0, 0, 0, 1]])
SHIFT[:2, :2] /= np.hypot(0.97, 0.24)


@pytest.mark.slow
@pytest.mark.parametrize("moving", ["CT", "MR"])
def test_where_preprocessing_registers_a_pair_its_truth_is_compared_where_it_belongs(
    world, tmp_path, monkeypatch, moving
):
    """The scanner put the CT elsewhere; the shards are aligned, as preprocessing would have left them."""
    changed = with_raw(world, tmp_path)
    for path in sorted((changed.inputs["raw"] / "test" / "CT").glob("*.nii.gz")):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), SHIFT @ image.affine), path)
    pretend(monkeypatch, world, lambda array, truth: truth)
    apart = side_of(changed)
    registration = {"kind": "registration", "modality": moving, "transform": "rigid", "engine": "simpleitk"}
    joined_world = with_steps(changed, tmp_path, registration)
    joined = side_of(joined_world)
    errors = [s.own["paired_volume_hu"].mean("mae") for s in (apart, joined)]
    assert errors[1] < errors[0] / 3
    case = joined_world.test_set().case(0)
    corners = np.array([[d, h, w, 1] for d in (4, 20) for h in (4, 24) for w in (4, 20)]).T
    own = case.volumes[0].affine @ corners
    assert np.abs(case.truth.placed @ corners - own).max() < 4.0, "half a voxel"
    assert (joined.as_trained is None) == (moving == "CT")
    if joined.as_trained:
        assert joined.as_trained["paired_volume_hu"].mean("mae") < errors[0] / 3


# Inputs with training-only steps, where nothing is paired


def test_without_pairs_the_served_path_decides_and_both_are_measured(world, tmp_path):
    step = {"kind": "table_removal", "modality": "CT", "served": False}
    changed = with_steps(world, tmp_path, step)
    shard = changed.inputs["preprocessed"] / "shards" / "test" / "CT.npy"
    blanked = np.load(shard)
    blanked[..., :12] = -1024
    np.save(shard, blanked)
    plain = side_of(world, direction=Direction.CT2MR)
    both = side_of(changed, direction=Direction.CT2MR)
    assert AS_TRAINED not in plain.summaries
    assert {n: s.to_dict() for n, s in both.summaries[OWN].items()} == {
        n: s.to_dict() for n, s in plain.summaries[OWN].items()
    }
    assert set(both.as_trained) == set(both.own)
    assert both.as_trained["cycle_slice"].mean("mae") != plain.own["cycle_slice"].mean("mae")


def test_a_training_only_step_of_the_target_alone_makes_no_second_path(world, tmp_path):
    step = {"kind": "table_removal", "modality": "CT", "served": False}
    assert not with_steps(world, tmp_path, step).test_set(Direction.MR2CT).differs_as_trained


def test_masks_of_other_kinds_need_no_file(world):
    truth = world.test_set().case(0).truth
    assert truth.mask(Mask.NONE) is None
    both = truth.mask(Mask.HEAD_FROM_CT_AND_MR)
    assert both.any() and not (both & ~truth.mask(Mask.HEAD_FROM_CT)).any()


def test_masks_are_left_out_of_the_inventory_and_kept_in_raw(tmp_path):
    from ctmr.pipeline.stages.fetch import find_images

    for name in ("p1/ct.nii.gz", "p1/mr.nii.gz", "p1/mask.nii.gz"):
        Path(tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [e.path for e in find_images(tmp_path)] == ["p1/ct.nii.gz", "p1/mr.nii.gz"]
