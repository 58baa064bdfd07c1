"""Disturbances do what their names say, the same for a seed, and the sweep measures what they do."""

from __future__ import annotations

import numpy as np
import pytest

from ctmr.evaluation.candidates import Model
from ctmr.evaluation.robustness import STRONGEST, disturb, robustness_sweep
from ctmr.imaging.calibration import head_levels
from ctmr.imaging.volume import Direction

from .conftest import pretend, recipe

MR = [name for name, said in STRONGEST.items() if said[False]]


def changed(case, name, strength=1.0, seed=0):
    return disturb(case, name, strength, np.random.default_rng(seed))


@pytest.fixture
def case(world):
    return world.test_set().case(0)


@pytest.mark.parametrize("name", MR)
def test_a_disturbance_keeps_shape_and_type_grows_with_strength_and_repeats(case, name):
    weak, strong, again = changed(case, name, 0.3), changed(case, name), changed(case, name)
    assert strong.shape == case.array.shape and strong.dtype == case.array.dtype
    assert np.array_equal(strong, again)
    errors = [np.abs(a.astype(float) - case.array)[0][case.head].mean() for a in (weak, strong)]
    assert 0 < errors[0] < errors[1]


def test_noise_has_its_standard_deviation_where_the_signal_is_strong(case):
    noise = changed(case, "noise").astype(float) - case.array
    bright = np.percentile(case.array, 99)
    strong = case.array > 0.5 * bright
    assert noise[strong].std() == pytest.approx(0.1 * bright, rel=0.1)


def test_a_bias_field_multiplies_and_a_rotation_turns(case):
    inside = case.array[0] > 200
    ratio = changed(case, "bias field")[0][inside] / case.array[0][inside]
    assert np.exp(-0.41) <= ratio.min() and ratio.max() <= np.exp(0.41) and ratio.std() > 0.02
    there = changed(case, "rotation")[0].astype(float)
    middle = there.shape[0] // 2
    assert np.corrcoef(there[middle].ravel(), case.array[0, middle].ravel())[0, 1] < 0.97


def test_a_ct_has_no_bias_field_and_its_intensity_moves_by_50_hu(world, monkeypatch):
    case = world.test_set(Direction.CT2MR).case(0)
    moved = changed(case, "intensity").astype(int) - case.array
    assert set(np.unique(moved[case.array < 3000])) == {50}
    pretend(monkeypatch, world, lambda array, truth: truth)
    model = Model.load(world.inputs["model"], Direction.CT2MR)
    sweep = robustness_sweep(world.test_set(Direction.CT2MR), model, recipe())
    assert "bias field" not in {c.name for c in sweep.curves}
    assert sweep.metric == "mean absolute change of the translation"
    assert all(c.means[0] == 0 for c in sweep.curves)


def test_an_unknown_disturbance_is_refused(case):
    with pytest.raises(ValueError, match="no disturbance is called 'fog'"):
        changed(case, "fog")


def test_the_sweep_starts_at_the_undisturbed_error_and_turns_the_truth_along(world, monkeypatch):
    """A model that answers its input plus nothing: its error on a turned input is that of the turned truth."""
    test_set, model = world.test_set(), Model.load(world.inputs["model"], Direction.MR2CT)
    monkeypatch.setattr(
        Model,
        "translate",
        lambda self, array, slices=None: (array[0].astype(np.float32) - 1000)[
            list(slices) if slices is not None else slice(None)
        ],
    )
    sweep = robustness_sweep(
        test_set, model, recipe("evaluate.robustness={cases: 2, slices: 4, strengths: [0.5, 1.0]}")
    )
    assert sweep.metric == "MAE against the truth" and sweep.cases == 2
    curves = {c.name: c for c in sweep.curves}
    assert len({c.means[0] for c in curves.values()}) == 1 and curves["noise"].strengths == (0.0, 0.5, 1.0)
    assert curves["rotation"].means[2] == pytest.approx(curves["rotation"].means[0], rel=0.1)
    for c in sweep.curves:
        assert all(low <= mean <= high for low, mean, high in zip(c.lows, c.means, c.highs, strict=True))


def test_the_truth_turns_along_with_a_turned_input(world, monkeypatch):
    """Where the truth is the input itself, a model that copies its input errs by the rounding of storage alone."""
    from ctmr.evaluation.testset import Case

    test_set, model = world.test_set(), Model.load(world.inputs["model"], Direction.MR2CT)
    monkeypatch.setattr(Model, "translate", lambda self, array, slices: array[0, slices].astype(np.float32) - 1000)
    monkeypatch.setattr(Case, "on_grid", lambda self, truth: self.array[0].astype(np.float32) - 1000)
    curves = {c.name: c for c in robustness_sweep(test_set, model, recipe()).curves}
    assert curves["rotation"].means[0] == 0 and curves["rotation"].means[1] < 30
    assert curves["noise"].means[1] > 30, "the other disturbances leave the truth where it is"


def test_slices_are_spread_over_the_head():
    head = np.zeros((20, 4, 4), bool)
    head[4:17] = True
    assert head_levels(head, 3) == [4, 10, 16]
    assert head_levels(np.zeros((9, 4, 4), bool), 3) == [4]


def test_no_case_no_sweep(world):
    test_set, model = world.test_set(), Model.load(world.inputs["model"], Direction.MR2CT)
    assert robustness_sweep(test_set, model, recipe("evaluate.robustness.cases=0")) is None
