"""Figures of a tuning study: PNG for any mix of trials, equal for equal data."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from ctmr.reports.study import TrialView, history_chart, importance_chart, slice_chart

LOGARITHMIC = {"train.lr_generator": True, "loss.cycle_mr": False, "network.generator.kind": False, "train.flip": False}


def trial(number, state="complete", score=None, cycle=5.0, factor=1.0):
    score = 100.0 + number if score is None else score
    reports = {} if state == "failed" else {100: score * 1.2, 200: score}
    params = {
        "train.lr_generator": 1e-4 * (number + 1),
        "loss.cycle_mr": cycle,
        "network.generator.kind": "unet" if number % 2 else "resnet",
        "train.flip": bool(number % 2),
    }
    return TrialView(number, state, math.nan if state == "failed" else score, params, reports)


MIXED = [trial(0, cycle=None), trial(1, "failed"), trial(2), trial(3, "pruned"), trial(4, score=3.0), trial(5)]


def pixels(png):
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("trials", [MIXED, [trial(0)], [trial(0), trial(1, "pruned")]])
def test_a_study_of_any_trials_has_its_figures_on_a_light_ground(trials):
    best = min((t for t in trials if t.state == "complete"), key=lambda t: t.score).number
    for png in (
        history_chart(trials, best=best, label="MAE (HU)"),
        slice_chart(trials, LOGARITHMIC, best=best, label="MAE (HU)"),
        slice_chart(trials, {"loss.cycle_mr": False}, best=best, label="MAE (HU)"),
    ):
        assert (pixels(png)[0, 0] == 255).all()


def test_a_failed_trial_is_marked():
    sound = [t for t in MIXED if t.state != "failed"]
    red = np.array([0xB8, 0x43, 0x3F])

    def marked(trials):
        near = np.abs(pixels(history_chart(trials, best=4, label="MAE (HU)")).astype(int) - red).max(axis=-1) < 30
        return near.sum() > 20

    assert marked(MIXED) and not marked(sound)


def test_a_longer_bar_is_more_important():
    def blue(share):
        shown = pixels(importance_chart({"a": share, "b": 1.0 - share}, trials=9)).astype(int)
        return (np.abs(shown - [0x2F, 0x6F, 0x9F]).max(axis=-1) < 8).sum()

    assert blue(0.5) > 1.5 * blue(0.01)


def test_too_few_trials_are_said_to_be_too_few():
    assert (pixels(importance_chart({}, trials=1)) != pixels(importance_chart({}, trials=2))).any()
    assert pixels(importance_chart({}, trials=1)).std() > 3


def test_equal_data_give_equal_figures():
    def draw():
        return (
            history_chart(MIXED, best=4, label="MAE (HU)"),
            importance_chart({"a": 0.7, "b": 0.3}, trials=4),
            slice_chart(MIXED, LOGARITHMIC, best=4, label="MAE (HU)"),
        )

    assert draw() == draw()
