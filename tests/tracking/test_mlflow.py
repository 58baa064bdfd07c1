"""MLflow runs: which run a stage writes into when somebody opened one before, and how it is found again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ctmr.errors import EnvironmentFault, GateFailed
from ctmr.system.home import Home
from ctmr.tracking.mlflow import EXPERIMENT, GIVEN, PARENT_RUN, Tracking, held_out_metrics, whole_run

pytestmark = pytest.mark.slow

EVALUATED = {
    "metrics": {"cycle_slice": {"ssim": 0.5, "psnr": None}, "structure": {"nmi": 0.25}},
    "verdict": "pass",
    "reason": "",
}
REGISTERED = {"name": "tiny-pictures", "version": "3"}


@pytest.fixture
def given(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that somebody opened, in an experiment of theirs, as `mlflow run` does."""
    experiment = tracking.client.create_experiment("theirs")
    run_id = str(tracking.client.create_run(experiment).info.run_id)
    monkeypatch.setenv(GIVEN, run_id)
    return run_id


def tags(tracking: Tracking, run_id: str) -> dict[str, str]:
    found: dict[str, str] = tracking.client.get_run(run_id).data.tags
    return found


def test_without_a_given_run_each_stage_opens_its_own_in_our_experiment(tracking: Tracking) -> None:
    first, second = tracking.start("a", tags={"stage": "tune"}), tracking.start("b", tags={})
    assert first != second
    experiment = tracking.client.get_experiment_by_name(EXPERIMENT)
    assert tracking.client.get_run(first).info.experiment_id == experiment.experiment_id
    assert "mlflow.parentRunId" not in tags(tracking, first)


def test_one_stage_alone_writes_into_the_given_run(home: Home, tracking: Tracking, given: str) -> None:
    assert Tracking(home).start("train", tags={"stage": "train"}) == given
    assert tags(tracking, given)["ctmr.stage"] == "train"


def test_a_trial_of_the_given_run_is_its_child_in_the_same_experiment(home: Home, given: str) -> None:
    here = Tracking(home)
    child = here.start("trial 0", tags={}, parent=here.start("tune", tags={}))
    assert tags(here, child)["mlflow.parentRunId"] == given
    ids = {here.client.get_run(r).info.experiment_id for r in (child, given)}
    assert ids == {here.experiment_id}


def test_the_stages_of_a_whole_run_open_children_of_the_given_run(home: Home, given: str) -> None:
    with whole_run(home, dict):
        # As in a task's own process: all it has is the environment.
        assert os.environ[PARENT_RUN] == given and GIVEN not in os.environ
        here = Tracking(home)
        opened = [here.start(name, tags={}) for name in ("tune", "train")]
    assert len({given, *opened}) == 3
    for run_id in opened:
        assert tags(here, run_id)["mlflow.parentRunId"] == given
        assert here.client.get_run(run_id).info.experiment_id == here.client.get_run(given).info.experiment_id
    assert os.environ[GIVEN] == given and PARENT_RUN not in os.environ


def test_a_task_that_is_given_a_run_of_its_own_still_obeys_the_whole_runs_parent(
    home: Home, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Tracking(home)
    monkeypatch.setenv(PARENT_RUN, given)
    assert tags(here, here.start("train", tags={}))["mlflow.parentRunId"] == given


def test_the_given_run_ends_with_metrics_verdict_and_version(home: Home, tracking: Tracking, given: str) -> None:
    with whole_run(home, lambda: {"evaluate": EVALUATED, "register": REGISTERED}):
        pass
    data = tracking.client.get_run(given).data
    assert data.metrics == {"test.cycle_slice.ssim": 0.5, "test.structure.nmi": 0.25}
    assert data.tags["ctmr.verdict"] == "pass"
    assert (data.tags["ctmr.model_name"], data.tags["ctmr.model_version"]) == ("tiny-pictures", "3")


def test_a_failed_gate_stands_in_the_given_run_too(home: Home, tracking: Tracking, given: str) -> None:
    failed = EVALUATED | {"verdict": "fail", "reason": "ssim 0.5 is not at least 2"}
    with pytest.raises(GateFailed), whole_run(home, lambda: {"evaluate": failed}):
        raise GateFailed("the gate failed")
    found = tags(tracking, given)
    assert found["ctmr.verdict"] == "fail" and "not at least 2" in found["ctmr.verdict_reason"]
    assert "ctmr.model_version" not in found


def test_a_store_that_is_gone_does_not_hide_what_ended_the_run(
    home: Home, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Tracking, run_id: str, summaries: object) -> None:
        raise EnvironmentFault("MLflow does not answer")

    monkeypatch.setattr(Tracking, "outcome", gone)
    with pytest.raises(GateFailed), whole_run(home, dict):
        raise GateFailed("the gate failed")
    with pytest.raises(EnvironmentFault), whole_run(home, dict):
        pass


def test_a_store_that_cannot_be_made_is_one_sentence(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.root.mkdir()
    (home.root / "file").write_text("where a folder is needed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home.root}/file/mlflow.db")
    with pytest.raises(EnvironmentFault, match=r"mlflow.db cannot be written: (Not a directory|File exists)"):
        Tracking(home)


def test_a_database_without_its_driver_is_one_sentence(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+pymysql://ann:secret@127.0.0.1:1/db")
    with pytest.raises(EnvironmentFault, match=r"ann:\*\*\*@.* needs the Python package pymysql") as caught:
        Tracking(home)
    assert "secret" not in str(caught.value)


def test_without_a_given_run_a_whole_run_asks_for_nothing(home: Home) -> None:
    def unasked() -> dict[str, dict[str, object]]:
        raise AssertionError

    with whole_run(home, unasked):
        assert PARENT_RUN not in os.environ
    assert not (home.root / "mlflow.db").exists()


def test_a_given_run_that_is_not_in_this_store_is_named(
    home: Home, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GIVEN, "0123456789abcdef0123456789abcdef")
    with pytest.raises(EnvironmentFault, match="0123456789abcdef"):
        Tracking(home)


def test_a_models_run_is_found_by_its_digest_in_any_experiment(home: Home, given: str) -> None:
    Tracking(home).start("train", tags={"model_digest": "f00d"})
    del os.environ[GIVEN]
    assert Tracking(home).run_of("f00d") == given
    assert Tracking(home).run_of("beef") is None


def test_a_mean_that_is_infinite_or_missing_is_no_metric() -> None:
    assert held_out_metrics({"p": {"psnr": None, "mae": 2.0}}) == {"test.p.mae": 2.0}


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_moved_or_copied_home_keeps_its_artifacts_to_itself(tmp_path: Path, empty_store: Path, how: str) -> None:
    old, new = Home(tmp_path / "old #1"), Home(tmp_path / "new 100%")
    old.root.mkdir()
    # The database names the folder that it was made in; there it is a copy already.
    shutil.copyfile(empty_store, old.root / "mlflow.db")
    (tmp_path / "note").write_text("of the old home")
    before = Tracking(old)
    run = before.start("a", tags={})
    before.artifact(run, tmp_path / "note", "sub")
    assert list(old.artifacts.rglob("note"))
    if how == "moved":
        old.root.rename(new.root)
    else:
        shutil.copytree(old.root, new.root)
    after = Tracking(new)
    assert (after.download(run, "sub", tmp_path) / "note").read_text() == "of the old home"
    after.artifact(after.start("b", tags={}), tmp_path / "note")
    # MLflow keeps the place of a run for as long as the process lives, so what it is told next time is asked.
    assert after.client.get_run(run).info.artifact_uri.startswith(new.artifacts.as_uri() + "/")
    assert len(list(new.artifacts.rglob("note"))) == 2
    assert len(list(old.artifacts.rglob("note"))) == (0 if how == "moved" else 1)


def test_a_home_of_two_names_keeps_the_addresses_of_the_first(home: Home, tracking: Tracking, tmp_path: Path) -> None:
    home.artifacts.mkdir(exist_ok=True)
    before = tracking.client.get_experiment(tracking.experiment_id).artifact_location
    (tmp_path / "link").symlink_to(home.root)
    again = Tracking(Home(tmp_path / "link"))
    assert again.client.get_experiment(again.experiment_id).artifact_location == before
