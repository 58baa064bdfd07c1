"""Processes of this machine: know one again although numbers are recycled, end one with all below it, share cores."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_KILL_S = 10.0
_POLL_S = 0.05
_ENDED = ("Z", "X")

_SPINS = "1000"
"""How often a thread of GNU OpenMP looks for work before it sleeps. Its own default lets two runs of two threads each
on two cores take turns in burning the time slices that the other needs: `benchmarks/shared_cores.py`."""


@dataclass(frozen=True)
class Process:
    """A process, told apart from every other one that had or will have its number.

    Attributes
    ----------
    pid
        Its number.
    started
        Kernel's start time of it, in clock ticks since boot.
    boot
        Id of that boot.
    """

    pid: int
    started: int
    boot: str

    @staticmethod
    def of(pid: int) -> Process:
        """Return the process of a number, also when it has ended and nobody has asked for its exit status yet.

        Raises
        ------
        ProcessLookupError
            There is none.
        """
        fields = _stat(pid)
        if fields is None:
            raise ProcessLookupError(f"there is no process {pid}")
        return Process(pid, int(fields[19]), _boot())

    @property
    def lives(self) -> bool:
        """True until it ends."""
        return start_time(self.pid) == self.started and _boot() == self.boot


def start_time(pid: int) -> int | None:
    """Return the kernel's start time of a live process in clock ticks (field 22 of proc_pid_stat(5)), else None."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in _ENDED else int(fields[19])


def share_cores() -> None:
    """Let the threads of PyTorch in this process and its children sleep instead of spin when they wait for each other.

    Acts when called before PyTorch is imported; a ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` of the user's stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def torchrun_rank() -> tuple[int, int]:
    """Return this process's number, from 0, among those that torchrun started, and how many they are; (0, 1) alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def end_session(leader: Process, grace_s: float) -> None:
    """End a session leader and all processes of its session: politely, and by force after a grace.

    The leader may have ended already. What made itself a session of its own is left alone.

    Parameters
    ----------
    grace_s
        Seconds between SIGTERM and SIGKILL.
    """
    asked: set[Process] = set()
    polite_until = time.monotonic() + grace_s
    give_up = polite_until + _KILL_S
    while time.monotonic() < give_up and (members := _members(leader)):
        polite = time.monotonic() < polite_until
        for member in members:
            if not polite or member not in asked:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(member.pid, signal.SIGTERM if polite else signal.SIGKILL)
                asked.add(member)
        time.sleep(_POLL_S)


def listens(leader: Process, port: int) -> bool:
    """Return whether a process of a session listens on a TCP port."""
    import psutil

    for member in _members(leader):
        with contextlib.suppress(psutil.Error):
            for found in psutil.Process(member.pid).net_connections("tcp"):
                if found.status == psutil.CONN_LISTEN and found.laddr.port == port:
                    return True
    return False


def _members(leader: Process) -> list[Process]:
    """Live processes of a session; none when the session is of another boot or its number was given away again."""
    boot = _boot()
    now = _stat(leader.pid)
    if boot != leader.boot or (now is not None and int(now[19]) != leader.started):
        return []
    found = []
    for folder in Path("/proc").iterdir():
        fields = _stat(int(folder.name)) if folder.name.isdecimal() else None
        if fields is None or fields[0] in _ENDED or int(fields[3]) != leader.pid:
            continue
        if int(fields[19]) >= leader.started:
            found.append(Process(int(folder.name), int(fields[19]), boot))
    return found


def _stat(pid: int) -> list[str] | None:
    """Fields of proc_pid_stat(5) from the third, the state, on."""
    try:
        # The command's name, in parentheses, may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
