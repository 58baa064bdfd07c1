"""The tritonserver of the nvidia-pytriton wheel as a daemon on loopback: start, status, stop."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

from ctmr.errors import EnvironmentFault
from ctmr.serving.model_repository import models
from ctmr.system.processes import start_time

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
PORT_ATTEMPTS = 3
WHEEL = "nvidia-pytriton==0.7.0"


@dataclass(frozen=True)
class Ports:
    """Ports of Triton's three services."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


@dataclass(frozen=True)
class Endpoint:
    """Addresses where a server answers."""

    grpc: str
    http: str
    metrics: str

    @classmethod
    def at(cls, ports: Ports) -> Endpoint:
        """Return the addresses of ports on loopback; gRPC's is host:port, as clients of gRPC want it."""
        return cls(
            grpc=f"{LOOPBACK}:{ports.grpc}",
            http=f"http://{LOOPBACK}:{ports.http}",
            metrics=f"http://{LOOPBACK}:{ports.metrics}/metrics",
        )


@dataclass(frozen=True)
class Running:
    """A server that was started, as ``triton.json`` records it.

    Attributes
    ----------
    pid, started
        Process, and the kernel's start time of it in clock ticks: a recycled pid has another one.
    repository
        Model repository, absolute.
    ports
        Ports it got.
    server_id
        Name under which it answers, unlike any other server's.
    """

    pid: int
    started: int
    repository: str
    ports: Ports
    server_id: str

    @property
    def endpoint(self) -> Endpoint:
        """Address where it answers."""
        return Endpoint.at(self.ports)


class EmbeddedTriton:
    """The bundled Triton of one state folder.

    Parameters
    ----------
    state_dir
        Holds ``triton.json``, ``triton.log`` and the assembled backends.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.resolve()
        self.record = self.state_dir / "triton.json"
        self.log = self.state_dir / "triton.log"
        self.backends = self.state_dir / "backends"
        # Each state folder names its shared memory apart, so clearing up never touches another server's.
        self.shm_prefix = "ctmr_" + hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:12] + "_"

    def start(self, repository: Path, ports: Ports | None = None, *, timeout_s: float = START_TIMEOUT_S) -> Endpoint:
        """Start the server, or return the one that already serves this repository.

        It outlives the caller, loads every model of the repository at the versions that their policies name, and
        inherits nothing of the caller's environment. What a killed predecessor left behind is cleared first.

        Parameters
        ----------
        repository
            Model repository; made if need be.
        ports
            Preferred ports; busy ones are replaced by free ones.
        timeout_s
            How long models may take to load.

        Raises
        ------
        EnvironmentFault
            The wheel is missing, another repository is being served from here, or the server does not come up.
        """
        repository = repository.resolve()
        with self._lock():
            running = self.status()
            if running is not None and _answers(running):
                if running.repository == str(repository):
                    return running.endpoint
                raise EnvironmentFault(
                    f"Triton of {self.state_dir} already serves {running.repository}, not {repository}; stop it first"
                )
            self._clear(running)
            root = _bundle()
            repository.mkdir(parents=True, exist_ok=True)
            self._assemble_backends(root)
            for attempt in range(PORT_ATTEMPTS):
                running = self._spawn(root, repository, _free_ports(ports or Ports()))
                self._write_record(running)
                if self._wait_until_ready(running, timeout_s):
                    return running.endpoint
                # Between the look for free ports and the server's own bind another one may have taken them.
                if attempt + 1 == PORT_ATTEMPTS or not self._found_port_taken():
                    break
                self._clear(self.status())
            last = self._last_log_line()
            self._clear(self.status())
            raise EnvironmentFault(f"Triton did not come up ({last}); its log is {self.log}")

    def status(self) -> Running | None:
        """Return the server if its process lives, else None."""
        try:
            tree = json.loads(self.record.read_text())
            ports, server_id = Ports(**tree["ports"]), tree["server_id"]
            running = Running(tree["pid"], tree["started"], tree["repository"], ports, server_id)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with contextlib.suppress(ChildProcessError):
            os.waitpid(running.pid, os.WNOHANG)
        return running if start_time(running.pid) == running.started else None

    def stop(self) -> bool:
        """Stop the server and everything it started; False when none was running."""
        with self._lock():
            running = self.status()
            self._clear(running)
            return running is not None

    def _clear(self, running: Running | None) -> None:
        if running is not None:
            _end(running.pid, signal.SIGTERM, STOP_TIMEOUT_S)
        for pid in self._processes():
            _end(pid, signal.SIGKILL, STOP_TIMEOUT_S)
        for segment in Path("/dev/shm").glob(f"{self.shm_prefix}*"):
            segment.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def _processes(self) -> list[int]:
        """Processes that run out of this state folder: the server, and model stubs that outlived it."""
        mark = str(self.backends).encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    program = words[0].rpartition(b"/")[2]
                    if program.startswith(b"triton") and any(mark in word for word in words):
                        found.append(int(folder.name))
        return found

    def _assemble_backends(self, root: Path) -> None:
        """Lay out the wheel's Python backend, and ours for ONNX beside it, as Triton looks for them."""
        shutil.rmtree(self.backends, ignore_errors=True)
        python = self.backends / "python"
        python.mkdir(parents=True)
        stub = f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
        for name in (
            "backends/python/libtriton_python.so",
            "backends/python/triton_python_backend_utils.py",
            stub,
        ):
            if not (root / name).is_file():
                raise EnvironmentFault(
                    f"the bundled Triton lacks {name}; install {WHEEL} with a Python it supports (3.11 or 3.12)"
                )
            shutil.copy2(root / name, python)
        (python / "triton_python_backend_stub").chmod(0o755)
        source = resources.files("ctmr.serving").joinpath("backend", "onnxruntime", "model.py")
        (self.backends / "onnxruntime").mkdir()
        (self.backends / "onnxruntime" / "model.py").write_bytes(source.read_bytes())

    def _spawn(self, root: Path, repository: Path, ports: Ports) -> Running:
        server = str(root / "bin" / "tritonserver")
        server_id = f"ctmr-{secrets.token_hex(8)}"
        argv = [
            server,
            f"--id={server_id}",
            f"--model-repository={repository}",
            f"--backend-directory={self.backends}",
            "--model-control-mode=explicit",
            "--strict-readiness=false",
            "--exit-on-error=false",
            f"--exit-timeout-secs={STOP_TIMEOUT_S // 2:.0f}",
            "--allow-gpu-metrics=false",
            f"--http-address={LOOPBACK}",
            f"--grpc-address={LOOPBACK}",
            f"--metrics-address={LOOPBACK}",
            f"--http-port={ports.http}",
            f"--grpc-port={ports.grpc}",
            f"--metrics-port={ports.metrics}",
            f"--backend-config=python,shm-region-prefix-name={self.shm_prefix}",
            *(f"--load-model={name}" for name in models(repository)),
        ]
        # The stub must find this Python's library and packages; nothing else of the environment is passed on.
        environment = {
            "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]),
            "LD_LIBRARY_PATH": os.pathsep.join(
                [str(root.parents[1] / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
            ),
            "HOME": str(self.state_dir),
            "LC_ALL": "C.UTF-8",
            # Byte code beside model.py would make Triton take the version for changed and load it again.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        output = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        pid = os.posix_spawn(
            server,
            argv,
            environment,
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), output, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        return Running(pid, start_time(pid) or 0, str(repository), ports, server_id)

    def _write_record(self, running: Running) -> None:
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(running), indent=2) + "\n")
        temporary.replace(self.record)

    def _wait_until_ready(self, running: Running, timeout_s: float) -> bool:
        """Wait for the server; False when it has ended, or the time has."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if _answers(running):
                return True
            if self.status() is None:
                return False
            time.sleep(0.05)
        return False

    def _found_port_taken(self) -> bool:
        with contextlib.suppress(OSError):
            return "already in use" in self.log.read_text(errors="replace")
        return False

    def _last_log_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return lines[-1][:300]
        return "its log is empty"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One start or stop at a time, across processes."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with (self.state_dir / "triton.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _bundle() -> Path:
    """Return the wheel's tritonserver folder without importing the wheel, which would need numpy below 2."""
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or []) if spec else []:
        root = Path(location) / "tritonserver"
        if (root / "bin" / "tritonserver").is_file():
            return root
    raise EnvironmentFault(
        f"the bundled Triton server is not installed; run `pip install --no-deps {WHEEL}` or name a running Triton "
        "with --set deploy.url=HOST:PORT"
    )


def _free_ports(wanted: Ports) -> Ports:
    """Return the wanted ports, each replaced by a free one where it is busy."""
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        for port in (wanted.http, wanted.grpc, wanted.metrics):
            chosen.append(_hold(held, port, chosen))
    return Ports(*chosen)


def _hold(held: contextlib.ExitStack, port: int, taken: Sequence[int]) -> int:
    for candidate in (port, 0):
        probe = held.enter_context(socket.socket())
        # As Triton binds: a port that only lingers from a closed connection counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((LOOPBACK, candidate))
            probe.listen()
            return int(probe.getsockname()[1])
    raise EnvironmentFault(f"no free port was found on {LOOPBACK} besides {list(taken)}; end some servers")


def _answers(running: Running) -> bool:
    """True when the server is ready; another one that took its port answers under another name."""
    connection = http.client.HTTPConnection(LOOPBACK, running.ports.http, timeout=2)
    try:
        connection.request("GET", "/v2")
        if json.loads(connection.getresponse().read())["name"] != running.server_id:
            return False
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False
    finally:
        connection.close()


def _end(pid: int, first: signal.Signals, timeout_s: float) -> None:
    """End a process, at last by force, and wait until it is gone."""
    started = start_time(pid)
    for number in (first, signal.SIGKILL):
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if start_time(pid) != started or started is None:
                return
            time.sleep(0.02)
    raise EnvironmentFault(f"process {pid} does not end, even when killed; look at it with `ps {pid}`")
