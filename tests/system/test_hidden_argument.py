"""A hidden argument arrives whole, and the list of processes does not show it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ctmr.system.hidden_argument import start_with_hidden

TELL = "import sys; print(sys.argv[1:], flush=True); sys.stdin.read(); import time; time.sleep(60)"


@pytest.mark.parametrize("hidden", ["--key=s3cret", "ü" * 3000, "with blanks and = signs", "x"])
def test_the_program_gets_it_and_others_do_not_see_it(hidden: str) -> None:
    child = start_with_hidden(
        [sys.executable, "-c", TELL, "plain"], hidden, {"LC_ALL": "C.UTF-8"}, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline().decode() == f"{['plain', hidden]}\n"
        shown = Path(f"/proc/{child.pid}/cmdline").read_bytes()
        assert b"plain" in shown and (len(hidden) == 1 or hidden.encode() not in shown)
    finally:
        child.kill()
        child.wait()


def test_a_program_that_does_not_exist_is_told_as_ever() -> None:
    with pytest.raises(FileNotFoundError):
        start_with_hidden(["/no/such/program"], "--key=s3cret", {})


def test_the_exit_status_arrives() -> None:
    child = start_with_hidden([sys.executable, "-c", "import sys; sys.exit(7)"], "--key=s3cret", {})
    assert child.wait(30) == 7
