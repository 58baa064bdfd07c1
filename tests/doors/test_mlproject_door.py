"""`mlflow run`: every stage in its given run, and a whole pipeline as the children of one run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ctmr.pipeline import stages
from ctmr.serving.server import EmbeddedTriton
from ctmr.system.home import Home
from ctmr.tracking.mlflow import Tracking
from tests.doors.pictures import MODEL, SETTINGS, digests
from tests.doors.project import Project, copy_project

STAGE_NAMES = stages.names()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROGRAM = """
import json, sys, mlflow
for point, parameters in json.loads(sys.argv[1]):
    done = mlflow.projects.run(".", point, parameters=parameters, env_manager="local", experiment_name="ctmr")
    print("RUN", point, done.run_id, flush=True)
"""
"""What `mlflow run` does once it has read its options, without four seconds of imports for each stage."""


@dataclass
class Lab:
    """The project, and the MLflow run of each entry point."""

    project: Project
    parameters: dict[str, str]
    runs: dict[str, str]

    @property
    def tracking(self) -> Tracking:
        return Tracking(Home(self.project.folder / ".ctmr"))

    @property
    def outputs(self) -> Path:
        return self.project.folder / self.parameters["out"]

    def run(self, *points: tuple[str, dict[str, str]]) -> dict[str, str]:
        """Run entry points of the project; return entry point → MLflow run."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(points)],
            cwd=self.project.folder,
            env=self.project.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return {line.split()[1]: line.split()[2] for line in done.stdout.splitlines() if line.startswith("RUN ")}

    def data(self, run_id: str) -> Any:
        return self.tracking.client.get_run(run_id).data

    def children(self, run_id: str) -> dict[str, Any]:
        """Name → run of the children of a run, in its own experiment as MLflow's pages look for them."""
        experiment = self.tracking.client.get_run(run_id).info.experiment_id
        found = self.tracking.client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'")
        return {r.info.run_name: r for r in found}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, pictures: Path, needs_triton: None) -> Iterator[Lab]:
    """The project after `mlflow run . -e STAGE` for all stages in their order."""
    project = copy_project(tmp_path_factory.mktemp("mlproject") / "project")
    parameters = {
        "dataset": str(pictures),
        "recipe": "default",
        "overrides": "; ".join(SETTINGS),
        "out": "out puts",
    }
    made = Lab(project, parameters, {})
    try:
        made.runs = made.run(*((name, parameters) for name in STAGE_NAMES))
        yield made
    finally:
        EmbeddedTriton(Home(project.folder / ".ctmr").triton).stop()


@pytest.fixture(scope="module")
def whole(lab: Lab) -> str:
    """The run of `mlflow run .` with another seed in the same outputs: what the seed does not touch is reused."""
    parameters = lab.parameters | {"overrides": lab.parameters["overrides"] + ";train.seed=1"}
    return lab.run(("main", parameters))["main"]


@pytest.fixture(autouse=True)
def no_given_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "CTMR_PARENT_RUN"):
        monkeypatch.delenv(name, raising=False)


def test_the_stages_one_by_one_leave_what_they_leave_in_one_process(lab: Lab, inline: dict[str, str]) -> None:
    assert digests(lab.outputs) == inline


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_a_stage_tells_its_given_run_what_it_left(lab: Lab, name: str) -> None:
    run = lab.tracking.client.get_run(lab.runs[name])
    assert run.info.status == "FINISHED"
    assert run.data.tags["ctmr.stage"] == name
    assert run.data.tags["ctmr.digest"] == digests(lab.outputs, [name])[name]


def test_a_stage_alone_uses_the_given_run_and_opens_no_other(lab: Lab) -> None:
    assert "train.generator" in lab.data(lab.runs["train"]).metrics
    assert set(lab.children(lab.runs["tune"])) == {"trial 0", "trial 1"}
    measured = {k: v for k, v in lab.data(lab.runs["evaluate"]).metrics.items() if k.startswith("test.")}
    assert measured and measured.items() <= lab.data(lab.runs["train"]).metrics.items()
    assert lab.data(lab.runs["register"]).tags["ctmr.model_version"] == "1"


def test_a_whole_pipeline_opens_children_of_its_given_run(lab: Lab, whole: str) -> None:
    children = lab.children(whole)
    assert {r.data.tags["ctmr.stage"] for r in children.values()} == {"tune", "train"}
    assert len(children) == 2
    tune = next(r for r in children.values() if r.data.tags["ctmr.stage"] == "tune")
    assert set(lab.children(tune.info.run_id)) == {"trial 0", "trial 1"}
    assert not any(k.startswith("train.") for k in lab.data(whole).metrics)


def test_a_whole_pipelines_run_can_be_compared_by_what_it_came_to(lab: Lab, whole: str) -> None:
    parent = lab.data(whole)
    train = next(r for r in lab.children(whole).values() if r.data.tags["ctmr.stage"] == "train")
    tested = {k: v for k, v in train.data.metrics.items() if k.startswith("test.")}
    assert tested and tested == parent.metrics
    assert parent.tags["ctmr.verdict"] in ("pass", "fail")
    assert (parent.tags["ctmr.model_name"], parent.tags["ctmr.model_version"]) == (MODEL, "2")


def test_nothing_that_mlflow_leaves_would_be_committed(lab: Lab) -> None:
    assert (lab.project.folder / ".ctmr" / "mlflow.db").is_file()
    assert lab.project.git("status", "--porcelain").splitlines() == ['?? "out puts/"']


def test_a_mistake_fails_the_run_with_one_sentence(lab: Lab) -> None:
    """By the command itself, with no environment active and no address of a store."""
    environment = {k: v for k, v in lab.project.environment.items() if not k.startswith("MLFLOW_TRACK")}
    project = Project(lab.project.folder, environment)
    words = ["mlflow", "run", ".", "--env-manager", "local", "-e", "train", "-P", "overrides=train.stepz=5; $(date)"]
    said = project.run(*words, code=1)
    assert [line for line in said.splitlines() if line.startswith("ctmr: ")] == [
        "ctmr: --set: there is no key 'train.stepz'; `ctmr recipe resolve default` prints all keys"
    ]
    assert (project.folder / "mlflow.db").is_file()
    assert "mlflow.db" not in project.git("status", "--porcelain")
