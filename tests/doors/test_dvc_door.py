"""`dvc repro` and `dvc exp run`: what reruns, what does not, and what there is to compare."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctmr.recipe.loading import load, render
from tests.doors.pictures import SETTINGS, WORKSPACE_STAGES, digests
from tests.doors.project import Project, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def ran(said: str) -> list[str]:
    """The stages that DVC ran."""
    return re.findall(r"Running stage '(\w+)'", said)


def restored(said: str) -> list[str]:
    """The stages that DVC took from its cache instead."""
    return re.findall(r"Stage '(\w+)' is cached", said)


def change(project: Project, key: str, value: Any) -> None:
    """Edit a recipe key as a person does, in params.yaml."""
    tree = yaml.safe_load((project.folder / "params.yaml").read_text())
    node: Any = tree
    *sections, last = key.split(".")
    for section in sections:
        node = node[section]
    node[last] = value
    (project.folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def verdict(project: Project) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((project.folder / "outputs/evaluate/verdict.json").read_text())
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Project:
    """The project after one `dvc repro` on the pictures, committed with its dvc.lock."""
    project = copy_project(tmp_path_factory.mktemp("dvc") / "project")
    (project.folder / "params.yaml").write_text(render(load("default", SETTINGS)))
    dataset = {"dataset": str(pictures), "path": "", "revision": ""}
    (project.folder / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    assert ran(project.run("dvc", "repro")) == WORKSPACE_STAGES
    project.commit()
    return project


def test_repro_leaves_what_the_stages_leave_in_one_process(lab: Project, inline: dict[str, str]) -> None:
    assert digests(lab.folder / "outputs") == inline


def test_only_the_lock_file_is_new_to_git(lab: Project) -> None:
    changed = lab.git("show", "--name-status", "--format=", "HEAD").split("\n")
    assert [line for line in changed if line.startswith("A")] == ["A\tdvc.lock"]


def test_a_second_repro_does_nothing(lab: Project) -> None:
    said = lab.run("dvc", "repro")
    assert ran(said) == restored(said) == [] and "up to date" in said
    assert lab.run("dvc", "status").strip().endswith("up to date.")


def test_provenance_never_counts(lab: Project) -> None:
    (lab.folder / "outputs/train/provenance/run.json").write_text('{"run_id": "another"}')
    assert lab.run("dvc", "status").strip().endswith("up to date.")
    assert "provenance" not in (lab.folder / "dvc.lock").read_text()


def test_measurements_and_plots_have_content(lab: Project, tmp_path: Path) -> None:
    shown = json.loads(lab.run("dvc", "metrics", "show", "--json"))
    metrics = shown[""]["data"]["outputs/evaluate/metrics.json"]["data"]
    assert metrics["passed"] is True
    for name, summary in verdict(lab)["summaries"].items():
        assert metrics[name] == {m: v["mean"] for m, v in summary["metrics"].items()}
    lab.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text()
    losses = (lab.folder / "outputs/train/curves.csv").read_text().splitlines()[1].split(",")[1]
    score = json.loads((lab.folder / "outputs/tune/trials.json").read_text())["trials"][0]["score"]
    case = (lab.folder / "outputs/evaluate/cases.csv").read_text().splitlines()[1].split(",")
    for value in (losses, f"{score}", case[1], case[-1]):
        assert value in page
    assert page.count("vegaEmbed(") == 3


def test_a_limit_that_fails_reruns_evaluate_alone_and_is_data(lab: Project) -> None:
    change(lab, "gate.cycle_slice.ssim.min", 2.0)
    said = lab.run("dvc", "repro")
    assert ran(said) == ["evaluate"]
    assert verdict(lab)["passed"] is False and "not at least 2" in verdict(lab)["reasons"][0]
    parameters = json.loads(lab.run("dvc", "params", "diff", "--json"))["params.yaml"]
    assert {k: (v["old"], v["new"]) for k, v in parameters.items()} == {"gate.cycle_slice.ssim.min": (-1.0, 2.0)}
    metrics = json.loads(lab.run("dvc", "metrics", "diff", "--json"))
    assert metrics["outputs/evaluate/metrics.json"]["passed"]["new"] is False
    lab.git("checkout", "--quiet", "--", "params.yaml")
    assert restored(lab.run("dvc", "repro")) == ["evaluate"]
    assert verdict(lab)["passed"] is True


def test_an_experiment_with_another_learning_rate_trains_without_fetching_again(lab: Project) -> None:
    said = lab.run("dvc", "exp", "run", "-S", "train.lr_generator=0.0009", "-S", "train.steps=8")
    assert ran(said) == ["tune", "train", "evaluate"] and restored(said) == []
    parameters = json.loads(lab.run("dvc", "params", "diff", "--json"))["params.yaml"]
    assert set(parameters) == {"train.lr_generator", "train.steps"}
    metrics = json.loads(lab.run("dvc", "metrics", "diff", "--json"))["outputs/evaluate/metrics.json"]
    assert metrics["cycle_slice.ssim"]["diff"] != 0
    assert "0.0009" in lab.run("dvc", "exp", "show", "--csv")


def test_content_that_was_restored_is_logged_to_the_run_that_trained_it(lab: Project) -> None:
    from ctmr.pipeline.stages.evaluate import model_run
    from ctmr.system.home import Home
    from ctmr.tracking.mlflow import Tracking

    home = Home(lab.folder / ".ctmr")
    model = lab.folder / "outputs" / "train"
    second = model_run(model, home, "tiny")
    lab.git("checkout", "--quiet", "--", "params.yaml", "dvc.lock")
    lab.run("dvc", "checkout")
    # What lies beside the restored model still tells of the other one.
    assert json.loads((model / "provenance" / "run.json").read_text())["run_id"] == second
    first = model_run(model, home, "tiny")
    data = Tracking(home).client.get_run(first).data
    assert first != second and data.tags["ctmr.stage"] == "train" and data.params["train.steps"] == "6"
