"""Uncertainty: ranks and curves against numbers known beforehand, and a model whose doubt is its error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctmr.evaluation.candidates import Model
from ctmr.evaluation.uncertainty import BOTH, COVERAGES, CYCLE, FLIP, sparsification, uncertainty
from ctmr.imaging.volume import Direction

from .conftest import recipe


def test_leaving_out_the_largest_values_leaves_the_mean_of_the_rest():
    errors = np.arange(1.0, 11.0)
    assert sparsification(errors, errors) == pytest.approx([(n + 1) / 2 for n in range(10, 0, -1)])
    assert sparsification(-errors, errors)[-1] == 10.0
    assert COVERAGES[0] == 1.0 and COVERAGES[-1] == pytest.approx(0.1)


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=60), st.randoms())
def test_no_order_leaves_less_error_than_that_of_the_error_itself(errors, random):
    values = [random.random() for _ in errors]
    best, other = (sparsification(np.array(v), np.array(errors)) for v in (errors, values))
    assert (other >= best - 1e-9).all() and other[0] == pytest.approx(best[0])


@pytest.fixture
def lopsided(world, monkeypatch):
    """A model that errs on one side of the image only, and an honest way back."""
    truths = {a.tobytes(): b[0].astype(np.float32) for a, b in world.truths}

    def translate(self, array, slices=None):
        plain = truths.get(np.ascontiguousarray(array).tobytes())
        made = truths[np.ascontiguousarray(array[..., ::-1]).tobytes()][..., ::-1].copy() if plain is None else plain
        made = made.copy()
        made[..., :12] += 200.0
        return made if slices is None else made[list(slices)]

    def cycle(self, array, slices):
        trained = array.transpose(1, 0, 2, 3)[list(slices)].astype(np.float32)
        again = trained.copy()
        again[..., :12] += 5.0
        return trained, again

    monkeypatch.setattr(Model, "translate", translate)
    monkeypatch.setattr(Model, "cycle", cycle)
    return Model.load(world.inputs["model"], Direction.MR2CT)


def test_doubt_that_lies_where_the_error_lies_correlates_with_it(world, lopsided):
    found = uncertainty(world.test_set(), lopsided, recipe())
    measures = {m.name: m for m in found.measures}
    assert set(measures) == {FLIP, CYCLE, BOTH} and found.cases == 2
    assert measures[CYCLE].spearman > 0.95 and measures[CYCLE].area == pytest.approx(0.0, abs=0.01)
    # A mirrored input moves the error to the other side, so the doubt of both sides is equal.
    assert measures[FLIP].spearman == 0.0
    assert measures[FLIP].area == pytest.approx(found.random_area, abs=0.15)
    assert measures[CYCLE].curve[0] == pytest.approx(measures[FLIP].curve[0])


def test_the_map_is_blank_outside_the_head(world, lopsided):
    shown = uncertainty(world.test_set(), lopsided, recipe()).shown
    assert np.isnan(shown.uncertainty[0, 0]) and np.isfinite(shown.uncertainty[14, 12])
    assert shown.error is not None and np.nanmax(shown.error) == pytest.approx(200.0, abs=1)


def test_without_comparable_truth_there_is_a_map_and_no_number(world):
    model = Model.load(world.inputs["model"], Direction.CT2MR)
    found = uncertainty(world.test_set(Direction.CT2MR), model, recipe())
    assert found.measures == () and found.shown.error is None and np.isfinite(np.nanmax(found.shown.uncertainty))
    assert found.to_dict()["random_area"] is None


def test_no_case_no_uncertainty(world):
    model = Model.load(world.inputs["model"], Direction.MR2CT)
    assert uncertainty(world.test_set(), model, recipe("evaluate.uncertainty.cases=0")) is None
