"""Events of a run's tasks: nothing is lost or mixed, a torn line waits for its rest."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctmr.errors import EnvironmentFault
from ctmr.pipeline import events
from ctmr.pipeline.stage import Result

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture
def listened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(events.EVENTS, str(path))
    return path


def heard(path: Path) -> list[events.TaskEvent]:
    return [event for _, event in events.read(path)]


def test_what_tasks_tell_is_read_in_order(listened: Path) -> None:
    events.started("fetch")
    events.progress("fetch")("half", 0.5)
    events.failed("fetch", EnvironmentFault("the disk is full"))
    started, progress, failed = heard(listened)
    assert set(started) == {"stage", "started"}
    assert (progress["message"], progress["fraction"]) == ("half", 0.5)
    assert (failed["error"], failed["exit_code"], failed["kind"]) == ("the disk is full", 3, "EnvironmentFault")


def test_a_result_comes_back_as_it_was(listened: Path) -> None:
    result = Result("train", Path("/x"), "abc", False, 1.5, {"steps": 3, "best": {"a": 0.1}}, "recipe.train changed")
    events.finished(result)
    assert events.result_of(heard(listened)[0]) == result


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(messages=st.lists(TEXT, min_size=1, max_size=5), cut=st.integers(0, 400))
def test_reading_in_two_parts_gives_the_same_events(tmp_path: Path, messages: list[str], cut: int) -> None:
    lines = "".join(json.dumps({"stage": "x", "message": m}) + "\n" for m in messages).encode()
    path = tmp_path / "e.jsonl"
    path.write_bytes(lines[:cut])
    first = list(events.read(path))
    path.write_bytes(lines)
    rest = list(events.read(path, first[-1][0] if first else 0))
    assert [e["message"] for _, e in [*first, *rest]] == messages


def test_lines_of_tasks_that_run_side_by_side_do_not_mix(listened: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: events.emit("tune", message=f"{k}" * 300), range(200)))
    assert len(heard(listened)) == 200
    assert all(len(set(e["message"].replace(e["message"][:3], ""))) <= 3 for e in heard(listened))


def test_a_line_that_is_no_event_is_passed_over(listened: Path) -> None:
    listened.write_text('nonsense\n[1]\n{"other": 1}\n{"stage": "fetch", "message": "m"}\n')
    assert [e["message"] for e in heard(listened)] == ["m"]


def test_where_nobody_listens_progress_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(events.EVENTS, raising=False)
    events.progress("train")("step 5 of 10", 0.5)
    assert capsys.readouterr().out == "train: step 5 of 10\n"


def test_a_file_that_is_not_there_has_no_events(tmp_path: Path) -> None:
    assert list(events.read(tmp_path / "absent")) == []
