"""Figures: every kind gives a PNG, the same bytes for the same data, and refuses what it cannot draw."""

import dataclasses
import io

import numpy as np
import pytest
from evaluated import lesion_test, lesion_view
from PIL import Image

from ctmr.evaluation.sections import compare
from ctmr.evaluation.uncertainty import UncertaintyMap
from ctmr.imaging.volume import Direction, Unit
from ctmr.reports.figures import (
    comparison_figure,
    lesion_figure,
    sample_evolution,
    uncertainty_figure,
    way_sheet,
)
from ctmr.reports.samples import SampleGroup, sample_sheet

RNG = np.random.default_rng(0)


def size(png):
    assert png.startswith(b"\x89PNG")
    return Image.open(io.BytesIO(png)).size


def compared(truth, shape=(10, 16, 14), unit=Unit.HU):
    source, synthetic = RNG.random(shape), RNG.normal(0, 300, shape)
    return compare(
        source,
        synthetic,
        synthetic * 0.9 if truth else None,
        source_unit=Unit.ARBITRARY,
        target_unit=unit,
        source_name="MR T1",
        target_name="CT",
        head=source > 0.2 if truth else None,
    )


def drawn(truth, shape=(10, 16, 14), unit=Unit.HU):
    return size(comparison_figure(compared(truth, shape, unit), title="s1", phantom=True))


def test_truth_adds_columns_and_pictures_have_one_row():
    with_truth, without = drawn(True), drawn(False)
    assert with_truth[0] > 1.7 * without[0]
    assert drawn(True, (1, 16, 14), Unit.GREY8)[1] < 0.5 * with_truth[1]


def test_a_comparison_keeps_sections_and_not_the_volumes_behind_them():
    shape = (40, 32, 32)
    kept = compared(True, shape)
    assert [s.name for s in kept.sections] == [
        "axial, slice 12",
        "axial, slice 18",
        "axial, slice 23",
        "axial, slice 29",
        "sagittal, column 16",
    ]
    assert [c.name.split("\n")[0] for c in kept.columns] == [
        "MR T1",
        "synthetic CT",
        "true CT",
        "synthetic CT",
        "true CT",
        "difference",
    ]
    arrays = [a for c in kept.columns for a in c.images]
    assert all(a.base is None and a.ndim == 2 for a in arrays)
    assert sum(a.size for a in arrays[:5]) < np.prod(shape) / 6


def test_the_difference_is_blank_outside_the_head_and_in_the_targets_unit():
    difference = compared(True).columns[-1]
    assert difference.window is None and difference.unit == "HU"
    assert any(np.isnan(image).any() for image in difference.images)


def group(count=2, titles=("CT", "synthetic CT"), window=(-1024.0, 2000.0)):
    images = tuple(RNG.uniform(-1000, 2000, (count, 16, 12)) for _ in titles)
    return SampleGroup(titles, images, tuple(f"s{k}" for k in range(count)), window, "HU")


def test_equal_data_give_equal_bytes():
    groups = [group(), group()]
    assert sample_sheet(groups, title="step 5") == sample_sheet(groups, title="step 5")


def test_the_word_phantom_changes_the_picture():
    groups = [group()]
    assert sample_sheet(groups, phantom=True) != sample_sheet(groups)


def test_the_columns_of_a_group_share_one_grey_scale():
    def grey(value, other):
        images = tuple(np.full((1, 16, 12), v) for v in (value, other))
        png = sample_sheet([SampleGroup(("a", "b"), images, ("s",), (0.0, 100.0), "HU")])
        shown = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        middle = shown[shown.shape[0] // 2 - 5]
        return int(middle[len(middle) // 3]), int(middle[2 * len(middle) // 3])

    assert grey(50, 50)[0] == grey(50, 50)[1] == pytest.approx(127, abs=2)
    # What is beside an image never changes how it is shown.
    assert grey(50, 100)[0] == grey(50, 0)[0] == grey(50, 50)[0]


@pytest.mark.parametrize("unit", [Unit.HU, Unit.ARBITRARY])
def test_lesions_with_truth_have_one_column_more(unit):
    def drawn_with(truth):
        image, outline = RNG.normal(100, 20, (16, 14)), np.zeros((16, 14), bool)
        outline[5:8, 5:8] = True
        test = lesion_test([True], views=[lesion_view(image, outline, truth)] * 2)
        return size(lesion_figure(dataclasses.replace(test, unit=unit)))

    with_truth, without = drawn_with(True), drawn_with(False)
    assert with_truth[0] > without[0] and with_truth[1] == without[1]


def test_uncertainty_is_drawn_with_and_without_the_true_error():
    image = RNG.normal(0, 1, (16, 14))
    spread = np.where(image > 0, np.abs(image), np.nan)
    with_error, without = (
        uncertainty_figure(UncertaintyMap("a", image, image, spread, error), Direction.MR2CT, Unit.HU)
        for error in (spread, None)
    )
    assert size(with_error)[0] > size(without)[0]


def test_sheets_of_a_training_stand_side_by_side_in_order():
    def sheet(value):
        out = io.BytesIO()
        Image.new("RGB", (300, 200), (value, value, value)).save(out, format="PNG")
        return out.getvalue()

    board = Image.open(io.BytesIO(sample_evolution([sheet(v) for v in (10, 90, 170)])))
    assert board.getpixel((20, 20)) == (10, 10, 10) and board.getpixel((board.width - 20, 20)) == (90, 90, 90)
    assert board.getpixel((20, board.height - 20)) == (170, 170, 170)


def test_previews_are_drawn():
    ways = [("s1", [("as it is", RNG.random((20, 30)), (2.0, 1.0)), ("on the grid", RNG.random((16, 16)), (1.0, 1.0))])]
    assert (
        size(way_sheet([*ways, ("s2", ways[0][1][:1])], unit=Unit.ARBITRARY))[1]
        > size(way_sheet(ways, unit=Unit.ARBITRARY))[1]
    )


def test_a_sheet_of_unlike_rows_or_too_few_titles_and_an_empty_sheet_are_refused():
    for groups in ([group(2), group(3)], [dataclasses.replace(group(), titles=("CT",))]):
        with pytest.raises(ValueError, match="as many rows in every column and a title for each"):
            sample_sheet(groups)
    with pytest.raises(ValueError, match="one image at least"):
        way_sheet([], unit=Unit.HU)
