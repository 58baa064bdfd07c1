"""Detached servers of one home on loopback: started, found again by another process, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctmr.errors import EnvironmentFault
from ctmr.system.files import identity, write_file
from ctmr.system.hidden_argument import start_with_hidden
from ctmr.system.home import quiet_libraries
from ctmr.system.locks import locked
from ctmr.system.processes import Process, boot_id, end, end_session, listens
from ctmr.system.processes import start as start_process

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
"""More than the pipeline endpoint gives a run to end in."""
PORT = "{port}"
"""Stands for the port in a Python server's arguments."""
HTTP = "http"
"""Name of the port of a server that has one."""
_ATTEMPTS = 3
"""Between the look for free ports and the server's own bind another one may have taken them."""
_LAST_WORDS = 300
_FOLDER = "folder"

Ports = Mapping[str, int]


@dataclass(frozen=True)
class Running:
    """A server that was started, as its record tells of it.

    Attributes
    ----------
    ports
        By name.
    server_id
        Made up for it, and unlike that of any other server.
    facts
        What else was recorded of it.
    """

    process: Process
    ports: Ports
    server_id: str
    facts: Mapping[str, str]

    @property
    def port(self) -> int:
        """The only port, or the first."""
        return next(iter(self.ports.values()))


@dataclass(frozen=True)
class Launch:
    """Command and place of a server.

    Attributes
    ----------
    environment
        All of it; nothing is inherited.
    folder
        Working directory; None is this process's.
    hidden
        One more argument, which other users do not see in the list of processes.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path | None = None
    hidden: str = ""


def python_server(
    *arguments: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Callable[[Ports, str], Launch]:
    """Return how a Python program with one port is started.

    Parameters
    ----------
    arguments
        Of Python; ``{port}`` stands for the port.
    environment
        More variables than this process has.
    """

    def launch(ports: Ports, server_id: str) -> Launch:
        quiet_libraries()
        words = [word.replace(PORT, str(ports[HTTP])) for word in arguments]
        return Launch([sys.executable, *words], {**os.environ, **(environment or {})}, folder)

    return launch


def has_bound(running: Running) -> bool:
    """Return whether the server's own port takes connections; a stranger that took the port does not count."""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, running.port), timeout=1):
        return listens(running.process, running.port)
    return False


@dataclass(frozen=True)
class Daemon:
    """A detached server of one home on loopback.

    Attributes
    ----------
    title
        What sentences call it.
    state
        Path without suffix of its record (``.json``), lock (``.lock``) and log (``.log``).
    ports
        By name the ports that it gets when they are free; else others.
    launch
        Says how it is started on given ports under a given id; called before each start.
    answers
        Whether it is ready.
    facts
        To be recorded.
    clear
        Called when it has ended, to remove what outlives it.
    """

    title: str
    state: Path
    ports: Ports
    launch: Callable[[Ports, str], Launch]
    answers: Callable[[Running], bool] = has_bound
    facts: Mapping[str, str] = field(default_factory=dict)
    clear: Callable[[], None] = lambda: None
    timeout_s: float = START_TIMEOUT_S

    @property
    def log(self) -> Path:
        """File that its output goes to."""
        return self.state.with_suffix(".log")

    @property
    def record(self) -> Path:
        """File that says which process it is, and its ports."""
        return self.state.with_suffix(".json")

    def running(self) -> Running | None:
        """Return the server if its process lives."""
        running = self.recorded()
        return running if running is not None and running.process.lives else None

    def answering(self) -> Running | None:
        """Return the server if it is ready."""
        running = self.running()
        return running if running is not None and self.answers(running) else None

    def start(self) -> Running:
        """Start it unless it is ready already; it outlives this process.

        Raises
        ------
        EnvironmentFault
            It does not come up.
        """
        with self._alone():
            if running := self.answering():
                return running
            self._end()
            for _ in range(_ATTEMPTS):
                ports = free_ports(self.ports)
                before = self.log.stat().st_size if self.log.exists() else 0
                running = self._spawn(ports)
                if self._comes_up(running):
                    return running
                said = self.log.read_bytes()[before:].decode(errors="replace")
                self._end()
                if "already in use" not in said.lower():
                    break
            last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
            where = ", ".join(str(port) for port in ports.values())
            place = f" on port {where}" if where else ""
            raise EnvironmentFault(f"{self.title} did not come up{place}: {last[:_LAST_WORDS]} (its log is {self.log})")

    def stop(self) -> bool:
        """Stop it and everything of its session; False when it did not run.

        Raises
        ------
        EnvironmentFault
            It does not end.
        """
        with self._alone():
            running = self.running()
            self._end()
            return running is not None

    def _spawn(self, ports: Ports) -> Running:
        server_id = f"ctmr-{secrets.token_hex(8)}"
        how = self.launch(ports, server_id)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            more: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": how.folder}
            if how.hidden:
                child = start_with_hidden(how.command, how.hidden, how.environment, **more)
            else:
                child = start_process(how.command, session=True, env=how.environment, **more)
        except OSError as error:
            raise EnvironmentFault(f"{self.title} cannot be started: {error}; install ctmr again") from error
        finally:
            os.close(log)
        running = Running(Process.of(child.pid), ports, server_id, self.facts)
        about = {"ports": dict(ports), "server_id": server_id, _FOLDER: identity(self.state.parent)}
        tree = {**vars(running.process), **about, **self.facts}
        write_file(self.record, (json.dumps(tree, indent=1) + "\n").encode(), replace=True, mode=0o600)
        return running

    def _comes_up(self, running: Running) -> bool:
        until = time.monotonic() + self.timeout_s
        while running.process.lives and time.monotonic() < until:
            if self.answers(running):
                return True
            time.sleep(0.05)
        return False

    def _end(self) -> None:
        """End the recorded server and clear up; also when it was killed, or nobody can read the record any more."""
        running = self.recorded()
        if running is not None:
            end(running.process, STOP_TIMEOUT_S)
        self.clear()
        if running is not None:
            end_session(running.process, STOP_TIMEOUT_S)
        self.record.unlink(missing_ok=True)

    def recorded(self) -> Running | None:
        """Return the server that was started last and not stopped, also when its process has ended since."""
        try:
            tree = json.loads(self.record.read_text())
            # Records were once without "boot", and of servers with one port without "ports" and "server_id".
            process = Process(int(tree.pop("pid")), int(tree.pop("started")), str(tree.pop("boot", boot_id())))
            ports = tree.pop("ports") if "ports" in tree else {HTTP: tree.pop("port")}
            server_id = str(tree.pop("server_id", ""))
            if tree.pop(_FOLDER, None) not in (None, identity(self.state.parent)):
                # The home is a copy, and the process is the original's.
                return None
            return Running(process, {str(n): int(p) for n, p in ports.items()}, server_id, tree)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """One start or stop at a time, across processes."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        return locked(self.state.with_suffix(".lock"))


def free_ports(wanted: Ports) -> dict[str, int]:
    """Return the wanted ports, each replaced by a free one where it is busy; 0 is any free one.

    Raises
    ------
    EnvironmentFault
        None is free.
    """
    with contextlib.ExitStack() as held:
        return {name: _hold(held, port) for name, port in wanted.items()}


def _hold(held: contextlib.ExitStack, preferred: int) -> int:
    for port in (*range(preferred, preferred + 20), 0):
        with contextlib.suppress(OSError, OverflowError):
            trial = held.enter_context(socket.socket())
            # As servers bind: a port that only lingers from a closed connection counts as free.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((LOOPBACK, port))
            trial.listen()
            return int(trial.getsockname()[1])
    raise EnvironmentFault(f"no port is free on {LOOPBACK}; stop what listens there")
