"""Lesions in inputs of the test set: put where they are said to be, known in size and contrast, the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest

from ctmr.evaluation.candidates import Model
from ctmr.evaluation.lesion_insertion import TwinCache, insert, insert_by_twin
from ctmr.evaluation.lesions import lesion_tests
from ctmr.imaging.volume import Direction
from ctmr.phantom import make_head
from ctmr.phantom.tissue import PROPERTIES, Tissue
from ctmr.phantom.twins import make_twins, seed_of

from .conftest import RADII_MM, SHAPE, SPACING_MM, pretend, recipe

SECTION = recipe().evaluate.lesions


@pytest.fixture(scope="module")
def twins():
    return make_twins(44, shape=SHAPE, spacing_mm=SPACING_MM, radii_mm=RADII_MM)


def test_twins_differ_at_their_lesions_and_nowhere_far_from_them(twins):
    from scipy import ndimage

    lesions = np.any([p.mask for p in twins.inserted], axis=0)
    change = np.abs(twins.ill.ct.astype(int) - twins.healthy.ct)
    assert len(twins.inserted) == 2 * len(RADII_MM)
    assert change[ndimage.distance_transform_edt(~lesions) > 4].max() == 0
    for inserted in twins.inserted:
        volume_mm3 = inserted.mask.sum() * SPACING_MM**3
        assert volume_mm3 == pytest.approx(4 / 3 * np.pi * inserted.lesion.radius_mm**3, rel=0.35)


def test_a_calcified_lesion_comes_near_the_ct_number_of_its_tissue(twins):
    largest = max((p for p in twins.inserted if p.lesion.kind == "calcified"), key=lambda p: p.lesion.radius_mm)
    centre = tuple(round(c / SPACING_MM) for c in largest.lesion.centre_mm)
    assert largest.mask[centre]
    assert twins.ill.ct[centre] == pytest.approx(PROPERTIES[Tissue.CALCIFICATION].hu, rel=0.25)
    assert twins.healthy.ct[centre] < 80


def test_the_healthy_twin_is_the_head_of_the_cohort(twins):
    head = make_head(44, shape=SHAPE, spacing_mm=SPACING_MM, lesion=False)
    assert np.array_equal(twins.healthy.ct, head.ct) and np.array_equal(twins.healthy.t1, head.t1)


def test_twins_are_the_same_for_a_seed_and_lie_elsewhere_for_another(twins):
    again = make_twins(44, shape=SHAPE, spacing_mm=SPACING_MM, radii_mm=RADII_MM)
    other = make_twins(44, shape=SHAPE, spacing_mm=SPACING_MM, radii_mm=RADII_MM, lesion_seed=1)
    assert np.array_equal(again.ill.t1, twins.ill.t1)
    assert np.array_equal(other.healthy.t1, twins.healthy.t1)
    assert [p.lesion.centre_mm for p in other.inserted] != [p.lesion.centre_mm for p in twins.inserted]


def test_only_a_phantom_has_a_seed_in_its_name():
    assert seed_of("phantom-2026") == 2026
    assert seed_of("sub-2026") is None and seed_of("phantom-x") is None
    with pytest.raises(ValueError, match="radii_mm"):
        make_twins(1, shape=SHAPE, spacing_mm=SPACING_MM, radii_mm=())


def test_a_phantom_gets_lesions_of_tissue_with_truth_in_any_orientation(world):
    test_set = world.test_set()
    made = insert_by_twin(test_set, test_set.case(0), SECTION, TwinCache(), 0)
    assert np.array_equal(made.healthy, test_set.case(0).array)
    truth = made.truth_ill.astype(int) - made.truth_healthy
    assert all(abs(truth[s.mask].mean()) > 5 for s in made.sites)


def test_an_image_that_only_has_the_name_of_a_phantom_gets_inserted_ones(world):
    test_set = world.test_set()
    case = test_set.case(0)
    stranger = case.volumes[0].with_array(np.roll(case.volumes[0].array, 3, axis=1))
    case.volumes[0] = stranger
    assert insert_by_twin(test_set, case, SECTION, TwinCache(), 0) is None


@pytest.mark.parametrize("direction", list(Direction))
def test_inserted_lesions_have_their_contrast_and_lie_in_the_head(world, direction):
    case = world.test_set(direction).case(0)
    made = insert(case, SECTION, np.random.default_rng(0))
    scale = 100.0 if direction is Direction.CT2MR else float(np.median(case.array[0][case.head]))
    assert [s.kind for s in made.sites] == ["bright", "dark"] * len(RADII_MM)
    for site in made.sites:
        change = (made.ill.astype(float) - made.healthy)[0]
        wanted = SECTION.contrast * scale * (1 if site.kind == "bright" else -1)
        assert change[site.mask].max() == pytest.approx(wanted, rel=0.05) or site.kind == "dark"
        assert np.sign(change[site.mask].mean()) == np.sign(wanted)
        assert case.head[site.mask].all()
    assert not np.any(np.sum([s.mask for s in made.sites], axis=0) > 1)


def test_a_head_without_room_gets_none(world):
    case = world.test_set().case(0)
    assert insert(case, SECTION.model_copy(update={"radii_mm": (200.0,)}), np.random.default_rng(0)) is None


def test_both_directions_scan_each_phantom_once(world, monkeypatch):
    from ctmr.evaluation import lesion_insertion

    made = []
    genuine = lesion_insertion.make_twins
    monkeypatch.setattr(lesion_insertion, "make_twins", lambda *a, **k: made.append(a) or genuine(*a, **k))
    pretend(monkeypatch, world, lambda array, truth: truth)
    sides = [(world.test_set(d), Model.load(world.inputs["model"], d)) for d in Direction]
    tests = lesion_tests(sides, recipe())
    assert [t.direction for t in tests] == list(Direction) and len(made) == 2
    assert all(t.kept == len(t.responses) for t in tests)
    assert all(v.truth_ill is not None and v.outline.any() for t in tests for v in t.views)


def test_a_lesion_that_its_input_hides_is_not_asked_for(world, monkeypatch):
    pretend(monkeypatch, world, lambda array, truth: truth)
    test_set, model = world.test_set(), Model.load(world.inputs["model"], Direction.MR2CT)
    monkeypatch.setattr("ctmr.evaluation.lesions.insert_by_twin", lambda *arguments: None)
    faint = recipe("evaluate.lesions.contrast=0.005")
    [test] = lesion_tests([(test_set, model)], faint)
    assert test.responses == [] and test.unasked == 4 * 2
    assert "no lesion could be asked for" in test.sentence()
