"""Bodies of the Kubeflow tasks: where a run's outputs are kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ctmr.kubeflow import tasks
from ctmr.pipeline import inline
from ctmr.system.environment import WORKSPACE


@pytest.fixture
def workspace(home, monkeypatch, tmp_path):
    """Start a run of the recipe ctmr on the dataset heads, and return where its outputs are kept."""
    dataset = SimpleNamespace(name="heads", md5="0" * 32)
    source = SimpleNamespace(dataset=dataset, to_option=lambda: "{}")
    monkeypatch.setattr(inline, "resolve_dataset", lambda *words: source)
    monkeypatch.setattr(inline, "resolve_champion", lambda *words: None)
    monkeypatch.chdir(tmp_path)

    def start() -> str:
        return tasks.start(
            dataset_repo="r",
            dataset_rev="",
            dataset_path="",
            recipe="ctmr",
            overrides=[],
            limits={},
            triton_url="",
            tracking_uri="",
        ).workspace

    return start


@pytest.mark.parametrize(
    ("value", "folder"),
    [("named", "named"), ("runs/{run}", "runs/ctmr-heads"), ("runs/{run}/{else}", "runs/ctmr-heads/{else}")],
)
def test_the_outputs_are_kept_in_the_folder_that_the_variable_names(workspace, monkeypatch, tmp_path, value, folder):
    monkeypatch.setenv(WORKSPACE, value)
    assert workspace() == str(tmp_path / folder)


@pytest.mark.parametrize("value", ["", None])
def test_without_it_each_task_has_a_disk_of_its_own(workspace, monkeypatch, value):
    if value is None:
        monkeypatch.delenv(WORKSPACE, raising=False)
    else:
        monkeypatch.setenv(WORKSPACE, value)
    assert workspace() == ""
