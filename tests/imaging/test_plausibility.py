"""Wrong inputs: a CT that is taken for an MR, and a head of which only the brain is left, are told by their values."""

from __future__ import annotations

import numpy as np
import pytest

from ctmr.imaging.plausibility import doubts, modality_fault, skull_stripped
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of

SHAPE, SPACING_MM = (48, 56, 48), 4.0
BRAIN = (9, 13, 14, 15, 16, 17, 18)
"""Labels of the phantom's brain with the fluid in it."""


@pytest.fixture(scope="module")
def head():
    return make_head(2001, shape=SHAPE, spacing_mm=SPACING_MM)


def mr(array, unit=Unit.ARBITRARY):
    return Volume(np.asarray(array), affine_of(SHAPE, SPACING_MM), Modality.MR, unit)


def ct(array):
    return Volume(np.asarray(array), affine_of(SHAPE, SPACING_MM), Modality.CT, Unit.HU)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_hounsfield_units_are_no_mr(head, dtype):
    fault = modality_fault(mr(head.ct.astype(dtype)))
    assert "near -1000" in fault and "Hounsfield" in fault
    padded = head.ct.copy()
    padded[:, :8] = -3024
    assert modality_fault(mr(padded))


@pytest.mark.parametrize("sequence", ["t1", "t2"])
def test_an_mr_in_any_scale_is_one(head, sequence):
    values = getattr(head, sequence).astype(np.float32)
    scored = (values - values.mean()) / values.std()
    for array in (values, scored, scored * 1000, values - 1000, np.where(values < 50, -32768, values)):
        assert modality_fault(mr(array)) == ""


def test_a_ct_is_asked_nothing(head):
    assert modality_fault(ct(head.ct)) == ""


@pytest.mark.parametrize("sequence", ["t1", "t2"])
def test_a_brain_alone_is_told_from_a_head(head, sequence):
    values, brain = getattr(head, sequence), np.isin(head.labels, BRAIN)
    assert skull_stripped(mr(np.where(brain, values, 0)))
    assert "skull-stripped" in doubts(mr(np.where(brain, values, 0)))[0]
    # The same with another constant around it.
    assert skull_stripped(mr(np.where(brain, values.astype(np.float32), -3.5)))
    assert doubts(mr(values)) == ()
    assert doubts(mr(np.where(head.head, values, 0))) == ()


@pytest.mark.parametrize("sequence", ["t1", "t2"])
def test_a_small_head_whose_background_was_set_to_nothing_is_one_with_a_skull(head, sequence):
    """An infant's head is as large as a brain, so the size does not tell; the dark shell does."""
    values = np.where(head.head, getattr(head, sequence), 0)
    small = Volume(values, affine_of(SHAPE, SPACING_MM * 0.85), Modality.MR, Unit.ARBITRARY)
    assert not skull_stripped(small)


def test_a_ct_without_bone_is_a_brain(head):
    brain = np.isin(head.labels, BRAIN)
    assert skull_stripped(ct(np.where(brain, head.ct.clip(-20, 80), -1024)))
    assert not skull_stripped(ct(np.where(head.head, head.ct, -1024)))


def test_small_images_pictures_and_constant_ones_raise_no_doubt():
    grey = Volume(np.zeros((1, 48, 48), np.uint8), None, Modality.MR, Unit.GREY8)
    assert doubts(grey) == ()
    assert doubts(mr(np.zeros(SHAPE))) == ()
    dot = np.zeros(SHAPE)
    dot[20:24, 20:24, 20:24] = 100
    assert doubts(mr(dot)) == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_segmentation_is_no_mr(head, dtype):
    mask = head.head.astype(dtype)
    assert "holds 2 different values in all, as a mask or a segmentation does" in modality_fault(mr(mask))
    tissues = np.where(head.head, 1 + (head.labels % 4), 0).astype(dtype)
    assert "different values in all" in modality_fault(mr(tissues))
    # A constant image has a rule of its own, and a coarse MR more values.
    assert modality_fault(mr(np.full(SHAPE, 7, dtype))) == ""
    assert modality_fault(mr((head.t1 // 40).astype(dtype))) == ""
    assert modality_fault(ct(np.where(mask, 40, -1000).astype(np.int16))) == ""
