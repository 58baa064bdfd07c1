"""A run is RUNNING in MLflow only while a process works on it; after a kill the next command closes it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ctmr.errors import EnvironmentFault
from ctmr.tracking.attended import attended
from ctmr.tracking.mlflow import GIVEN, Tracking

pytestmark = pytest.mark.slow

WORK = """
import sys, time
from pathlib import Path
from ctmr.system.home import Home
from ctmr.tracking.attended import attended
from ctmr.tracking.mlflow import Tracking
tracking = Tracking(Home(Path(sys.argv[1])))
with attended(tracking, sys.argv[2]):
    print("working", flush=True)
    time.sleep(600)
"""


def status(tracking: Tracking, run_id: str) -> str:
    return str(tracking.client.get_run(run_id).info.status)


def left(tracking: Tracking) -> list[str]:
    """Ids of the runs that somebody attends, or was killed over."""
    return sorted(p.name for p in (tracking.home.root / "attended").iterdir())


def test_work_that_ends_well_finishes_the_run_and_can_be_taken_up_again(tracking: Tracking) -> None:
    run_id = tracking.start("a", tags={})
    for _ in range(2):
        with attended(tracking, run_id):
            assert status(tracking, run_id) == "RUNNING" and left(tracking) == [run_id]
        assert status(tracking, run_id) == "FINISHED" and left(tracking) == []


@pytest.mark.parametrize(
    ("error", "closed"),
    [(EnvironmentFault("full"), "FAILED"), (ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_a_fault_closes_the_run_and_is_what_a_person_sees(
    tracking: Tracking, error: BaseException, closed: str
) -> None:
    run_id = tracking.start("a", tags={})
    with pytest.raises(type(error)) as raised, attended(tracking, run_id):
        raise error
    assert raised.value is error and status(tracking, run_id) == closed and left(tracking) == []


def test_a_status_that_was_set_inside_stays(tracking: Tracking) -> None:
    run_id = tracking.start("a", tags={})
    with attended(tracking, run_id):
        tracking.end(run_id, "FAILED")
    assert status(tracking, run_id) == "FAILED"


def test_the_next_command_closes_what_a_killed_process_worked_on_and_nothing_else(tracking: Tracking) -> None:
    run_id = tracking.start("a", tags={})
    command = [sys.executable, "-W", "ignore", "-c", WORK, str(tracking.home.root), run_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "working\n"
        Tracking(tracking.home)
        assert status(tracking, run_id) == "RUNNING"
        with attended(tracking, run_id):
            pass
        assert status(tracking, run_id) == "RUNNING", "who works on it closes it"
        process.kill()
    assert status(tracking, run_id) == "RUNNING"
    Tracking(tracking.home)
    assert status(tracking, run_id) == "KILLED" and left(tracking) == []


def test_a_run_that_could_not_be_closed_is_closed_by_the_next_command(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracking.start("a", tags={})
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="first"), attended(tracking, run_id):
        patch.setattr(tracking, "end", lambda *_: (_ for _ in ()).throw(EnvironmentFault("MLflow is gone")))
        raise ValueError("first")
    assert status(tracking, run_id) == "RUNNING"
    Tracking(tracking.home)
    assert status(tracking, run_id) == "KILLED"


def test_a_run_that_somebody_else_opened_is_theirs_to_close(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracking.start("a", tags={})
    monkeypatch.setenv(GIVEN, run_id)
    with attended(tracking, run_id):
        pass
    assert status(tracking, run_id) == "RUNNING"
