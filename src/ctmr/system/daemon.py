"""Detached servers of one home on loopback: started, found again by another process, stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ctmr.errors import EnvironmentFault
from ctmr.system.home import quiet_libraries
from ctmr.system.processes import Process, end_session, listens

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
"""More than the pipeline endpoint gives a run to end in."""
PORT = "{port}"
"""Stands for the port in a daemon's arguments."""

ServiceRow = dict[str, str]


@dataclass(frozen=True)
class Daemon:
    """A detached server of one home on loopback: a Python process that takes its port as an argument.

    Attributes
    ----------
    name, title
        What `ServiceRow` and sentences call it.
    state
        Path without suffix of its record (``.json``), lock (``.lock``) and log (``.log``).
    port
        The port it gets when that is free; else the next free one.
    arguments
        Of Python; ``{port}`` stands for the port.
    environment
        More variables than this process has.
    folder
        Working directory; None is this process's.
    """

    name: str
    title: str
    state: Path
    port: int
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def log(self) -> Path:
        """File that its output goes to."""
        return self.state.with_suffix(".log")

    @property
    def record(self) -> Path:
        """File that says which process it is, and its port."""
        return self.state.with_suffix(".json")

    def answers_on(self) -> int | None:
        """Return the port when it runs and answers; a stranger that took its port does not count."""
        process, port = self._recorded()
        return port if process is not None and process.lives and _answers(process, port) else None

    def row(self, otherwise: str = "") -> ServiceRow:
        """Return what `status` says of it; `otherwise` is the address while it is down."""
        port = self.answers_on()
        address = f"http://{LOOPBACK}:{port}" if port else otherwise
        return {"name": self.name, "state": "running" if port else "down", "address": address}

    def start(self) -> int:
        """Start it unless it answers already, and return its port.

        Raises
        ------
        EnvironmentFault
            It does not come up.
        """
        with self._lock():
            if running := self.answers_on():
                return running
            self._end()
            quiet_libraries()
            port = _free_port(self.port)
            process = self._spawn(port)
            deadline = time.monotonic() + START_TIMEOUT_S
            leader = Process.of(process.pid)
            while not _answers(leader, port):
                if process.poll() is not None or time.monotonic() > deadline:
                    self._end()
                    raise EnvironmentFault(f"{self.title} did not come up on port {port}: {self._last_words()}")
                time.sleep(0.1)
            return port

    def stop(self) -> None:
        """Stop it and everything of its session."""
        with self._lock():
            self._end()

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, *(word.replace(PORT, str(port)) for word in self.arguments)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env={**os.environ, **self.environment},
            )
        tree = {"port": port, **asdict(Process.of(process.pid))}
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps(tree) + "\n")
        temporary.replace(self.record)
        return process

    def _end(self) -> None:
        process, _ = self._recorded()
        if process is not None:
            end_session(process, STOP_TIMEOUT_S)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        self.record.unlink(missing_ok=True)

    def _recorded(self) -> tuple[Process | None, int]:
        try:
            tree = json.loads(self.record.read_text())
            return Process(tree["pid"], tree["started"], tree["boot"]), int(tree["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return None, 0

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1].strip() if lines else 'it said nothing'} (its log is {self.log})"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One start or stop at a time, across processes."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with self.state.with_suffix(".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _answers(leader: Process, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return listens(leader, port)
    return False


def _free_port(preferred: int) -> int:
    for port in (*range(preferred, preferred + 20), 0):
        with contextlib.suppress(OSError), socket.socket() as trial:
            # As servers bind: a port that only lingers from a closed connection counts as free.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((LOOPBACK, port))
            trial.listen()
            return int(trial.getsockname()[1])
    raise EnvironmentFault(f"no port is free on {LOOPBACK}; stop what listens there")
