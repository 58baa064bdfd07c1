"""Tissue order: the swap of fat and bone is caught, a noisy truth is classed rightly, lesser faults only warn."""

import numpy as np
import pytest

from ctmr.metrics.tissue import (
    TissueClass,
    order_alarm,
    order_warnings,
    pool_tables,
    table_to_dict,
    tissue_table,
)

VALUES = {TissueClass.FAT: -90.0, TissueClass.CSF: 8.0, TissueClass.BRAIN: 36.0, TissueClass.BONE: 1000.0,
          TissueClass.INSIDE_AIR: -990.0}  # fmt: skip


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
