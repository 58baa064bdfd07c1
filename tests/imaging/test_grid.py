"""Grid: what a model was trained on, in geometry that makes sense, and the same after JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ctmr.imaging.grid import (
    ORIENTATION,
    Grid,
    Plane,
    ServeStep,
    picture_grid,
    volume_grid,
)
from ctmr.imaging.steps.base import Transform
from ctmr.imaging.steps.bias_field import BiasField
from ctmr.imaging.steps.head_mask import HeadMask
from ctmr.imaging.steps.order import check_order
from ctmr.imaging.steps.registration import Registration
from ctmr.imaging.steps.table_removal import TableRemoval
from ctmr.imaging.volume import Interpolation, Modality

PLANES = [p for p in Plane if p is not Plane.PICTURE]
# Patient axis that runs through the slices of each plane, by the anatomical definition of the planes.
THROUGH = {Plane.AXIAL: "SI", Plane.SAGITTAL: "RL", Plane.CORONAL: "AP"}

steps = st.one_of(
    st.builds(HeadMask, modality=st.sampled_from(Modality), served=st.booleans()),
    st.builds(TableRemoval, threshold_hu=st.floats(-900, -100), served=st.booleans()),
    st.builds(TableRemoval, reference=st.just("atlas/CT/head.nii"), served=st.just(False)),
    st.builds(BiasField, control_points=st.integers(4, 16), served=st.booleans()),
    st.builds(Registration, modality=st.sampled_from(Modality)),
    st.builds(
        Registration,
        modality=st.sampled_from(Modality),
        transform=st.sampled_from(Transform),
        reference=st.just("atlas/CT/head.nii"),
    ),
)


def in_order(chosen):
    try:
        check_order(chosen)
    except ValueError:
        return False
    return True


grids = st.one_of(
    st.builds(
        volume_grid,
        st.sampled_from(PLANES),
        st.tuples(*[st.integers(8, 4096)] * 2),
        st.tuples(*[st.floats(0.01, 50)] * 2),
        st.none() | st.floats(0.01, 50),
        st.lists(steps, max_size=4).filter(in_order).map(tuple),
        st.sampled_from(Interpolation),
    ),
    st.builds(picture_grid, st.tuples(*[st.integers(8, 4096)] * 2)),
)


@given(grids)
def test_a_grid_survives_json(grid):
    assert Grid.model_validate_json(grid.model_dump_json()) == grid
    assert Grid.model_validate(json.loads(grid.model_dump_json())) == grid


@pytest.mark.parametrize("plane", PLANES)
def test_slices_of_a_plane_are_stacked_along_the_axis_that_the_plane_leaves_out(plane):
    letters = ORIENTATION[plane]
    assert letters[0] in THROUGH[plane]
    assert all(sum(letter in pair for letter in letters) == 1 for pair in ("RL", "AP", "SI"))
    assert volume_grid(plane, (64, 64), (1.0, 1.0)).orientation == letters


@pytest.mark.parametrize("plane", PLANES)
def test_the_head_is_upright_radiologists_left_is_the_patients_right_and_slices_have_one_order(plane):
    stacked, down, right = ORIENTATION[plane]
    assert stacked == {"axial": "S", "sagittal": "L", "coronal": "P"}[plane]
    assert down == {"axial": "P", "sagittal": "I", "coronal": "I"}[plane]
    assert right == {"axial": "L", "sagittal": "P", "coronal": "L"}[plane]


def test_a_volume_is_reoriented_before_it_is_resampled_and_cropped_last():
    steps = volume_grid(Plane.AXIAL, (64, 64), (1.0, 1.0)).steps
    assert steps == (ServeStep.REORIENT, ServeStep.RESAMPLE, ServeStep.CROP_OR_PAD)


def test_a_picture_has_no_orientation_and_is_never_resampled_in_millimetres():
    grid = picture_grid((96, 64))
    assert (grid.orientation, grid.spacing_mm, grid.slice_spacing_mm) == ("", None, None)
    assert ServeStep.RESAMPLE not in grid.steps


def test_the_grid_keeps_the_order_of_steps_and_names_those_of_training_only():
    steps = (TableRemoval(), Registration(modality="CT"), BiasField(), HeadMask(modality="MR"))
    grid = volume_grid(Plane.AXIAL, (64, 64), (1.0, 1.0), image_steps=steps)
    assert grid.image_steps == steps and grid.geometry[0] is ServeStep.REORIENT
    assert grid.training_only == ("registration", "bias_field")
    assert json.loads(grid.model_dump_json())["training_only"] == ["registration", "bias_field"]


def test_a_grid_written_before_image_steps_existed_is_read():
    text = (
        '{"plane":"axial","size":[64,64],"spacing_mm":[1.0,1.0],"slice_spacing_mm":null,'
        '"steps":["reorient","resample","crop_or_pad"],"training_only":[]}'
    )
    assert Grid.model_validate_json(text) == volume_grid(Plane.AXIAL, (64, 64), (1.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (TableRemoval, {"modality": "MR"}, "table_removal is for CT only, not for MR"),
        (TableRemoval, {"reference": "a.nii"}, "cannot be served, since a client has no reference"),
        (BiasField, {"modality": "CT"}, "bias_field is for MR only, not for CT"),
        (BiasField, {"iterations": ()}, "at least 1 item"),
        (Registration, {"modality": "CT", "served": True}, "cannot be served"),
        (Registration, {}, "Field required"),
        (HeadMask, {"modality": "PET"}, "CT"),
    ],
)
def test_an_impossible_step_is_refused(kind, fields, words):
    with pytest.raises(ValidationError, match=words):
        kind(**fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing_mm": (1.0, 1.0)}, "a picture grid has no spacing"),
        ({"slice_spacing_mm": 1.0}, "a picture grid has no spacing"),
        ({"steps": ("resample",)}, "a picture grid cannot"),
        ({"steps": ("reorient",)}, "a picture grid cannot"),
        ({"steps": ({"kind": "table_removal"}, "resize")}, "pictures have no geometry, so table_removal"),
        ({"steps": ("resize", {"kind": "head_mask", "modality": "CT"})}, "come before the geometry"),
        ({"plane": "axial"}, "needs spacing_mm"),
        ({"size": (7, 64)}, "greater than or equal to 8"),
        ({"size": (64, 5000)}, "less than or equal to 4096"),
        ({"plane": "axial", "spacing_mm": (0.0, 1.0)}, "greater than 0"),
        ({"plane": "axial", "spacing_mm": (51.0, 1.0)}, "less than or equal to 50"),
        ({"plane": "axial", "spacing_mm": (float("nan"), 1.0)}, "spacing_mm"),
        ({"plane": "oblique"}, "axial"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_an_impossible_grid_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        Grid.model_validate({"plane": "picture", "size": (64, 64), "steps": (), **changes})


def test_a_grid_cannot_be_changed():
    with pytest.raises(ValidationError):
        picture_grid((64, 64)).size = (32, 32)
