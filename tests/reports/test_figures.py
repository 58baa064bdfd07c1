"""Figures: every kind gives a PNG, the same bytes for the same data, and refuses what it cannot draw."""

import io

import numpy as np
import pytest
from PIL import Image

from ctmr.metrics.tissue import TissueClass, TissueRow
from ctmr.reports.figures import comparison_figure, image_grid, loss_curves, preview_sheet, tissue_figure
from ctmr.volume import Unit

RNG = np.random.default_rng(0)


def size(png):
    assert png.startswith(b"\x89PNG")
    return Image.open(io.BytesIO(png)).size


def compared(truth, shape=(10, 16, 14), unit=Unit.HU):
    source, synthetic = RNG.random(shape), RNG.normal(0, 300, shape)
    return comparison_figure(
        source, synthetic, synthetic * 0.9 if truth else None, source_unit=Unit.ARBITRARY, target_unit=unit,
        source_name="MR T1", target_name="CT", title="s1", phantom=True, head=source > 0.2 if truth else None,
    )  # fmt: skip


def test_truth_adds_columns_and_pictures_have_one_row():
    with_truth, without = size(compared(True)), size(compared(False))
    assert with_truth[0] > 1.7 * without[0]
    assert size(compared(True, (1, 16, 14), Unit.GREY8))[1] < 0.5 * with_truth[1]


def test_equal_data_give_equal_bytes():
    images = RNG.uniform(-1, 1, (2, 3, 16, 16))
    assert image_grid(images, columns=["MR", "synthetic CT", "MR again"]) == image_grid(
        images, columns=["MR", "synthetic CT", "MR again"]
    )


def test_the_word_phantom_changes_the_picture():
    images = RNG.uniform(-1, 1, (1, 2, 16, 16))
    assert image_grid(images, phantom=True) != image_grid(images)


def test_losses_tissues_and_previews_are_drawn():
    steps = range(50)
    size(loss_curves({"cycle": [10 / (1 + k) for k in steps], "generator": [0.5] * 50}, steps))
    size(tissue_figure({TissueClass.FAT: TissueRow(100, -90, -40, -80, 10)}))
    size(preview_sheet(RNG.integers(0, 900, (5, 16, 16)), list("abcde"), unit=Unit.ARBITRARY, columns=3))


def test_a_grid_with_too_few_titles_and_an_empty_sheet_are_refused():
    with pytest.raises(ValueError, match="C titles"):
        image_grid(np.zeros((1, 3, 8, 8)), columns=["MR"])
    with pytest.raises(ValueError, match="N labels"):
        preview_sheet(np.zeros((0, 8, 8)), [], unit=Unit.HU)
