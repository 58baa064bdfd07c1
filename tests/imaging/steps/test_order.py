"""Steps in the recipe's order: which are possible, which are served, what the grid records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from ctmr.errors import InputError
from ctmr.imaging.grid import (
    Grid,
    Plane,
    ServeStep,
    picture_grid,
    volume_grid,
)
from ctmr.imaging.steps import REGISTRY, step_class
from ctmr.imaging.steps.bias_field import BiasField
from ctmr.imaging.steps.head_mask import HeadMask
from ctmr.imaging.steps.registration import Registration
from ctmr.imaging.steps.table_removal import TableRemoval
from ctmr.imaging.volume import Modality
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe

CT, MR = Modality.CT, Modality.MR


def grid(*steps):
    return volume_grid(Plane.AXIAL, (64, 48), (2.0, 2.0), None, steps)


def test_the_grid_records_every_step_and_names_those_that_are_not_served():
    made = grid(BiasField(), TableRemoval(), Registration(modality=CT, reference="a"))
    assert made.training_only == ("bias_field", "registration")
    assert [s.kind for s in made.image_steps] == ["bias_field", "table_removal", "registration"]
    assert made.geometry == (ServeStep.REORIENT, ServeStep.RESAMPLE, ServeStep.CROP_OR_PAD)
    assert Grid.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    "steps, sentence",
    [
        ([{"kind": "registration", "modality": "CT", "served": True}], "a client has no reference"),
        ([{"kind": "registration", "modality": "CT", "transform": "deformable"}], "one head has one shape"),
        ([{"kind": "registration", "modality": "CT", "transform": "affine"}], "is rigid, not affine"),
        ([{"kind": "registration", "modality": "CT"}, {"kind": "registration", "modality": "MR"}], "registered itself"),
        (
            [{"kind": "registration", "modality": "CT"}, {"kind": "registration", "modality": "MR", "reference": "a"}],
            "registered itself",
        ),
        (
            [
                {"kind": "registration", "modality": "CT", "reference": "a"},
                {"kind": "registration", "modality": "CT", "reference": "b"},
            ],
            "registered twice",
        ),
        ([{"kind": "table_removal", "reference": "a", "served": False}], "needs a registration"),
        ([{"kind": "table_removal", "reference": "a"}], "cannot be served"),
        (
            [{"kind": "registration", "modality": "CT", "reference": "a"}, {"kind": "table_removal"}],
            "put it before the registration",
        ),
        ([{"kind": "bias_field", "modality": "CT"}], "for MR only"),
        ([{"kind": "table_removal", "modality": "MR"}], "for CT only"),
        ([{"kind": "blur"}], "one of head_mask, table_removal, bias_field, registration; found kind 'blur'"),
        ([{"kind": ["head_mask"], "modality": "CT"}], "a step is a mapping with a kind"),
        ([{"modality": "CT"}], "found kind None"),
        (["reorient"], "a step is a mapping with a kind"),
        ([{"kind": "bias_field", "iterations": [0]}], "preprocess.steps.0.iterations.0: .*greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(steps, sentence):
    with pytest.raises(InputError, match=sentence) as raised:
        override(Recipe(), [("preprocess.steps", steps)])
    assert "\n" not in str(raised.value)


def test_a_mask_of_the_reference_that_images_were_registered_to_is_possible():
    steps = [
        {"kind": "registration", "modality": "CT", "reference": "a", "transform": "deformable"},
        {"kind": "table_removal", "reference": "a", "served": False},
    ]
    assert len(override(Recipe(), [("preprocess.steps", steps)]).preprocess.steps) == 2


def test_pictures_take_no_step_that_needs_millimetres():
    assert picture_grid((64, 64), (BiasField(), HeadMask(modality=CT))).image_steps
    with pytest.raises(ValidationError, match="pictures have no geometry"):
        picture_grid((64, 64), (TableRemoval(),))


def test_the_page_on_preprocessing_names_every_kind_and_says_whether_it_is_served() -> None:
    page = (Path(__file__).parents[3] / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (yes|no|never) \|", page, re.MULTILINE)
    assert [kind for kind, _, _ in rows] == list(REGISTRY)
    for kind, modalities, served in rows:
        step = step_class(kind)(modality=modalities.split()[0])
        assert step.kind == kind and step.served == (served == "yes")
