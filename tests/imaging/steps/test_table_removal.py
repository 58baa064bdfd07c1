"""Tables, headrests and plates go out of a CT; the head stays as it is."""

from __future__ import annotations

import numpy as np
import pytest

from ctmr.errors import InputError
from ctmr.imaging.steps.table_removal import TableRemoval, patient_mask, remove_table
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of

AIR = -1024
SPACING_MM = 2.0


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def ct(array):
    return Volume(array.astype(np.int16), affine_of(array.shape, SPACING_MM), Modality.CT, Unit.HU)


@pytest.fixture(scope="module", params=[1, 2, 3])
def head(request):
    return make_head(request.param)


def with_things(head):
    """The head with air for its table, then a table, a headrest touching the neck, and a thin plate on the forehead."""
    clean = np.where(head.head, head.ct, AIR)
    lying = clean.copy()
    back = int(np.argwhere(head.head)[:, 1].max())
    lying[:, min(back + 4, lying.shape[1] - 3) :, 10:-10] = 150
    front = int(np.argwhere(head.head[60])[:, 0].min())
    lying[50:70, max(front - 2, 0) : front, 40:56] = np.where(
        clean[50:70, max(front - 2, 0) : front, 40:56] > -500, clean[50:70, max(front - 2, 0) : front, 40:56], 2000
    )
    return clean, lying


def test_masks_of_phantoms_reach_a_dice_of_97(head):
    _, lying = with_things(head)
    assert dice(patient_mask(ct(lying), TableRemoval()), head.head) >= 0.97


def test_the_table_is_air_afterwards_and_the_head_is_untouched(head):
    clean, lying = with_things(head)
    after = remove_table(ct(lying), TableRemoval()).array
    deep = head.head
    changed = (after != clean) & deep
    assert changed.mean() / deep.mean() < 0.01
    assert (after[:, -2:, 20:-20] == AIR).all()


def test_a_mask_of_a_reference_takes_a_plate_out_that_touches_the_head(head):
    clean, lying = with_things(head)
    lying[30:60, 20:90, 8:12] = 1500
    step = TableRemoval(reference="train/CT/clean.nii", served=False)
    after = remove_table(ct(lying), step, ct(clean)).array
    outside = ~patient_mask(ct(clean), step)
    assert (after[outside] == AIR).all()


def test_an_image_without_a_patient_names_what_to_do():
    with pytest.raises(InputError, match="lower threshold_hu or radius_mm"):
        remove_table(ct(np.full((32, 32, 32), AIR)), TableRemoval())


def test_grey_values_have_no_table():
    picture = Volume(np.zeros((1, 40, 40), np.uint8), None, Modality.CT, Unit.GREY8)
    with pytest.raises(InputError):
        remove_table(picture, TableRemoval())
