"""The whole pipeline on small unpaired 8-bit pictures: what reruns, what is refused, what stays served."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctmr.datasets.dvc import resolve
from ctmr.errors import GateFailed
from ctmr.phantom import make_head
from ctmr.pipeline.inline import Run, run_pipeline
from ctmr.recipe.loading import load
from ctmr.recipe.recipe import Recipe
from ctmr.serving.client import TritonClient
from ctmr.serving.server import EmbeddedTriton
from ctmr.serving.synthesis import synthesize
from ctmr.system.home import Home, quiet_libraries
from ctmr.tracking.lineage import trace
from ctmr.tracking.mlflow import Tracking

pytestmark = pytest.mark.slow

TINY = [
    "name=tiny",
    "direction=ct2mr",
    "preprocess.picture_size=[32, 32]",
    "network.generator={kind: resnet, width: 4, blocks: 1}",
    "network.discriminator={kind: patchgan, width: 4, layers: 1}",
    "train.steps=6",
    "train.threads=1",
    "tune.trials=4",
    "tune.steps=2",
    "tune.reports=1",
    "data.val_fraction=0.4",
    "validation.near_duplicate_bits=0",
    "evaluate.kid_subsets=2",
    "evaluate.bootstrap=50",
    "gate={cycle_slice: {ssim: {min: -1}}, structure: {nmi: {min: -1}}, unpaired_distribution: {kid: {max: 100}}}",
]


@dataclass
class World:
    """A home, a dataset of pictures and the first run on it."""

    home: Home
    data: Path
    folder: Path
    first: Run

    def run(self, *settings: str) -> Run:
        """Run the pipeline again with other settings."""
        return run_pipeline(resolve(str(self.data)), recipe(*settings), folder=self.folder, home=self.home)

    def live(self) -> str | None:
        """The version that answers."""
        with TritonClient(EmbeddedTriton(self.home.triton).start(self.home.model_repository).grpc) as client:
            return client.live_version("tiny-pictures_ct2mr")

    def versions(self) -> list[str]:
        """The registered versions, newest first."""
        return [v.version for v in Tracking(self.home).versions("tiny-pictures")]


def recipe(*settings: str) -> Recipe:
    return load("default", [*TINY, *settings])


def reran(run: Run) -> list[str]:
    return [name for name, result in run.results.items() if not result.reused]


def write_pictures(folder: Path) -> None:
    for seed in range(14):
        head = make_head(seed, shape=(24, 28, 24), spacing_mm=8.0)
        ct = np.clip((head.ct.astype(float) + 1000) / 2000 * 255, 0, 255)
        mr = np.clip(head.t1 / head.t1.max() * 255, 0, 255)
        split = "train" if seed < 10 else "test"
        name, image = ("CT", ct) if seed % 2 else ("MRI", mr)
        path = folder / split / name / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[13].astype(np.uint8)).resize((48, 56)).save(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the nvidia-pytriton wheel, which carries tritonserver, is not installed")
    quiet_libraries()
    root = tmp_path_factory.mktemp("pictures_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTMR_HOME", str(root / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        write_pictures(root / "pictures")
        home = Home(root / "home")
        first = run_pipeline(resolve(str(root / "pictures")), recipe(), folder=root / "run", home=home)
        yield World(home, root / "pictures", root / "run", first)
        EmbeddedTriton(home.triton).stop()


def test_the_first_run_registers_and_serves_a_version(world: World) -> None:
    assert world.versions() == ["1"]
    assert world.live() == "1"
    assert world.first.results["deploy"].summary["golden_difference"] <= 1.0


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
    assert len(children) == 4
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


def test_another_learning_rate_trains_again_without_fetching_again(world: World, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(world.folder, copy)
    source = resolve(str(world.data))
    changed = recipe("train.lr_generator=0.0003", "gate.cycle_slice.ssim.min=2")
    results = {}
    with pytest.raises(GateFailed):
        run_pipeline(source, changed, folder=copy, home=world.home, on_result=lambda r: results.__setitem__(r.name, r))
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
    served = world.home.model_repository / "tiny-pictures_ct2mr" / "1" / "model.onnx"
    good = served.read_bytes()
    served.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    links = {link.what: link for link in trace_any(world)}
    assert links["Triton model"].checked is False
    served.write_bytes(good)


def trace_any(world: World) -> list:
    entry = json.loads(world.home.ledger.read_text().splitlines()[-1])
    return trace(entry["series_uid"], world.home)


def test_the_command_line_exits_1_on_a_failed_gate_with_one_sentence(world: World) -> None:
    command = [sys.executable, "-m", "ctmr.cli", "run", "--dataset", str(world.data), "--out", str(world.folder)]
    command += ["--recipe", "default"]
    for setting in [*TINY, "gate.cycle_slice.ssim.min=2"]:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if line.startswith("ctmr:")]
    assert len(sentences) == 1 and "not at least 2" in sentences[0]
    assert "Traceback" not in done.stderr + done.stdout
    world.run()
