"""Locks: one holder at a time among processes and threads, free again when it dies."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from ctmr.errors import EnvironmentFault
from ctmr.system.locks import locked

HOLDER = """
import sys
from pathlib import Path
from ctmr.system.locks import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_told_that_it_is_busy(tmp_path, holder):
    with pytest.raises(EnvironmentFault, match=r"^come back later$"), locked(tmp_path / "lock", busy="come back later"):
        pass


def test_a_second_process_waits_where_it_says_nothing(tmp_path, holder):
    threading.Timer(0.3, holder.stdin.close).start()
    begun = time.monotonic()
    with locked(tmp_path / "lock"):
        assert time.monotonic() - begun > 0.2


def test_a_holder_that_is_killed_gives_it_up_and_its_file_holds_nobody_up(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock", busy="taken"):
        assert (tmp_path / "lock").exists()


def test_a_second_thread_is_kept_out_too(tmp_path):
    with (
        locked(tmp_path / "lock"),
        pytest.raises(EnvironmentFault, match="taken"),
        locked(tmp_path / "lock", busy="taken"),
    ):
        pass


def test_it_is_given_up_although_a_forked_process_has_the_file_open(tmp_path):
    context = multiprocessing.get_context("fork")
    with locked(tmp_path / "lock"):
        child = context.Process(target=time.sleep, args=(30,))
        child.start()
    try:
        with locked(tmp_path / "lock", busy="taken"):
            pass
    finally:
        child.kill()
        child.join()


def test_two_processes_never_hold_it_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert (tmp_path / "count").read_text() == "400"


def _count(folder) -> None:
    for _ in range(200):
        with locked(folder / "lock"):
            before = int((folder / "count").read_text()) if (folder / "count").exists() else 0
            (folder / "count").write_text(str(before + 1))


def test_its_rights_are_those_asked_for(tmp_path):
    with locked(tmp_path / "lock", mode=0o600):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_that_cannot_be_made_is_one_sentence(tmp_path):
    path = tmp_path / "nowhere" / "lock"
    with pytest.raises(EnvironmentFault, match=f"^the lock {path} cannot be opened: No such file"), locked(path):
        pass
    assert not os.path.lexists(path)
