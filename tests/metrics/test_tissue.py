"""Tissue order: the swap of fat and bone is caught, a noisy truth is classed rightly, lesser faults only warn."""

import json

import numpy as np
import pytest

from ctmr.metrics.tissue import (
    TissueClass,
    classes_by_hu,
    mr_order_alarm,
    order_alarm,
    order_warnings,
    pool_tables,
    table_of_classes,
    table_to_dict,
    tissue_table,
)
from ctmr.phantom import Tissue, make_head

VALUES = {
    TissueClass.FAT: -90.0,
    TissueClass.CSF: 8.0,
    TissueClass.BRAIN: 36.0,
    TissueClass.BONE: 1000.0,
    TissueClass.INSIDE_AIR: -990.0,
}


@pytest.fixture
def head():
    """Slabs 10 voxels thick, one a tissue, inside air, with CT noise of 6 HU."""
    truth = np.full((24, 24, 60), -1000.0)
    label = np.full(truth.shape, "", dtype=object)
    for k, (tissue, value) in enumerate(VALUES.items()):
        where = (slice(4, 20), slice(4, 20), slice(5 + 10 * k, 15 + 10 * k))
        truth[where], label[where] = value, tissue
    noisy = truth + np.random.default_rng(0).normal(0, 6, truth.shape)
    return noisy, label != "", label


def repainted(truth, label, **values):
    out = truth.copy()
    for name, value in values.items():
        out[label == TissueClass[name]] = value
    return out


def test_a_true_head_has_its_tissues_and_no_alarm(head):
    truth, mask, _ = head
    table = tissue_table(truth, truth, mask)
    assert {t: table[t].truth for t in VALUES} == pytest.approx(VALUES, abs=3)
    assert order_alarm(table) is None and order_warnings(table) == ()


def test_fat_painted_as_bone_and_bone_as_soft_tissue_raises_the_alarm(head):
    truth, mask, label = head
    alarm = order_alarm(tissue_table(repainted(truth, label, FAT=700.0, BONE=0.0), truth, mask))
    assert alarm is not None and "fat (700 HU)" in alarm and "bone (0 HU)" in alarm and "\n" not in alarm


@pytest.mark.parametrize("values", [{"FAT": 34.0}, {"BONE": 90.0}])
def test_a_missing_contrast_is_an_alarm_too(head, values):
    truth, mask, label = head
    assert order_alarm(tissue_table(repainted(truth, label, **values), truth, mask)) is not None


def test_bright_air_around_the_head_is_an_alarm(head):
    truth, mask, _ = head
    alarm = order_alarm(tissue_table(np.where(mask, truth, 0.0), truth, mask))
    assert alarm is not None and "air outside" in alarm


def test_bright_fluid_and_painted_sinuses_warn_and_raise_no_alarm(head):
    truth, mask, label = head
    table = tissue_table(repainted(truth, label, CSF=90.0, INSIDE_AIR=500.0), truth, mask)
    assert order_alarm(table) is None
    fluid, air = order_warnings(table)
    assert "cerebrospinal fluid (90 HU for" in fluid and "500 HU" in air


def test_absent_tissues_are_left_out_and_raise_nothing():
    truth = np.full((8, 8, 8), 36.0)
    table = tissue_table(truth, truth, np.ones(truth.shape, bool))
    assert set(table) == {TissueClass.BRAIN} and order_alarm(table) is None


def test_tables_of_patients_are_pooled(head):
    truth, mask, label = head
    tables = [tissue_table(repainted(truth, label, FAT=v), truth, mask) for v in (-90.0, -60.0, 900.0)]
    pooled = pool_tables(tables)
    assert pooled[TissueClass.FAT].prediction == pytest.approx(-60.0, abs=1)
    assert pooled[TissueClass.FAT].voxels == 3 * tables[0][TissueClass.FAT].voxels
    assert next(iter(table_to_dict(pooled))) == "air outside"


def test_with_a_segmentation_fluid_is_held_against_grey_matter(head):
    truth, mask, label = head
    grey = np.zeros(mask.shape, bool)
    grey[6:10, 6:18, 26:34] = True
    classes = classes_by_hu(truth, mask) | {TissueClass.GREY: grey}
    painted = repainted(truth, label, CSF=45.0)
    painted[grey] = 48.0
    (warning,) = order_warnings(table_of_classes(painted, classes, truth))
    assert "below grey matter (48 HU for" in warning


@pytest.fixture(scope="module")
def phantom():
    made = make_head(11, shape=(64, 74, 64), spacing_mm=3.0)
    classes = classes_by_hu(made.ct, made.head) | {
        TissueClass.GREY: made.labels == Tissue.GREY_MATTER,
        TissueClass.WHITE: made.labels == Tissue.WHITE_MATTER,
    }
    return made, classes


def test_true_mr_images_have_the_order_of_their_sequence_by_the_source_ct(phantom):
    made, classes = phantom
    for image, sequence in ((made.t1, "T1"), (made.t2, "T2")):
        table = table_of_classes(image, classes)
        assert mr_order_alarm(table, sequence) is None
        assert mr_order_alarm(table, None) is None and mr_order_alarm(table, "FLAIR") is None


def test_the_contrast_of_the_other_sequence_is_an_alarm(phantom):
    made, classes = phantom
    as_t2 = mr_order_alarm(table_of_classes(made.t1, classes), "T2")
    as_t1 = mr_order_alarm(table_of_classes(made.t2, classes), "T1")
    assert as_t2 is not None and "is not darker than cerebrospinal fluid" in as_t2
    assert as_t1 is not None and "grey matter" in as_t1 and "white matter" in as_t1 and "\n" not in as_t1


def test_without_a_segmentation_grey_and_white_matter_are_not_judged(phantom):
    made, classes = phantom
    known = {t: w for t, w in classes.items() if t not in (TissueClass.GREY, TissueClass.WHITE)}
    alarm = mr_order_alarm(table_of_classes(made.t2, known), "T1")
    assert alarm is not None and "matter" not in alarm


def test_bright_bone_and_air_are_an_alarm_in_any_sequence(phantom):
    made, classes = phantom
    inverted = made.t1.max() - made.t1.astype(np.float64)
    alarm = mr_order_alarm(table_of_classes(inverted, classes), None)
    assert alarm is not None and "bone" in alarm and "air outside" in alarm and "air inside the head" in alarm


def test_an_image_without_contrast_is_an_alarm_and_one_without_brain_is_not_judged(phantom):
    made, classes = phantom
    assert mr_order_alarm(table_of_classes(np.full(made.ct.shape, 500.0), classes), "T1") is not None
    assert mr_order_alarm({}, "T1") is None


def test_a_table_without_truth_is_plain_json(phantom):
    made, classes = phantom
    tree = table_to_dict(table_of_classes(made.t1, classes))
    assert tree["brain"]["truth"] is None and json.dumps(tree, allow_nan=False)


def test_tables_of_unlike_shapes_are_refused(head):
    truth, mask, _ = head
    with pytest.raises(ValueError, match="share one shape"):
        tissue_table(truth[1:], truth, mask)
    with pytest.raises(ValueError, match="share one shape"):
        classes_by_hu(truth, mask[1:])
