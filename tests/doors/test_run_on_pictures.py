"""The whole pipeline on small unpaired 8-bit pictures: what reruns, what is refused, what stays served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ctmr.datasets.dvc import resolve
from ctmr.errors import EnvironmentFault, GateFailed
from ctmr.pipeline.inline import Run, run_pipeline
from ctmr.serving.client import TritonClient
from ctmr.serving.server import EmbeddedTriton
from ctmr.serving.synthesis import synthesize
from ctmr.tracking.lineage import trace
from ctmr.tracking.mlflow import Tracking
from tests.doors.pictures import MODEL, World, recipe

pytestmark = pytest.mark.slow


def reran(run: Run) -> list[str]:
    return [name for name, result in run.results.items() if not result.reused]


@pytest.fixture
def world(first_run: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("CTMR_HOME", str(first_run.home.root))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return first_run


def test_the_first_run_registers_and_serves_a_version(world: World) -> None:
    assert world.versions() == ["1"]
    assert world.live() == "1"
    deployed = world.first.results["deploy"].summary
    assert deployed["golden_difference"] <= 1.0 and deployed["shadow"]["left_out"] == "no other version was live"


def test_the_verdict_says_that_fidelity_was_not_measured(world: World) -> None:
    summary = world.first.results["evaluate"].summary
    assert not summary["fidelity_measured"]
    assert "not measured" in summary["statement"]
    assert set(summary["metrics"]) == {"cycle_slice", "structure", "unpaired_distribution", "lesions"}


def test_every_trial_is_a_child_run_and_the_best_is_trained(world: World) -> None:
    tune = world.first.results["tune"].summary
    tracking = Tracking(world.home)
    children = tracking.client.search_runs(
        [tracking.experiment_id], f"tags.mlflow.parentRunId = '{tune['mlflow_run']}'"
    )
    assert len(children) == 2
    trials = json.loads((world.folder / "tune" / "trials.json").read_text())["trials"]
    complete = [t for t in trials if t["score"] is not None]
    assert min(complete, key=lambda t: t["score"])["params"] == tune["best_params"]
    assert world.first.results["train"].summary["settings"] == tune["best_params"]


def test_a_second_run_with_nothing_changed_reuses_every_stage(world: World) -> None:
    again = world.run()
    assert again.reused
    assert {n: r.digest for n, r in again.results.items()} == {n: r.digest for n, r in world.first.results.items()}


def test_changing_a_gate_limit_reruns_evaluate_only(world: World) -> None:
    assert reran(world.run("gate.cycle_slice.ssim.min=-0.9")) == ["evaluate"]
    assert world.versions() == ["1"]
    assert reran(world.run()) == ["evaluate"]


def test_a_setting_of_deployment_changes_for_a_registered_version(world: World) -> None:
    assert reran(world.run("deploy.chunk=4")) == ["deploy"]
    with TritonClient(EmbeddedTriton(world.home.triton).start(world.home.model_repository).grpc) as client:
        spec, version = client.spec(f"{MODEL}_ct2mr")
    assert (spec.chunk, version, world.versions()) == (4, "1", ["1"])
    assert reran(world.run()) == ["deploy"]


def test_a_model_trained_again_to_the_same_content_keeps_its_version(world: World, tmp_path: Path) -> None:
    """What tells of the MLflow run is lost, so that another one is opened for the model."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(world.folder, copy)
    shutil.rmtree(copy / "train" / "provenance")
    shutil.rmtree(copy / "register")
    again = run_pipeline(resolve(str(world.data)), recipe(), folder=copy, home=world.home)
    assert world.versions() == ["1"] and world.live() == "1"
    assert not again.results["register"].reused
    assert again.results["register"].digest == world.first.results["register"].digest


def test_no_mlflow_run_is_left_open(world: World) -> None:
    tracking = Tracking(world.home)
    runs = tracking.client.search_runs([tracking.experiment_id], max_results=100)
    assert len(runs) >= 4 and {run.info.status for run in runs} == {"FINISHED"}


def test_a_failed_gate_registers_and_deploys_nothing_and_says_why(world: World) -> None:
    with pytest.raises(GateFailed, match=r"cycle_slice ssim .* not at least 2.*nothing was registered") as caught:
        world.run("gate.cycle_slice.ssim.min=2")
    assert caught.value.exit_code == 1
    assert world.versions() == ["1"]
    assert world.live() == "1"
    verdict = json.loads((world.folder / "evaluate" / "verdict.json").read_text())
    assert verdict["passed"] is False and verdict["reasons"]
    tags = Tracking(world.home).client.get_run(world.first.results["train"].summary["mlflow_run"]).data.tags
    assert tags["ctmr.verdict"] == "fail" and "not at least 2" in tags["ctmr.verdict_reason"]
    world.run()


def test_another_learning_rate_trains_again_beside_a_champion_that_the_registry_did_not_change(
    world: World, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(world.folder, copy)
    source = resolve(str(world.data))
    changed = recipe("train.lr_generator=0.0003", "gate.cycle_slice.ssim.min=2")
    results = {}

    def run() -> None:
        run_pipeline(source, changed, folder=copy, home=world.home, on_result=lambda r: results.setdefault(r.name, r))

    run_id = world.first.results["train"].summary["mlflow_run"]
    (weights,) = world.home.artifacts.glob(f"**/{run_id}/**/model/ct2mr.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(EnvironmentFault, match=r"ct2mr.safetensors of model .* is not what was registered") as caught:
        run()
    assert caught.value.exit_code == 3 and world.versions() == ["1"] and world.live() == "1"
    weights.write_bytes(before)
    with pytest.raises(GateFailed):
        run()
    assert [n for n, r in results.items() if r.reused] == ["fetch", "validate", "preprocess"]
    assert "recipe.train" in results["train"].because


def test_a_picture_translated_over_grpc_says_that_it_is_synthetic_and_can_be_traced(
    world: World, tmp_path: Path
) -> None:
    picture = next((world.data / "test" / "CT").glob("*.png"))
    out = tmp_path / "made.png"
    written = synthesize(
        picture, out, to="MR", model="", url="", home=world.home, report=lambda message, fraction=None: None
    )
    with Image.open(out) as made, Image.open(picture) as source:
        assert made.size == source.size
        assert "SYNTHETIC MR" in made.info["Description"]
    links = {link.what: link for link in trace(written["series_uid"], world.home)}
    assert all(link.checked is not False for link in links.values())
    assert links["dataset md5"].value == world.first.results["fetch"].summary["md5"]
    assert links["MLflow run"].value == world.first.results["train"].summary["mlflow_run"]
    assert links["ONNX sha256"].value == world.first.results["register"].summary["onnx_sha256"]["ct2mr"]


def test_a_server_that_was_killed_is_noticed_and_served_again(world: World) -> None:
    import os
    import signal

    running = EmbeddedTriton(world.home.triton).status()
    assert running is not None
    os.kill(running.process.pid, signal.SIGKILL)
    world.run()
    assert world.live() == "1"


def test_a_served_file_that_was_altered_is_deployed_again_or_refused(world: World) -> None:
    served = world.home.model_repository / f"{MODEL}_ct2mr" / "1" / "model.onnx"
    good = served.read_bytes()
    served.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    links = {link.what: link for link in trace_any(world)}
    assert links["Triton model"].checked is False
    served.write_bytes(good)


def trace_any(world: World) -> list:
    entry = json.loads(world.home.ledger.read_text().splitlines()[-1])
    return trace(entry["series_uid"], world.home)
