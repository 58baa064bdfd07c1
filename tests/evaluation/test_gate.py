"""The verdict's truth table: pairs or none, limits, alarms, baselines, champion."""

import json
import math

import pytest

from ctmr.evaluation.gate import judge
from ctmr.imaging.volume import Unit
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.metrics.stats import summarise
from ctmr.recipe.recipe import Limit, Recipe

GATE = Recipe().gate.limits
GOOD = {"mae": 80.0, "psnr": 27.0, "ssim": 0.85}
TRIVIAL = {
    "mean image": {"mae": 120.0, "psnr": 22.8, "ssim": 0.66},
    "head filled with 35 HU": {"mae": 110.0, "psnr": 22.6, "ssim": 0.71},
}
UNPAIRED = {
    "cycle_slice": {"ssim": 0.8},
    "structure": {"nmi": 0.1},
    "unpaired_distribution": {"kid": 0.2},
}


def summary(name, values):
    return summarise([CaseMetrics(s, s, protocol(name), values) for s in "ab"])


def paired(values=GOOD, gate=GATE, baselines=TRIVIAL, name="paired_volume_hu", **options):
    rivals = {t: {name: summary(name, v)} for t, v in baselines.items()}
    own = {name: summary(name, values)} if values else {}
    return judge(own, gate, has_pairs=True, baselines=rivals, **options)


NEARNESS = "unpaired_distribution"
OUTDONE = {name: {NEARNESS: summary(NEARNESS, {"kid": 0.5})} for name in ("identity", "mean image")}


def unpaired(gate=GATE, without=(), baselines=OUTDONE, options=None, **changes):
    rows = {k: changes.get(k, v) for k, v in UNPAIRED.items() if k not in without}
    own = {k: summary(k, v) for k, v in rows.items()}
    return judge(own, gate, has_pairs=False, baselines=baselines, **(options or {}))


def test_a_good_model_with_pairs_passes_and_its_fidelity_was_measured():
    verdict = paired()
    assert verdict.passed and verdict.fidelity_measured and verdict.reasons == ()
    assert verdict.statement == "Passed: all 5 checks hold on 2 patients and every baseline is beaten."


def test_a_broken_limit_fails_with_a_sentence():
    verdict = paired(gate={"paired_volume_hu": {"psnr": Limit(min=99.0)}})
    assert not verdict.passed
    assert verdict.reasons == ("paired_volume_hu psnr is 27, which is not at least 99",)


def test_a_limit_holds_at_its_own_value_and_equal_minimum_and_maximum_are_both_checked():
    assert paired(gate={"paired_volume_hu": {"psnr": Limit(min=27.0, max=27.0)}}).passed
    assert len(paired(gate={"paired_volume_hu": {"psnr": Limit(min=28.0, max=28.0)}}).reasons) == 1


def test_with_pairs_a_missing_measurement_fails():
    assert not paired(values=None).passed
    missing = paired(values={"mae": 80.0, "psnr": 27.0})
    assert any("ssim was not measured" in r for r in missing.reasons)


@pytest.mark.parametrize(("metric", "value"), [("mae", 110.0), ("psnr", 22.8), ("ssim", 0.71)])
def test_a_model_no_better_than_the_best_baseline_translator_fails_whatever_its_limits(metric, value):
    lax = {"paired_volume_hu": {"psnr": Limit(min=1.0)}}
    verdict = paired(values=GOOD | {metric: value}, gate=lax)
    assert not verdict.passed and "a baseline that saw no pairs" in verdict.reasons[0]


def test_with_pairs_and_no_baseline_translator_nothing_can_pass():
    assert "no baseline was measured" in paired(baselines={}).reasons[0]


def test_a_tissue_order_alarm_fails_an_otherwise_good_model():
    verdict = paired(alarms=("the translation changes the order of tissues: fat is bone",))
    assert not verdict.passed and verdict.reasons[0].startswith("the translation changes")


def test_with_pairs_unpaired_limits_are_not_applied():
    gate = {**GATE, "cycle_slice": {"ssim": Limit(min=2.0)}}
    verdict = paired(gate=gate)
    assert verdict.passed and any(n.startswith("cycle_slice") for n in verdict.not_applied)


def test_limits_of_another_unit_are_not_applied_and_an_empty_gate_fails():
    grey = {"paired_slice_grey8": {"psnr": Limit(min=20.0)}}
    values = {"mae": 5.0, "psnr": 30.0, "ssim": 0.9}
    rivals = {"identity": {"mae": 30.0, "psnr": 15.0, "ssim": 0.3}}
    options = {"baselines": rivals, "name": "paired_slice_grey8", "unit": Unit.GREY8}
    assert paired(values, {**GATE, **grey}, **options).passed
    assert "no limit of the gate applies" in paired(values, GATE, **options).reasons[0]


def test_without_pairs_a_pass_says_that_fidelity_was_not_measured():
    verdict = unpaired()
    assert verdict.passed and not verdict.fidelity_measured
    assert "Fidelity was not measured" in verdict.statement
    assert any(n.startswith("paired_volume_hu does not apply") for n in verdict.not_applied)


@pytest.mark.parametrize("name", UNPAIRED)
def test_without_pairs_each_of_the_three_must_have_a_limit_and_a_measurement(name):
    assert any(name in r and "not measured" in r for r in unpaired(without=(name,)).reasons)
    gate = {k: v for k, v in GATE.items() if k != name}
    assert any(name in r and "set one" in r for r in unpaired(gate=gate).reasons)


def test_without_pairs_a_bad_distribution_fails_and_still_says_what_was_not_measured():
    verdict = unpaired(unpaired_distribution={"kid": 3.0})
    assert not verdict.passed and "Fidelity was not measured" in verdict.statement


@pytest.mark.parametrize("beats", ["identity", "histogram matching", "mean image"])
@pytest.mark.parametrize("kid", [0.2, 0.1])
def test_without_pairs_a_model_that_a_baseline_reaches_or_beats_never_passes(beats, kid):
    allowed = {"allow_unmeasured_fidelity": True}
    verdict = unpaired(baselines=OUTDONE | {beats: {NEARNESS: summary(NEARNESS, {"kid": kid})}}, options=allowed)
    assert not verdict.passed and not verdict.replaces_champion
    assert f"no better than {beats} with {kid}, a baseline that saw no pairs" in verdict.reasons[0]


def test_without_pairs_and_without_baselines_nothing_can_pass():
    assert "no baseline was measured" in unpaired(baselines={}).reasons[0]


@pytest.mark.parametrize("champion", [None, {NEARNESS: summary(NEARNESS, {"kid": 0.9})}])
def test_without_measured_fidelity_only_a_recipe_that_says_so_lets_a_model_be_promoted(champion):
    held = unpaired(options={"champion": champion})
    assert held.passed and not held.replaces_champion and not held.uncompared
    assert "gate.allow_unmeasured_fidelity=true" in held.stays
    freed = unpaired(options={"champion": champion, "allow_unmeasured_fidelity": True})
    assert freed.passed and freed.replaces_champion and freed.stays == ""


@pytest.mark.parametrize(
    "options",
    [
        {"uncompared": "version 3 was made for another grid, so nothing compares it"},
        {"champion": {"synthrad2023": summary("synthrad2023", GOOD)}, "champion_name": "version 3"},
    ],
)
def test_a_champion_that_could_not_be_compared_stays_until_a_person_decides(options):
    verdict = paired(**options)
    assert verdict.passed and verdict.uncompared and not verdict.replaces_champion
    assert "version 3" in verdict.stays and verdict.stays == verdict.champion


def test_a_compared_champion_that_is_better_stays_for_that_reason():
    verdict = paired(champion={"paired_volume_hu": summary("paired_volume_hu", GOOD | {"mae": 70.0})})
    assert not verdict.uncompared and "worse than the champion with 70" in verdict.stays


def test_an_empty_gate_never_passes():
    assert not paired(gate={}).passed
    assert not unpaired(gate={}).passed


@pytest.mark.parametrize(("mae", "replaces"), [(90.0, True), (80.0, True), (70.0, False)])
def test_a_model_replaces_the_champion_unless_it_is_worse(mae, replaces):
    champion = {"paired_volume_hu": summary("paired_volume_hu", GOOD | {"mae": mae})}
    verdict = paired(champion=champion, champion_name="version 3")
    assert verdict.passed and verdict.replaces_champion is replaces and "version 3" in verdict.champion


def test_a_failed_model_never_replaces_a_champion():
    champion = {"paired_volume_hu": summary("paired_volume_hu", GOOD | {"mae": 150.0})}
    assert not paired(alarms=("alarm",), champion=champion).replaces_champion


def test_another_protocol_under_the_same_name_is_a_type_error():
    with pytest.raises(TypeError, match="different protocols"):
        judge(
            {"paired_volume_hu": summary("paired_volume_hu", GOOD)},
            GATE,
            has_pairs=True,
            baselines={"mean image": {"paired_volume_hu": summary("synthrad2023", GOOD)}},
        )


def test_json_tells_an_infinite_psnr_from_one_that_was_not_measured():
    verdict = paired(values=GOOD | {"mae": 0.0, "psnr": math.inf, "ssim": 1.0})
    tree = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    found = {c["metric"]: (c["found"], c["infinite"]) for c in tree["checks"]}
    assert found["psnr"] == (None, True) and found["mae"] == (0.0, False)


def lesions(**values):
    return summarise([CaseMetrics(s, s, protocol("lesions"), values) for s in "ab"])


def judged_with_lesions(gate, has_pairs=True, **values):
    own = (
        {"paired_volume_hu": summary("paired_volume_hu", GOOD)}
        if has_pairs
        else {k: summary(k, v) for k, v in UNPAIRED.items()}
    )
    rivals = {t: {"paired_volume_hu": summary("paired_volume_hu", v)} for t, v in TRIVIAL.items()} | OUTDONE
    return judge(own | {"lesions": lesions(**values)}, gate, has_pairs=has_pairs, baselines=rivals)


LESION_GATE = {"lesions": {"detection_rate": Limit(min=0.8), "invented": Limit(max=1.0)}}


@pytest.mark.parametrize("has_pairs", [True, False])
def test_a_limit_on_lesions_decides_with_pairs_and_without(has_pairs):
    gate = {**GATE, **LESION_GATE}
    assert judged_with_lesions(gate, has_pairs, detection_rate=0.9, invented=0.5).passed
    lost = judged_with_lesions(gate, has_pairs, detection_rate=0.5, invented=0.5)
    assert lost.reasons == ("lesions detection_rate is 0.5, which is not at least 0.8",)
    many = judged_with_lesions(gate, has_pairs, detection_rate=0.9, invented=3.0)
    assert many.reasons == ("lesions invented is 3, which is not at most 1",)


@pytest.mark.parametrize("has_pairs", [True, False])
def test_without_a_limit_lesions_decide_nothing(has_pairs):
    assert judged_with_lesions(GATE, has_pairs, detection_rate=0.0, invented=99.0).passed


def test_limits_on_lesions_alone_are_no_gate():
    alone = judged_with_lesions(LESION_GATE, detection_rate=1.0, invented=0.0)
    assert any("no limit of the gate applies" in r for r in alone.reasons)
    assert any(c.metric == "mae" for c in alone.checks), "baselines are compared all the same"


def test_a_lesion_limit_without_a_measurement_fails():
    gate = {**GATE, **LESION_GATE}
    rivals = {t: {"paired_volume_hu": summary("paired_volume_hu", v)} for t, v in TRIVIAL.items()}
    verdict = judge({"paired_volume_hu": summary("paired_volume_hu", GOOD)}, gate, has_pairs=True, baselines=rivals)
    assert any("lesions detection_rate was not measured" in r for r in verdict.reasons)


def test_information_is_kept():
    verdict = paired(information=("7 of 8 lesions kept",))
    assert verdict.passed and verdict.information == ("7 of 8 lesions kept",)
    assert verdict.to_dict()["information"] == ("7 of 8 lesions kept",)
