"""Several processes: answers in order, a killed one is one sentence, and none outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ctmr.errors import EnvironmentFault, InputError
from ctmr.system.pool import PROCESSES, Background, in_order, processes


def slow_first(item: int) -> tuple[int, int]:
    time.sleep(0.3 if item == 0 else 0.0)
    return item, os.getpid()


def die_at_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def fail_at_three(item: int) -> int:
    if item == 3:
        raise InputError("item 3 is bad")
    return item


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setenv(PROCESSES, "2")


def test_answers_come_in_order_from_two_processes(two):
    answers = list(in_order(slow_first, range(40), worth=1))
    assert [a for a, _ in answers] == list(range(40))
    assert len({pid for _, pid in answers} - {os.getpid()}) == 2


def test_few_items_stay_in_this_process(two):
    assert {pid for _, pid in in_order(slow_first, range(5), worth=3)} == {os.getpid()}


def test_a_killed_process_is_one_sentence_that_says_what_to_do(two):
    with pytest.raises(EnvironmentFault, match=rf"most likely for lack of memory; .*{PROCESSES}=1"):
        list(in_order(die_at_three, range(8), worth=1))


def test_an_error_comes_through_as_it_is(two):
    answers = in_order(fail_at_three, range(60), worth=1)
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="item 3 is bad"):
        next(answers)


@pytest.mark.parametrize("asked", ["0", "many", "-1"])
def test_an_impossible_number_of_processes_is_refused(monkeypatch, asked):
    monkeypatch.setenv(PROCESSES, asked)
    with pytest.raises(InputError, match="number of processes from 1 on"):
        processes(100, 1)


OWNER = """
import sys, time
sys.path.insert(0, {tests!r})
from ctmr.system.pool import in_order
import test_pool

if __name__ == "__main__":
    for item, pid in in_order(test_pool.slow_first, range(10**6), worth=1):
        print(pid, flush=True)
        time.sleep(0.2)
"""


def test_processes_end_when_their_owner_is_killed(tmp_path: Path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER.format(tests=str(Path(__file__).parent)))
    environment = os.environ | {PROCESSES: "2"}
    owner = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = {int(owner.stdout.readline()) for _ in range(8)}
    owner.kill()
    owner.wait()
    until = time.monotonic() + 30
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_calls_in_the_background_are_made_in_order_while_this_thread_goes_on_and_their_errors_arrive() -> None:
    background, gate, seen = Background(), threading.Event(), []
    background.call(gate.wait, 60)
    background.call(seen.append, 1)
    assert background.finished() == [] and seen == []
    gate.set()
    assert background.wait() == [True, None] and seen == [1]
    background.call(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        background.wait()
    background.call(int, "3")
    assert background.wait() == [3] and background.finished() == []
    background.call(int, "no number")
    background.call(time.sleep, 0.2)
    background.call(seen.append, 2)
    background.settle()
    assert seen == [1, 2]
