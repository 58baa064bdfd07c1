"""Records survive, change whole or not at all, and are their owner's alone."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat

import pytest

from ctmr.errors import EnvironmentFault
from ctmr.kubeflow.local_api.faults import ApiError, FaultCode
from ctmr.kubeflow.local_api.records import RecordKind, Records, RunState, now
from ctmr.system.processes import Process


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.db"


@pytest.fixture
def records(path):
    opened = Records(path)
    yield opened
    opened.close()


def add_run(records: Records, key: str, state: str = RunState.PENDING, experiment: str = "e") -> None:
    document = {
        "run_id": key,
        "display_name": "r",
        "experiment_id": experiment,
        "state": state,
        "created_at": now(),
        "state_history": [],
    }
    records.add(RecordKind.RUN, key, document, parent=experiment, specification='{"a": 1}')


def test_records_survive_and_keep_their_order(path):
    first = Records(path)
    for key in ("c", "a", "b"):
        add_run(first, key)
    first.close()
    again = Records(path)
    assert [d["run_id"] for _, d in again.all(RecordKind.RUN)] == ["c", "a", "b"]
    assert again.specification(RecordKind.RUN, "a") == {"a": 1}
    again.close()


def test_the_file_and_its_journal_are_readable_by_the_owner_only(path):
    before = os.umask(0)
    try:
        records = Records(path)
        add_run(records, "a")
    finally:
        os.umask(before)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert {f.name for f in path.parent.iterdir()} >= {"records.db", "records.db-wal"}
    records.close()


def test_a_name_is_given_once_but_runs_share_theirs(records):
    records.add(RecordKind.EXPERIMENT, "1", {"display_name": "x"})
    records.add(RecordKind.PIPELINE, "2", {"display_name": "x"})
    records.add(RecordKind.VERSION, "3", {"display_name": "x"}, parent="2")
    records.add(RecordKind.VERSION, "4", {"display_name": "x"}, parent="other")
    for kind, parent in ((RecordKind.EXPERIMENT, ""), (RecordKind.PIPELINE, ""), (RecordKind.VERSION, "2")):
        with pytest.raises(ApiError) as refused:
            records.add(kind, "5", {"display_name": "x"}, parent=parent)
        assert refused.value.code is FaultCode.ALREADY_EXISTS
    add_run(records, "6")
    add_run(records, "7")


def test_a_run_moves_only_from_the_state_it_is_in(records):
    add_run(records, "a")
    assert not records.move("a", RunState.RUNNING, RunState.SUCCEEDED)
    assert records.move("a", RunState.PENDING, RunState.RUNNING)
    assert not records.move("a", RunState.PENDING, RunState.CANCELED)
    assert records.move("a", RunState.RUNNING, RunState.FAILED, error={"code": 3, "message": "m"})
    found = records.get(RecordKind.RUN, "a")
    assert [h["state"] for h in found["state_history"]] == ["RUNNING", "FAILED"]
    assert found["finished_at"] == found["state_history"][-1]["update_time"]
    assert found["error"] == {"code": 3, "message": "m"}


def test_the_oldest_pending_run_is_next(records):
    for key in ("a", "b", "c"):
        add_run(records, key)
    records.move("a", RunState.PENDING, RunState.RUNNING)
    assert records.first_pending() == "b"
    records.move("b", RunState.PENDING, RunState.CANCELED)
    assert records.first_pending() == "c"
    records.remove(RecordKind.RUN, "c")
    assert records.first_pending() is None


def test_the_process_of_a_run_is_forgotten_when_it_ends(records):
    add_run(records, "a")
    process = Process.of(os.getpid())
    records.move("a", RunState.PENDING, RunState.RUNNING)
    records.set_process("a", process)
    assert records.process("a") == process
    assert "process" not in json.dumps(records.get(RecordKind.RUN, "a"))
    records.move("a", RunState.RUNNING, RunState.SUCCEEDED)
    assert records.process("a") is None


def test_a_change_that_fails_leaves_the_record_as_it_was(records):
    records.add(RecordKind.EXPERIMENT, "1", {"display_name": "x"})

    def change(document):
        document["display_name"] = "y"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        records.change(RecordKind.EXPERIMENT, "1", change)
    assert records.get(RecordKind.EXPERIMENT, "1") == {"display_name": "x"}
    records.change(RecordKind.EXPERIMENT, "1", lambda document: document.update(display_name="z"))
    assert records.get(RecordKind.EXPERIMENT, "1") == {"display_name": "z"}


def test_a_pipeline_goes_with_its_versions(records):
    records.add(RecordKind.PIPELINE, "p", {"display_name": "p"})
    records.add(RecordKind.VERSION, "v", {"display_name": "v"}, parent="p")
    records.remove(RecordKind.PIPELINE, "p")
    assert records.all(RecordKind.VERSION) == []


@pytest.mark.parametrize("call", ["get", "specification", "remove"])
def test_what_is_not_there_is_not_found(records, call):
    add_run(records, "a")
    for kind, key in ((RecordKind.RUN, "b"), (RecordKind.EXPERIMENT, "a")):
        with pytest.raises(ApiError) as refused:
            getattr(records, call)(kind, key)
        assert refused.value.status == 404
        assert repr(key) in str(refused.value)


def test_a_file_that_is_no_record_or_of_another_layout_is_refused(path):
    path.write_text("not a database, but long enough to be read as one" * 100)
    with pytest.raises(EnvironmentFault, match="cannot be opened"):
        Records(path)
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(EnvironmentFault, match="layout 99"):
        Records(path)


DAMAGE = {"document": "UPDATE documents SET document=?", "process": "UPDATE documents SET process=?"}


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("document", "{"),
        ("document", "[]"),
        ("document", "null"),
        ("document", "[" * 100_000),
        ("document", '{"display_name": "r", "run_id": "a", "state": "NONE", "state_history": []}'),
        ("document", '{"display_name": "r", "run_id": "a", "state": "RUNNING"}'),
        ("process", "{"),
        ("process", "[1]"),
        ("process", '{"a": 1}'),
    ],
)
def test_a_damaged_record_is_one_sentence(path, column, text):
    opened = Records(path)
    add_run(opened, "a", RunState.RUNNING)
    opened.close()
    with sqlite3.connect(path) as database:
        database.execute(DAMAGE[column], (text,))
    with pytest.raises(EnvironmentFault, match=r"are damaged \(.*\); move the file away"):
        Records(path)


def test_a_copy_knows_nothing_of_the_originals_processes(path, tmp_path):
    first = Records(path)
    add_run(first, "a")
    first.set_process("a", Process.of(os.getpid()))
    first.close()
    (tmp_path / "copy").mkdir()
    copied = Records(shutil.copyfile(path, tmp_path / "copy" / path.name))
    assert copied.process("a") is None
    copied.close()
    moved = Records(path.rename(tmp_path / "moved.db"))
    assert moved.process("a") == Process.of(os.getpid())
    moved.close()
