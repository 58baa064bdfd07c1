"""The compiled pipeline under kfp.local, for real: both branches of the gate, judged by what they left in the world."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ctmr.datasets.dvc import resolve
from ctmr.errors import EnvironmentFault, GateFailed, InputError
from ctmr.pipeline import kfp_local, stages
from ctmr.pipeline.inline import Run
from ctmr.pipeline.kfp_local import Runner
from ctmr.pipeline.stage import Result, run_stage
from ctmr.recipe.loading import load
from ctmr.serving.client import TritonClient
from ctmr.serving.server import EmbeddedTriton, Endpoint
from ctmr.system.digest import content_digest
from ctmr.system.home import Home, quiet_libraries
from ctmr.tracking.mlflow import Tracking
from tests.doors.pictures import MODEL, SETTINGS, WORKSPACE_STAGES

STAGE_NAMES = stages.names()

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IMPOSSIBLE = "gate.cycle_slice.ssim.min=2"
PINNED = "train.speed={layout: contiguous, layers: pytorch, compile: false}"
"""Equal bits in two homes: what is fastest is timed in each."""
LONGER = ["tune.trials=4", "tune.workers=2", "tune.steps=300", "tune.reports=4", PINNED]


@dataclass
class World:
    """A home, pictures, and the outputs of the runs on them."""

    home: Home
    data: Path
    folder: Path
    heard: list[str] = field(default_factory=list)

    def run(self, *settings: str, how: Runner = Runner.KFP, folder: Path | None = None) -> Run:
        results: dict[str, Result] = {}
        try:
            return kfp_local.run(
                resolve(str(self.data)),
                "default",
                [*SETTINGS, *settings],
                folder=folder or self.folder,
                home=self.home,
                runner=how,
                on_result=lambda r: results.__setitem__(r.name, r),
                report_for=lambda stage: lambda message, fraction=None: self.heard.append(f"{stage}: {message}"),
            )
        finally:
            self.last = results

    def versions(self) -> list[str]:
        return [v.version for v in Tracking(self.home).versions(MODEL)]

    def served(self) -> list[str]:
        """Names in Triton's index; empty when it is not even running."""
        running = EmbeddedTriton(self.home.triton).status()
        if running is None:
            return []
        with TritonClient(Endpoint.of(running).grpc) as client:
            return [name for name in (f"{MODEL}_ct2mr",) if client.live_version(name)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, pictures: Path, needs_triton: None) -> Iterator[World]:
    quiet_libraries()
    root = tmp_path_factory.mktemp("compiled_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTMR_HOME", str(root / "home"))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "CTMR_STUDY_STORAGE"):
            patch.delenv(name, raising=False)
        home = Home(root / "home")
        yield World(home, pictures, root / "run")
        EmbeddedTriton(home.triton).stop()


@pytest.fixture(scope="module")
def failed(world: World) -> GateFailed:
    """The first run: its gate can not be passed."""
    with pytest.raises(GateFailed) as caught:
        world.run(IMPOSSIBLE)
    return caught.value


def test_a_failed_gate_registers_and_serves_nothing(world: World, failed: GateFailed) -> None:
    assert world.versions() == []
    assert world.served() == []
    assert not (world.folder / "register").exists() and not (world.folder / "deploy").exists()


def test_a_failed_gate_leaves_a_recorded_run_with_the_reason(world: World, failed: GateFailed) -> None:
    assert "cycle_slice ssim" in str(failed) and "not at least 2" in str(failed) and "\n" not in str(failed)
    verdict = json.loads((world.folder / "evaluate" / "verdict.json").read_text())
    assert verdict["passed"] is False
    run_id = json.loads((world.folder / "train" / "provenance" / "run.json").read_text())["run_id"]
    tags = Tracking(world.home).client.get_run(run_id).data.tags
    assert tags["ctmr.verdict"] == "fail" and "not at least 2" in tags["ctmr.verdict_reason"]


def test_progress_of_every_stage_is_heard(world: World, failed: GateFailed) -> None:
    assert {line.partition(":")[0] for line in world.heard} >= {"start", *STAGE_NAMES[:6]} - {"validate"}


def test_the_model_run_knows_every_setting_that_made_it(world: World, failed: GateFailed) -> None:
    run_id = json.loads((world.folder / "train" / "provenance" / "run.json").read_text())["run_id"]
    params = Tracking(world.home).client.get_run(run_id).data.params
    assert params["preprocess.picture_size"] == "[32, 32]" and params["data.val_fraction"] == "0.4"
    assert params["train.steps"] == "6" and params["name"] == "tiny"


@pytest.fixture(scope="module")
def passed(world: World, failed: GateFailed) -> Run:
    """The second run: the same, with a gate that can be passed."""
    return world.run()


def test_a_passed_gate_registers_one_version_and_serves_it(world: World, passed: Run) -> None:
    assert world.versions() == ["1"]
    assert world.served() == [f"{MODEL}_ct2mr"]
    assert list(passed.results) == list(STAGE_NAMES)


def test_a_limit_alone_reruns_nothing_before_evaluate(world: World, passed: Run) -> None:
    assert [n for n, r in passed.results.items() if r.reused] == list(STAGE_NAMES[:5])


def test_in_this_process_the_same_run_has_nothing_left_to_do(world: World, passed: Run) -> None:
    assert world.run(how=Runner.INLINE).reused


def test_both_runners_leave_the_same_content(world: World, passed: Run, inline: dict[str, str]) -> None:
    # register and deploy name the MLflow run, which is another in another store.
    assert {n: content_digest(world.folder / n) for n in WORKSPACE_STAGES} == inline


def test_the_artifacts_of_a_run_point_at_its_folder_and_hold_no_copy(world: World, passed: Run) -> None:
    roots = list((world.home.root / "pipelines" / "local").glob("*/root"))
    assert roots
    assert not [p for root in roots for p in root.rglob("*.npy")]


def test_a_dataset_that_is_refused_ends_the_run_as_bad_input(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refused"):
        world.run("validation.min_images=50", folder=tmp_path / "run")
    assert (tmp_path / "run" / "validate" / "findings.csv").is_file()
    assert not (tmp_path / "run" / "preprocess").exists()


def test_two_runs_never_write_into_one_folder(world: World, tmp_path: Path) -> None:
    with kfp_local._alone(tmp_path), pytest.raises(EnvironmentFault, match="another run"):
        world.run(folder=tmp_path)


class _Watched:
    """A run in another process, to be hurt while it tunes; everything before was done by the runs above."""

    def __init__(self, world: World, folder: Path) -> None:
        command = [sys.executable, "-m", "ctmr.cli", "run", "--dataset", str(world.data), "--out", str(folder)]
        for setting in [*SETTINGS, *LONGER, IMPOSSIBLE]:
            command += ["--set", setting]
        self.home = world.home
        self.process = subprocess.Popen(
            [*command, "--recipe", "default"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What runs in the background of a shell ignores Ctrl-C, and hands that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def running_trial(self) -> dict[str, Any]:
        """Wait for a trial that runs and has reported; return who runs it."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)

        def look() -> dict[str, Any] | None:
            for path in (self.home.work / "tune").glob("*/study.db"):
                with contextlib.suppress(Exception):
                    # Optuna makes the tables of a database that it opens, in the way of who makes them: the version
                    # of the tables is written last.
                    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as made:
                        made.execute("SELECT version_num FROM alembic_version").fetchone()[0]
                    storage = f"sqlite:///{path}"
                    (summary,) = optuna.get_all_study_summaries(storage)
                    for trial in optuna.load_study(study_name=summary.study_name, storage=storage).get_trials():
                        worker = trial.user_attrs.get("worker", {})
                        if trial.state.name == "RUNNING" and trial.intermediate_values and _alive(worker["pid"]):
                            return dict(worker)
            return None

        return _wait(look, self.process)

    def end(self) -> tuple[int, str]:
        out, error = self.process.communicate(timeout=500)
        return self.process.returncode, out + error


def _wait(look: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _gone(pid: int) -> bool:
    return any(not _alive(pid) or time.sleep(0.1) for _ in range(100))


def test_a_run_that_is_killed_or_interrupted_goes_on_and_a_killed_worker_loses_no_trial(
    world: World, passed: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(world.folder, folder)

    killed = _Watched(world, folder)
    worker = killed.running_trial()["pid"]
    killed.process.kill()
    killed.end()
    assert _gone(worker), "what a killed run had started ends by itself"

    interrupted = _Watched(world, folder)
    worker = interrupted.running_trial()["pid"]
    interrupted.process.send_signal(signal.SIGINT)
    code, said = interrupted.end()
    assert code == 130 and "goes on from there" in said and "Traceback" not in said
    assert _gone(worker)

    hurt = _Watched(world, folder)
    os.kill(hurt.running_trial()["pid"], signal.SIGKILL)
    code, said = hurt.end()
    sentences = [line for line in said.splitlines() if line.startswith("ctmr:")]
    assert code == 1 and len(sentences) == 1 and "not at least 2" in sentences[0], said
    assert "Traceback" not in said
    assert "preprocess reused" in " ".join(said.split())

    calm = run_stage(
        stages.load("tune"),
        inputs={"preprocessed": folder / "preprocess"},
        recipe=load("default", [*SETTINGS, *LONGER]),
        out=tmp_path / "calm",
        home=Home(tmp_path / "calm_home"),
    )
    assert calm.summary["trials"] == 4
    assert content_digest(folder / "tune") == calm.digest
