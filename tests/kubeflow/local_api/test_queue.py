"""Runs are executed one after another, cancelled, stopped, and settled after a kill."""

from __future__ import annotations

import itertools
import json
import subprocess
from datetime import datetime

import pytest

from ctmr.kubeflow.local_api.records import RecordKind, Records, RunState
from ctmr.system.processes import Process, start_time

WELL = "echo well > ended"


def moment(run, state: str) -> datetime:
    return next(datetime.fromisoformat(h["update_time"]) for h in run["state_history"] if h["state"] == state)


def states(run) -> list[str]:
    return [h["state"] for h in run["state_history"]]


def test_a_run_that_succeeds_has_its_history(local_runner):
    run = local_runner.wait(local_runner.submit(WELL)["run_id"], "SUCCEEDED")
    assert states(run) == ["PENDING", "RUNNING", "SUCCEEDED"]
    times = [run[k] for k in ("created_at", "scheduled_at", "finished_at")]
    assert times == sorted(times)
    assert "error" not in run


def test_a_run_that_fails_says_why_with_the_code_of_its_exit_code(local_runner):
    run = local_runner.wait(local_runner.submit("echo the image is a spoon > ended; exit 2")["run_id"], "FAILED")
    assert run["error"] == {"code": 3, "message": "the image is a spoon"}


def test_a_run_whose_process_is_killed_has_failed(local_runner):
    run = local_runner.wait(local_runner.submit("kill -9 $$")["run_id"], "FAILED")
    assert run["error"] == {"code": 14, "message": "it was killed"}


def test_what_an_ended_run_left_running_is_ended(local_runner, tmp_path):
    run = local_runner.submit(f"sleep 60 & echo $! > {tmp_path}/pid; {WELL}")["run_id"]
    local_runner.wait(run, "SUCCEEDED")
    assert start_time(int((tmp_path / "pid").read_text())) is None


def test_submissions_run_one_at_a_time_in_their_order(local_runner):
    keys = [local_runner.submit(f"sleep 0.2; {WELL}")["run_id"] for _ in range(3)]
    runs = [local_runner.wait(key, "SUCCEEDED") for key in keys]
    for before, after in itertools.pairwise(runs):
        assert moment(before, "SUCCEEDED") <= moment(after, "RUNNING")


def test_several_may_run_side_by_side(tmp_path, running):
    # Each waits for the other one's file: they end only when both run.
    script = "touch {a}; while [ ! -e {b} ]; do sleep 0.02; done; " + WELL
    a, b = tmp_path / "a", tmp_path / "b"
    with running(tmp_path / "pipelines", at_once=2) as runner:
        keys = [runner.submit(script.format(a=x, b=y))["run_id"] for x, y in ((a, b), (b, a))]
        for key in keys:
            runner.wait(key, "SUCCEEDED")


def test_a_pending_run_that_is_cancelled_never_starts(local_runner, tmp_path):
    first = local_runner.submit("sleep 60")["run_id"]
    second = local_runner.submit(f"touch {tmp_path}/started; {WELL}")["run_id"]
    assert local_runner.call("POST", f"runs/{second}:terminate").status == 200
    assert states(local_runner.run(second)) == ["PENDING", "CANCELED"]
    local_runner.call("POST", f"runs/{first}:terminate")
    local_runner.wait(first, "CANCELED")
    third = local_runner.submit(WELL)["run_id"]
    local_runner.wait(third, "SUCCEEDED")
    assert not (tmp_path / "started").exists()


def test_a_running_run_that_is_cancelled_ends_with_all_below_it(local_runner, tmp_path):
    run = local_runner.submit(f"sleep 60 & echo $! > {tmp_path}/pid; wait")["run_id"]
    local_runner.wait(run, "RUNNING")
    below = Process.of(int(local_runner.wait_for(tmp_path / "pid")))
    assert local_runner.call("POST", f"runs/{run}:terminate").status == 200
    ended = local_runner.wait(run, "CANCELED")
    assert states(ended) == ["PENDING", "RUNNING", "CANCELING", "CANCELED"]
    assert ended["finished_at"] == ended["state_history"][-1]["update_time"]
    assert not below.lives


def test_a_run_that_ignores_the_polite_signal_is_canceling_until_it_is_killed(local_runner):
    run = local_runner.submit("trap '' TERM; echo > ready; while :; do sleep 0.05; done")["run_id"]
    local_runner.wait(run, "RUNNING")
    local_runner.wait_for(local_runner.folder / "runs" / run / "ready")
    local_runner.call("POST", f"runs/{run}:terminate")
    assert local_runner.run(run)["state"] == "CANCELING"
    assert local_runner.call("POST", f"runs/{run}:terminate").status == 200
    local_runner.wait(run, "CANCELED")


def test_a_run_that_succeeds_in_spite_of_the_signal_has_succeeded(local_runner):
    run = local_runner.submit(f"trap '{WELL}; exit 0' TERM; echo > ready; while :; do sleep 0.02; done")["run_id"]
    local_runner.wait_for(local_runner.folder / "runs" / run / "ready")
    local_runner.call("POST", f"runs/{run}:terminate")
    assert states(local_runner.wait(run, "SUCCEEDED"))[-2:] == ["CANCELING", "SUCCEEDED"]


def test_an_ended_run_cannot_be_cancelled(local_runner):
    run = local_runner.wait(local_runner.submit(WELL)["run_id"], "SUCCEEDED")["run_id"]
    answer = local_runner.call("POST", f"runs/{run}:terminate")
    assert (answer.status, answer.tree["code"]) == (400, 9)
    assert "SUCCEEDED already" in answer.message


def test_a_run_that_cannot_be_started_fails_and_the_next_one_runs(local_runner, monkeypatch):
    def no_process(folder):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(local_runner.queue, "_start_child", no_process)
        failed = local_runner.wait(local_runner.submit(WELL)["run_id"], "FAILED")
    assert failed["error"]["code"] == 14
    assert "temporarily unavailable" in failed["error"]["message"]
    local_runner.wait(local_runner.submit(WELL)["run_id"], "SUCCEEDED")


def test_stopping_the_server_fails_the_running_run_and_keeps_the_pending_one(tmp_path, running):
    folder = tmp_path / "pipelines"
    with running(folder) as runner:
        first = runner.submit(f"echo $$ > {tmp_path}/pid; exec sleep 60")["run_id"]
        second = runner.submit(WELL)["run_id"]
        child = int(runner.wait_for(tmp_path / "pid"))
    assert start_time(child) is None
    with running(folder) as runner:
        failed = runner.run(first)
        assert failed["state"] == "FAILED"
        assert failed["error"]["code"] == 10
        assert failed["error"]["message"] == (
            "the local runner was stopped while this run was running; submit it again: finished stages are reused"
        )
        assert "finished_at" in failed
        runner.wait(second, "SUCCEEDED")


def killed(folder, tmp_path, state: RunState) -> tuple[str, subprocess.Popen[bytes]]:
    """Leave the records as a server leaves them that is killed while a run is in a state."""
    (folder / "runs" / "r").mkdir(parents=True)
    (folder / "runs" / ".r2.partial").mkdir()
    orphan = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    records = Records(folder / "records.db")
    document = {"run_id": "r", "display_name": "r", "state": state, "created_at": "", "state_history": []}
    records.add(RecordKind.RUN, "r", document, specification=json.dumps({}))
    records.set_process("r", Process.of(orphan.pid))
    records.close()
    return "r", orphan


@pytest.mark.parametrize(
    ("left", "after", "said"),
    [(RunState.RUNNING, "FAILED", "the local runner was stopped"), (RunState.CANCELING, "CANCELED", "")],
)
def test_a_killed_servers_run_is_settled_and_its_orphans_end(tmp_path, running, left, after, said):
    folder = tmp_path / "pipelines"
    key, orphan = killed(folder, tmp_path, left)
    with running(folder) as runner:
        run = runner.run(key)
        assert run["state"] == after
        assert run.get("error", {}).get("message", "").startswith(said)
        assert orphan.wait(5) < 0
        assert [p.name for p in (folder / "runs").iterdir()] == ["r"]


def test_a_state_that_cannot_be_written_is_written_later(local_runner, monkeypatch):
    import sqlite3

    from ctmr.kubeflow.local_api import queue

    monkeypatch.setattr(queue, "RETRY_S", 0.05)
    move, refused = local_runner.records.move, []

    def full_disk(run, before, after, **more):
        if after is RunState.SUCCEEDED and len(refused) < 3:
            refused.append(run)
            raise sqlite3.OperationalError("database or disk is full")
        return move(run, before, after, **more)

    monkeypatch.setattr(local_runner.records, "move", full_disk)
    run = local_runner.submit(WELL)["run_id"]
    local_runner.wait(run, "SUCCEEDED")
    assert refused == [run] * 3
