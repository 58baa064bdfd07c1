"""The stage evaluate: what it measures, what passes, what fails whatever its limits, and what never changes."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from ctmr.evaluation import testset
from ctmr.metrics.baselines import FilledHead
from ctmr.pipeline.stage import run_stage
from ctmr.pipeline.stages.evaluate import STAGE

from .conftest import ALONE, QUICK, oracle, pretend, recipe

MEASURE_ONLY = pytest.mark.usefixtures("unreported")
LAX = "gate={paired_volume_hu: {psnr: {min: 0.1}}}"


def failed(tree):
    assert not tree["passed"]
    return " ".join(tree["reasons"])


@MEASURE_ONLY
def test_a_model_that_tells_the_truth_passes_and_every_part_is_measured(world, home, tmp_path, monkeypatch):
    pretend(monkeypatch, world, lambda array, truth: truth + 3.0)
    result, tree = world.evaluate(home, tmp_path / "out")
    assert tree["passed"] and tree["fidelity_measured"]
    assert tree["summaries"]["paired_volume_hu"]["metrics"]["mae"]["mean"] == pytest.approx(3.0, abs=0.2)
    assert set(tree["baselines"]) >= {"histogram matching", "mean image"}
    lesions = tree["lesions"]["mr2ct"]
    assert lesions["kept"] == lesions["lesions"] > 0 and lesions["invented"]["mean"] == 0
    assert tree["lesions"]["ct2mr"]["lesions"] > 0
    assert set(tree["other_direction"]["summaries"]) == {"cycle_slice", "structure", "unpaired_distribution"}
    assert {c["name"] for c in tree["robustness"]["curves"]} == {
        "noise",
        "bias field",
        "rotation",
        "intensity",
        "spacing",
    }
    assert {m["name"] for m in tree["uncertainty"]["measures"]} == {"mirrored input", "cycle error", "both"}
    assert tree["as_trained"] is None
    with (tmp_path / "out" / "cases.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {r["protocol"] for r in rows} == {"paired_volume_hu", "lesions"}
    said = " ".join(result.summary["information"])
    for direction in ("mr2ct", "ct2mr"):
        assert f"{direction}, lesions of tissue in the phantom: " in said
    assert said.count("lesions kept (") == 2 and "0 invented an image (95 % interval 0 to 0)" in said
    assert "blobs an image that the lesion-free truth does not show (95 % interval" in said


@MEASURE_ONLY
def test_the_recorded_content_is_the_same_on_a_second_run(world, home, tmp_path):
    first, _ = world.evaluate(home, tmp_path / "a")
    second, _ = world.evaluate(home, tmp_path / "b")
    assert first.digest == second.digest
    assert {p.name for p in (tmp_path / "a").iterdir()} >= {"cases.csv", "decision.json", "golden.npz", "verdict.json"}


@pytest.mark.slow
def test_figures_and_the_report_lie_in_provenance_and_in_mlflow(world, home, tmp_path, monkeypatch):
    from ctmr.tracking.mlflow import Tracking

    pretend(monkeypatch, world, lambda array, truth: truth + array.mean() / 100)
    result, tree = world.evaluate(home, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png")) and not list((tmp_path / "out").glob("*.html"))
    here = {p.name for p in (tmp_path / "out" / "provenance").glob("*.png")}
    assert {
        "comparison.png",
        "comparison_best.png",
        "tissues.png",
        "agreement.png",
        "lesions_mr2ct.png",
        "lesions_ct2mr.png",
        "robustness.png",
        "uncertainty.png",
        "coverage.png",
    } <= here
    logged = Tracking(home).client.list_artifacts(result.summary["mlflow_run"], "evaluation")
    assert {f"evaluation/{name}" for name in (*here, "report.html", "verdict.json")} <= {a.path for a in logged}
    page = (tmp_path / "out" / "provenance" / "report.html").read_text()
    assert "Phantoms, not patients" in page and "paired_volume_hu: paired" in page
    assert ("in their right order of brightness" in page) == (tree["warnings"] == [])


@MEASURE_ONLY
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_model_no_better_than_a_baseline_translator_fails_whatever_its_limits(
    world, home, tmp_path, monkeypatch, share
):
    filled = FilledHead()
    heads = {float(a[0].mean()): b[0] > -500 for a, b in world.truths}

    def answer(array, truth):
        head = heads[min(heads, key=lambda mean: abs(mean - array.mean()))]
        return share * filled(array, head)[...] + (1 - share) * np.full_like(truth, -500.0)

    pretend(monkeypatch, world, answer)
    _, tree = world.evaluate(home, tmp_path / "out", LAX, *QUICK)
    assert "a baseline that saw no pairs" in failed(tree)


@MEASURE_ONLY
def test_an_untrained_model_fails(world, home, tmp_path):
    _, tree = world.evaluate(home, tmp_path / "out", LAX, *QUICK)
    assert "no better than" in failed(tree)


@MEASURE_ONLY
def test_a_model_that_swaps_fat_and_bone_fails_by_the_alarm(world, home, tmp_path, monkeypatch):
    def answer(array, truth):
        fat, bone = (truth > -150) & (truth < -20), truth > 400
        return np.where(fat, 900.0, np.where(bone, 0.0, truth))

    pretend(monkeypatch, world, answer)
    _, tree = world.evaluate(home, tmp_path / "out", LAX, *QUICK)
    assert "changes the order of tissues" in failed(tree)


def without_lesions(world):
    """Tell the healthy truth, whether the input is ill or not: fidelity is perfect, every lesion is lost."""

    def answer(array, truth):
        pairs = [(world.truths[k + 1][1][0], world.truths[k + 2][1][0]) for k in (0, 3)]
        return next((healthy.astype(np.float32) for healthy, ill in pairs if np.array_equal(truth, ill)), truth)

    return answer


@MEASURE_ONLY
def test_a_model_that_loses_every_lesion_passes_with_the_information_and_fails_by_a_limit(
    world, home, tmp_path, monkeypatch
):
    pretend(monkeypatch, world, without_lesions(world))
    _, tree = world.evaluate(home, tmp_path / "free", *ALONE)
    assert tree["passed"] and tree["lesions"]["mr2ct"]["kept"] == 0
    assert any("0 of" in sentence for sentence in tree["information"])
    limit = "gate.lesions.detection_rate.min=0.5"
    _, tree = world.evaluate(home, tmp_path / "limited", limit, *ALONE)
    assert "lesions detection_rate is 0, which is not at least 0.5" in failed(tree)


@MEASURE_ONLY
def test_a_model_that_invents_lesions_fails_by_a_limit(world, home, tmp_path, monkeypatch):
    def answer(array, truth):
        made = truth.copy()
        made[12:15, 12:16, 7:10] += 400.0
        return made

    pretend(monkeypatch, world, answer)
    _, tree = world.evaluate(home, tmp_path / "out", "gate.lesions.false_findings.max=0.5", *ALONE)
    assert "lesions false_findings" in failed(tree)


@MEASURE_ONLY
def test_a_limit_on_lesions_that_were_not_measured_fails(world, home, tmp_path, monkeypatch):
    pretend(monkeypatch, world, oracle)
    _, tree = world.evaluate(home, tmp_path / "out", "gate.lesions.invented.max=3", *QUICK)
    assert "lesions invented was not measured" in failed(tree)


@MEASURE_ONLY
def test_a_recipe_that_asks_for_nothing_more_gets_nothing_more_and_the_verdict_says_so(
    world, home, tmp_path, monkeypatch
):
    pretend(monkeypatch, world, oracle)
    _, tree = world.evaluate(home, tmp_path / "out", *QUICK)
    assert tree["passed"] and tree["lesions"] == {} and tree["robustness"] is None and tree["uncertainty"] is None
    assert "evaluate.other_direction to 0" in tree["other_direction"]["note"]


@pytest.mark.slow
def test_with_training_only_steps_both_paths_are_measured_and_the_served_one_decides(
    world, home, tmp_path, monkeypatch
):
    """The fake step blanks the left half of every image, as preprocessing left it in the test shards."""
    shards = tmp_path / "preprocess"
    shutil.copytree(world.inputs["preprocessed"], shards)
    grid = json.loads((shards / "grid.json").read_text())
    grid["steps"] = [{"kind": "bias_field", "modality": "MR", "served": False}, *grid["steps"]]
    (shards / "grid.json").write_text(json.dumps(grid))
    blanked = np.load(shards / "shards" / "test" / "MR.npy")
    blanked[..., :12] = 0
    np.save(shards / "shards" / "test" / "MR.npy", blanked)
    model = tmp_path / "train"
    shutil.copytree(world.inputs["model"], model)
    description = json.loads((model / "model.json").read_text())
    description["grid"] = grid
    (model / "model.json").write_text(json.dumps(description))

    def answer(array, truth):
        return np.where((array[0] == 0) & (truth > -900), 0.0, truth)

    pretend(monkeypatch, world, answer)
    inputs = world.inputs | {"preprocessed": shards, "model": model}
    run_stage(STAGE, inputs=inputs, recipe=recipe(*QUICK), out=tmp_path / "out", home=home)
    tree = json.loads((tmp_path / "out" / "verdict.json").read_text())
    _, plain = world.evaluate(home, tmp_path / "plain", *QUICK)
    assert tree["summaries"] == plain["summaries"]
    served, trained = (tree[k]["paired_volume_hu"]["metrics"]["mae"]["mean"] for k in ("summaries", "as_trained"))
    assert trained > served + 10
    page = (tmp_path / "out" / "provenance" / "report.html").read_text()
    assert "inputs with the training-only steps" in page


@MEASURE_ONLY
def test_the_direction_without_a_unit_is_judged_without_pairs(world, home, tmp_path, monkeypatch):
    model = tmp_path / "train"
    shutil.copytree(world.inputs["model"], model)
    description = json.loads((model / "model.json").read_text()) | {"directions": ["ct2mr"]}
    (model / "model.json").write_text(json.dumps(description))
    turned = recipe(
        "direction=ct2mr",
        "gate={cycle_slice: {ssim: {min: -1}}, structure: {nmi: {min: 0}}, unpaired_distribution: {kid: {max: 100}}}",
    )
    inputs = world.inputs | {"model": model}
    run_stage(STAGE, inputs=inputs, recipe=turned, out=tmp_path / "untrained", home=home)
    untrained = json.loads((tmp_path / "untrained" / "verdict.json").read_text())
    # Voxels of 8 mm mix fluid and brain in the true image as well.
    assert any("true images show the same" in w for w in untrained["warnings"])
    assert all("a baseline that saw no pairs" in reason for reason in untrained["reasons"])
    pretend(monkeypatch, world, oracle)
    run_stage(STAGE, inputs=inputs, recipe=turned, out=tmp_path / "true", home=home)
    tree = json.loads((tmp_path / "true" / "verdict.json").read_text())
    assert tree["reasons"] == [] and not tree["fidelity_measured"]
    assert set(tree["other_direction"]["summaries"]) == {"paired_volume_hu"}
    assert set(tree["baselines"]["mean image"]) == {"structure", "unpaired_distribution"}


def test_memory_of_images_has_a_bound(world, monkeypatch):

    test_set = world.test_set()
    monkeypatch.setattr(testset, "READ_CACHE_BYTES", 40_000)
    for index in (0, 1):
        test_set.case(index)
    assert len(test_set.read._kept) == 1
