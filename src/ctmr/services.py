"""Services on this machine: Triton and the MLflow UI, started on loopback, found again, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ctmr.errors import EnvironmentFault
from ctmr.home import Home, quiet_libraries

LOOPBACK = "127.0.0.1"
MLFLOW_PORT = 5000
START_TIMEOUT_S = 90.0

Row = dict[str, str]


def up(home: Home) -> list[Row]:
    """Start what is down and return every service with its address."""
    from ctmr.serving.embedded import EmbeddedTriton

    EmbeddedTriton(home.triton).start(home.model_repository)
    MlflowUi(home).start()
    return status(home)


def status(home: Home) -> list[Row]:
    """Return every service: name, state, address."""
    from ctmr.serving.embedded import EmbeddedTriton

    running = EmbeddedTriton(home.triton).status()
    rows = [{"name": "triton", "state": "running" if running else "down", "address": ""}]
    if running:
        where = running.endpoint
        rows[0]["address"] = f"gRPC {where.grpc}, HTTP {where.http}, metrics {where.metrics}"
    port = MlflowUi(home).port()
    rows.append(
        {
            "name": "mlflow",
            "state": "running" if port else "down",
            "address": f"http://{LOOPBACK}:{port}" if port else home.tracking_uri,
        }
    )
    return rows


def down(home: Home) -> list[Row]:
    """Stop what runs and return every service."""
    from ctmr.serving.embedded import EmbeddedTriton

    EmbeddedTriton(home.triton).stop()
    MlflowUi(home).stop()
    return status(home)


class MlflowUi:
    """The MLflow server of one home, a detached process on loopback."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.record = home.root / "mlflow-ui.json"
        self.log = home.root / "mlflow-ui.log"

    def port(self) -> int | None:
        """Return the port when it answers."""
        try:
            tree = json.loads(self.record.read_text())
            pid, port = int(tree["pid"]), int(tree["port"])
        except (OSError, ValueError, KeyError):
            return None
        return port if _is_ours(pid) and _answers(port) else None

    def start(self) -> None:
        """Start it unless it runs; EnvironmentFault when it does not come up."""
        if self.port():
            return
        quiet_libraries()
        self.home.root.mkdir(parents=True, exist_ok=True)
        port = _free_port(MLFLOW_PORT)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1",
            "--backend-store-uri", self.home.tracking_uri, "--serve-artifacts",
            "--artifacts-destination", str(self.home.artifacts),
        ]  # fmt: skip
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.home.root
            )
        self.record.write_text(json.dumps({"pid": process.pid, "port": port}))
        end = time.monotonic() + START_TIMEOUT_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise EnvironmentFault(f"the MLflow UI did not come up on port {port}: {lines[-1]} (see {self.log})")
            time.sleep(0.3)

    def stop(self) -> None:
        """Stop it and everything it started."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            pid = int(json.loads(self.record.read_text())["pid"])
            if _is_ours(pid):
                os.killpg(pid, signal.SIGTERM)
                end = time.monotonic() + 10
                while _is_ours(pid) and time.monotonic() < end:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
                    time.sleep(0.1)
        self.record.unlink(missing_ok=True)


def _is_ours(pid: int) -> bool:
    """True when the process is an MLflow server: a recycled pid is not."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return b"mlflow" in command and state != "Z"


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with contextlib.suppress(OSError), socket.socket() as trial:
            trial.bind((LOOPBACK, port))
            return int(trial.getsockname()[1])
    raise EnvironmentFault(f"no port is free on {LOOPBACK}; stop what listens there")
