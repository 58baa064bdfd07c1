"""One direction: the alarm of synthetic MR, baselines where nothing is paired, and what is refused."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ctmr.errors import InputError
from ctmr.evaluation.candidates import OWN, Model
from ctmr.evaluation.comparison import MeasuredDirection
from ctmr.evaluation.direction import _outdone, _tissues, measure_direction, turn
from ctmr.imaging.volume import Direction, Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.stats import summarise
from ctmr.metrics.tissue import TissueClass, TissueRow

from .conftest import recipe

ORDER = {TissueClass.OUTSIDE_AIR: 5.0, TissueClass.CSF: 200.0, TissueClass.BRAIN: 600.0}


def alarm_of(medians, truth=None, mm=1.0, sequence="T1"):
    rows = {t: TissueRow(99, math.nan if truth is None else truth[t], v, v, v) for t, v in medians.items()}
    test_set = SimpleNamespace(
        target_unit=Unit.ARBITRARY, target=SimpleNamespace(volumes=[SimpleNamespace(sequences=(sequence,))])
    )
    return _tissues(test_set, MeasuredDirection({}, tables={"a": rows}, coarsest_mm=mm))


def test_a_synthetic_t1_with_bright_fluid_raises_the_alarm():
    swapped = ORDER | {TissueClass.CSF: 900.0}
    assert alarm_of(ORDER) == (None, ())
    assert "cerebrospinal fluid (900) is not darker" in alarm_of(swapped)[0]
    assert "cerebrospinal fluid (900) is not darker" in alarm_of(swapped, truth=ORDER)[0]
    assert alarm_of(swapped, sequence="T2")[0] is None


def test_an_order_that_truth_or_voxels_cannot_show_warns_and_fails_nothing():
    swapped = ORDER | {TissueClass.CSF: 900.0}
    alarm, (warning,) = alarm_of(swapped, truth=swapped)
    assert alarm is None and "the true images show the same" in warning
    alarm, (warning,) = alarm_of(swapped, mm=5.0)
    assert alarm is None and "voxels of 5 mm mix tissues" in warning


def distribution(kid):
    case = CaseMetrics("test", "", protocol("unpaired_distribution"), {"kid": kid})
    return {"unpaired_distribution": summarise([case])}


def test_a_translator_that_never_learned_and_is_nearer_to_real_images_is_named():
    summaries = {OWN: distribution(0.4), "mean image": distribution(0.3), "identity": distribution(0.9)}
    (sentence,) = _outdone(summaries, ("identity", "mean image"))
    assert sentence.endswith("than the model (KID 0.4): mean image (KID 0.3)")
    assert _outdone({OWN: distribution(0.1), "identity": distribution(0.9)}, ("identity",)) == ()


def test_baseline_translators_stand_beside_the_model_without_pairs(world):
    test_set, model = world.test_set(Direction.CT2MR), Model.load(world.inputs["model"], Direction.CT2MR)
    side = measure_direction(test_set, model, recipe(), tell=lambda message, fraction: None, most=1)
    assert not test_set.has_pairs and set(side.summaries) == {OWN, *side.baselines}
    # One image has no distribution.
    assert set(side.own) == {"cycle_slice", "structure"}
    # Values alone are recoloured, so all structure is kept.
    assert side.summaries["quantile-matched line"]["structure"].mean("nmi") > 0.95
    assert len(side.cases["cycle_slice"]) == 1


def test_the_cycle_is_measured_over_the_range_of_the_whole_volume(world):
    model = Model.load(world.inputs["model"], Direction.MR2CT)
    case = world.test_set().case(0)
    trained, _ = model.cycle(case.array, [12])
    alone, _ = model.cycle(case.array[:, 12:13], [0])
    assert trained.shape == alone.shape == (1, 1, 28, 24)
    assert not (trained == alone).all()


def test_chosen_slices_are_translated_as_in_the_whole_volume(world):
    model = Model.load(world.inputs["model"], Direction.MR2CT)
    array = world.test_set().case(0).array
    whole, some = model.translate(array), model.translate(array, [15, 9])
    assert np.allclose(some, whole[[15, 9]], atol=1e-3)
    assert not np.allclose(some, whole[:2], atol=1e-3)


def test_a_direction_that_would_write_several_channels_is_not_measured_and_says_why(world):
    from dataclasses import replace

    model = Model.load(world.inputs["model"], Direction.MR2CT)
    sides = dict(model.description.sides)
    sides["MR"] = sides["MR"].model_copy(update={"channels": 2, "target_range": None})
    two = replace(model, description=model.description.model_copy(update={"sides": sides}))
    assert "2 channels of MR" in turn(world.test_set(), two)


def test_a_test_split_without_source_images_is_refused(world):
    from dataclasses import replace

    test_set = world.test_set()
    empty = replace(test_set, source=replace(test_set.source, volumes=()), pairs={})
    model = Model.load(world.inputs["model"], Direction.MR2CT)
    with pytest.raises(InputError, match="the test split has no MR image"):
        measure_direction(empty, model, recipe(), tell=lambda message, fraction: None)
