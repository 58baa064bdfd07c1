"""Processes are known again, and end with everything below them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from ctmr.errors import EnvironmentFault
from ctmr.system.processes import Process, end, end_session, start, start_time


def session(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE)


def test_a_process_lives_until_it_ends_although_nobody_reaped_it():
    child = session("exec sleep 60")
    process = Process.of(child.pid)
    assert process.lives
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Process.of(child.pid) == process
    assert not process.lives
    child.wait()
    assert not process.lives
    with pytest.raises(ProcessLookupError):
        Process.of(child.pid)


def test_a_recycled_number_is_another_process():
    child = session("sleep 60")
    before = dataclasses.replace(Process.of(child.pid), started=Process.of(child.pid).started - 1)
    earlier_boot = dataclasses.replace(Process.of(child.pid), boot="another")
    for stranger in (before, earlier_boot):
        assert not stranger.lives
        end_session(stranger, 0.0)
    assert Process.of(child.pid).lives
    end_session(Process.of(child.pid), 1.0)
    child.wait()


def test_ending_a_session_ends_children_whose_leader_died():
    child = session("sleep 60 & echo $!; exec sleep 60")
    grandchild = Process.of(int(child.stdout.readline()))
    leader = Process.of(child.pid)
    child.kill()
    child.wait()
    assert grandchild.lives
    end_session(leader, 1.0)
    assert not grandchild.lives


def test_what_ignores_the_polite_signal_is_killed_after_the_grace():
    child = session("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    child.stdout.readline()
    begun = time.monotonic()
    end_session(Process.of(child.pid), 0.3)
    assert 0.3 <= time.monotonic() - begun < 5
    assert child.wait() == -9


def test_a_session_that_ends_politely_is_not_killed():
    child = session("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    child.stdout.readline()
    end_session(Process.of(child.pid), 5.0)
    assert child.wait() == 7
    assert child.stdout.read() == b"bye\n"


def test_what_left_the_session_is_left_alone():
    child = session("setsid sleep 60 & echo $!; exec sleep 60")
    daemon = int(child.stdout.readline())
    time.sleep(0.1)
    end_session(Process.of(child.pid), 1.0)
    child.wait()
    assert start_time(daemon) is not None
    os.kill(daemon, 9)


PARENT = """
import os, signal, subprocess, sys, time
from ctmr.system.processes import start

child = start(["sh", "-c", "trap 'exit 7' TERM; sleep 60 & wait"], session=True, ends_by=signal.Signals[sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_a_started_program_ends_when_the_process_that_started_it_is_killed(number):
    with subprocess.Popen([sys.executable, "-c", PARENT, number], stdout=subprocess.PIPE, text=True) as parent:
        child = Process.of(int(parent.stdout.readline()))
        assert child.lives
        parent.kill()
    assert ended(child)
    end_session(child, 1.0)


WATCHER = """
import os, sys, time
from ctmr.system.processes import when_parent_ends

when_parent_ends(lambda: os._exit(1), os.getppid(), every_s=0.05)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_child_that_watches_ends_itself_when_its_parent_was_killed_and_not_before():
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WATCHER!r}])"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as parent:
        child = Process.of(int(parent.stdout.readline()))
        time.sleep(0.3)
        assert child.lives
        parent.kill()
    assert ended(child)


def ended(process: Process) -> bool:
    until = time.monotonic() + 30
    while process.lives and time.monotonic() < until:
        time.sleep(0.05)
    return not process.lives


def test_a_started_program_can_ask_nobody_and_leads_a_session_only_when_told():
    for alone in (False, True):
        with start(["sh", "-c", "cat; exec sleep 60"], session=alone) as child:
            assert (os.getsid(child.pid) == child.pid) is alone
            child.kill()


def test_ending_one_process_leaves_its_children():
    child = session("sleep 60 & echo $!; wait")
    below = Process.of(int(child.stdout.readline()))
    leader = Process.of(child.pid)
    end(leader, 5.0)
    assert not leader.lives and below.lives
    end(leader, 0.0)
    end(below, 5.0)
    assert not below.lives
    child.wait()
    child.stdout.close()


def test_a_process_that_ignores_the_polite_signal_is_killed():
    child = session("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    child.stdout.readline()
    leader = Process.of(child.pid)
    end(leader, 0.2)
    assert not leader.lives
    end_session(leader, 0.0)
    child.wait()
    child.stdout.close()


def test_a_stranger_with_the_number_of_an_ended_process_is_not_ended():
    child = session("sleep 60")
    end(dataclasses.replace(Process.of(child.pid), started=1), 0.0)
    # A signal takes a moment to end a process.
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    end(Process.of(child.pid), 1.0)
    child.stdout.close()
    child.wait()


def test_a_process_that_cannot_be_killed_is_a_fault(monkeypatch):
    monkeypatch.setattr("ctmr.system.processes.KILL_S", 0.1)
    monkeypatch.setattr("os.kill", lambda pid, number: None)
    with pytest.raises(EnvironmentFault, match=rf"^process {os.getpid()} does not end, even when killed; look at it"):
        end(Process.of(os.getpid()), 0.0)
