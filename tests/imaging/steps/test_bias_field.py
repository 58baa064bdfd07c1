"""N4: a known field is found and divided out; what is no MR is refused."""

from __future__ import annotations

import numpy as np
import pytest

from ctmr.errors import InputError
from ctmr.imaging.steps.bias_field import BiasField, bias_field, correct_bias_field
from ctmr.imaging.volume import Modality, Unit, Volume
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of

SHAPE, SPACING_MM = (48, 56, 48), 4.0
STEP = BiasField(iterations=(50, 50, 50), shrink_mm=8.0)


@pytest.fixture(scope="module")
def head():
    return make_head(4, shape=SHAPE, spacing_mm=SPACING_MM)


@pytest.fixture(scope="module")
def before(head):
    """What the image has of its own."""
    return bias_field(mr(head.t1), STEP)


def mr(array):
    return Volume(array, affine_of(SHAPE, SPACING_MM), Modality.MR, Unit.ARBITRARY, sequence="T1")


def known_field(amplitude):
    """Smooth, as a surface coil's: brighter towards one corner."""
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return np.exp(amplitude * (0.6 * d - 0.8 * h + 0.5 * w * w))


@pytest.mark.parametrize("amplitude", [0.4])
def test_a_known_field_is_divided_out_up_to_what_the_image_had_before(head, before, amplitude):
    field = known_field(amplitude)
    found = bias_field(mr((head.t1 * field).astype(np.float32)), STEP)
    left = np.log(found / before / field)[head.head]
    assert left.std() < 0.35 * np.log(field[head.head]).std()


def test_the_corrected_image_keeps_its_size_type_and_place(head):
    volume = mr((head.t1 * known_field(0.3)).astype(np.float32))
    corrected = correct_bias_field(volume, STEP)
    assert corrected.array.dtype == np.float32 and np.array_equal(corrected.affine, volume.affine)
    ratio = np.log(volume.array[head.head] / np.maximum(corrected.array[head.head], 1e-6))
    assert abs(np.median(ratio)) < 0.1


def test_the_same_image_has_the_same_field_twice(head, before):
    assert np.array_equal(bias_field(mr(head.t1), STEP), before)


def test_a_picture_of_an_mr_is_corrected_in_its_plane(head):
    picture = Volume((head.t1[24:25] / 8).clip(0, 255).astype(np.uint8), None, Modality.MR, Unit.GREY8)
    assert correct_bias_field(picture, STEP).array.shape == picture.array.shape


def test_a_ct_and_an_empty_image_are_refused(head):
    with pytest.raises(InputError, match="only an MR has a bias field"):
        correct_bias_field(Volume(head.ct, affine_of(SHAPE, SPACING_MM), Modality.CT, Unit.HU), STEP)
    with pytest.raises(InputError, match="shows no head"):
        correct_bias_field(mr(np.zeros(SHAPE, np.uint16)), STEP)
