"""Processes of this machine: start one, know it again although numbers are recycled, end it with all below it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmr.errors import EnvironmentFault

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
KILL_S = 10.0
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
        return Process(pid, int(fields[19]), boot_id())

    @property
    def lives(self) -> bool:
        """True until it ends."""
        return start_time(self.pid) == self.started and boot_id() == self.boot


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


def start(
    command: Sequence[str], *, session: bool = False, ends_by: signal.Signals | None = None, **more: Any
) -> subprocess.Popen[Any]:
    """Start a program that can ask nobody anything.

    Parameters
    ----------
    session
        Make it the leader of a session of its own, so that `end_session` ends all that it starts.
    ends_by
        Signal that the kernel sends it when the thread that started it ends, however that ends.
    more
        As `subprocess.Popen` takes them.
    """
    tied = None if ends_by is None else _tie(os.getpid(), ends_by)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=session, preexec_fn=tied, **more)


def _tie(parent: int, number: signal.Signals) -> Callable[[], None]:
    def ask() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            # It ended before the kernel was asked.
            os.kill(os.getpid(), number)

    return ask


def when_parent_ends(call: Callable[[], object], parent: int, *, every_s: float = 0.5) -> None:
    """Have another thread call this once the parent process is gone: a child that can do so ends itself.

    Parameters
    ----------
    parent
        Its process id.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        call()

    threading.Thread(target=watch, daemon=True).start()


def end(process: Process, grace_s: float) -> None:
    """End one process: politely, and by force after a grace.

    Raises
    ------
    EnvironmentFault
        It does not end, even when killed.
    """
    for number, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_S)):
        until = time.monotonic() + seconds
        if process.lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        while process.lives and time.monotonic() < until:
            time.sleep(_POLL_S)
    if process.lives:
        raise EnvironmentFault(
            f"process {process.pid} does not end, even when killed; look at it with `ps {process.pid}`"
        )
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)


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
    give_up = polite_until + KILL_S
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


def running_programs(name: str, argument: str) -> list[Process]:
    """Return the processes, but not this one, of programs whose name begins so and that have so much of an argument."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2].startswith(os.fsencode(name)) and any(
                os.fsencode(argument) in word for word in words
            ):
                found.append(Process.of(pid))
    return [process for process in found if process.pid != os.getpid()]


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]


def _members(leader: Process) -> list[Process]:
    """Live processes of a session; none when the session is of another boot or its number was given away again."""
    boot = boot_id()
    now = _stat(leader.pid)
    if boot != leader.boot or (now is not None and int(now[19]) != leader.started):
        return []
    found = []
    for pid in _pids():
        fields = _stat(pid)
        if fields is None or fields[0] in _ENDED or int(fields[3]) != leader.pid:
            continue
        if int(fields[19]) >= leader.started:
            found.append(Process(pid, int(fields[19]), boot))
    return found


def _stat(pid: int) -> list[str] | None:
    """Fields of proc_pid_stat(5) from the third, the state, on."""
    try:
        # The command's name, in parentheses, may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine())


def boot_id() -> str:
    """Return the id of this boot of the machine; empty where the kernel tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
