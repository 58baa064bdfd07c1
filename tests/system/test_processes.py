"""Processes are known again, and end with everything below them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time

import pytest

from ctmr.system.processes import Process, end_session, start_time


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
