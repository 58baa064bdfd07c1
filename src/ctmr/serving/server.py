"""The tritonserver of the nvidia-pytriton wheel as a daemon on loopback: start, supervise, status, stop."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import ctmr
from ctmr.errors import EnvironmentFault
from ctmr.serving.client import CONTROL_HEADER, NO_PROXY, Tls, TritonClient
from ctmr.serving.model_repository import models
from ctmr.system.daemon import LOOPBACK, Daemon, Launch, Ports, Running
from ctmr.system.environment import TRITON_CONTROL_KEY
from ctmr.system.files import owners_secret
from ctmr.system.home import Home
from ctmr.system.processes import Process, end, running_programs

START_TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 10
"""How long the server lets requests end that it has begun."""
CANARY_EVERY_S = 15.0
"""Between the supervisor's canaries."""
WHEEL = "nvidia-pytriton==0.7.0"
PORTS: Ports = {"grpc": 8001, "metrics": 8002}
RESTRICTED = "model-repository,shared-memory,trace,logging"
"""Protocols of Triton that need the key: the first runs code that a caller sends, the others write and read files."""
_REPOSITORY = "repository"
_ANSWER_S = 2.0


@dataclass(frozen=True)
class Endpoint:
    """Addresses where a server answers; gRPC's is host:port, as clients of gRPC want it."""

    grpc: str
    metrics: str

    @classmethod
    def of(cls, running: Running) -> Endpoint:
        """Return the addresses of a server on loopback."""
        grpc, metrics = (f"{LOOPBACK}:{running.ports[name]}" for name in PORTS)
        return cls(grpc=grpc, metrics=f"http://{metrics}/metrics")


class EmbeddedTriton:
    """The bundled Triton of one state folder.

    Parameters
    ----------
    state_dir
        Holds ``triton.json``, ``triton.log``, ``control.key``, the assembled backends, and the supervisor's record.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.resolve()
        self.backends = self.state_dir / "backends"
        # Each state folder names its shared memory apart, so clearing up never touches another server's.
        self.shm_prefix = "ctmr_" + hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:12] + "_"

    def start(self, repository: Path, ports: Ports = PORTS, *, timeout_s: float = START_TIMEOUT_S) -> Endpoint:
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
        running = self.daemon(repository, ports, timeout_s).start()
        served = running.facts.get(_REPOSITORY)
        if served != str(repository):
            raise EnvironmentFault(
                f"Triton of {self.state_dir} already serves {served}, not {repository}; stop it first"
            )
        return Endpoint.of(running)

    def status(self) -> Running | None:
        """Return the server if its process lives, else None."""
        return self.daemon().running()

    def restart(self, repository: Path) -> Endpoint:
        """End the server if it still runs and start it where it was, so that its clients find it again."""
        last = self.daemon().recorded()
        self.daemon().stop()
        return self.start(repository, last.ports if last else PORTS)

    def supervise(self, repository: Path, lock: Path, *, every_s: float = CANARY_EVERY_S) -> Running:
        """Start the supervisor unless it runs (`ctmr.serving.supervisor`); it ends with `stop`.

        Parameters
        ----------
        lock
            Held while it starts something again, and by whoever changes what is served.
        every_s
            Between canaries.
        """
        return self.supervisor(repository.resolve(), lock.resolve(), every_s).start()

    def supervisor(self, repository: Path = Path(), lock: Path = Path(), every_s: float = CANARY_EVERY_S) -> Daemon:
        """Return the supervisor; to find or stop it, any repository and lock will do."""
        words = (str(self.state_dir), str(repository), str(lock), str(every_s))

        def launch(ports: Ports, server_id: str) -> Launch:
            return Launch([sys.executable, "-m", "ctmr.serving.supervisor", *words], dict(os.environ))

        return Daemon("the supervisor of Triton", self.state_dir / "supervisor", {}, launch, answers=_lives)

    def stop(self) -> bool:
        """Stop the supervisor, then the server and everything it started; False when no server was running."""
        if self.state_dir.is_dir():
            # First, or it would start again what ends.
            self.supervisor().stop()
        return self.daemon().stop()

    def daemon(self, repository: Path = Path(), ports: Ports = PORTS, timeout_s: float = START_TIMEOUT_S) -> Daemon:
        """Return the server of a model repository; to find or stop it, any repository will do."""
        return Daemon(
            "Triton",
            self.state_dir / "triton",
            ports,
            partial(self._launch, repository),
            answers,
            {_REPOSITORY: str(repository)},
            self._clear,
            timeout_s,
        )

    def client(self, repository: Path, ports: Ports = PORTS) -> TritonClient:
        """Return a client of this server that may control it; the server is started if need be."""
        return TritonClient(self.start(repository, ports).grpc, control_key=self.control_key())

    def control_key(self) -> str:
        """Return what a client must know to load and unload models, to share memory, to trace and to log.

        Whoever loads a model runs its code as this user; a web page and other users of the machine reach the port.
        """
        return owners_secret(self.state_dir / "control.key")

    def leftovers(self) -> tuple[list[Process], list[Path]]:
        """Return what outlives a server that is killed: processes out of this folder, and shared memory."""
        return running_programs("triton", str(self.backends)), list(Path("/dev/shm").glob(f"{self.shm_prefix}*"))

    def _clear(self) -> None:
        processes, segments = self.leftovers()
        for process in processes:
            end(process, 0.0)
        for segment in segments:
            segment.unlink(missing_ok=True)

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

    def _launch(self, repository: Path, ports: Ports, server_id: str) -> Launch:
        root = _bundle()
        repository.mkdir(parents=True, exist_ok=True)
        self._assemble_backends(root)
        command = [
            str(root / "bin" / "tritonserver"),
            f"--id={server_id}",
            f"--model-repository={repository}",
            f"--backend-directory={self.backends}",
            "--model-control-mode=explicit",
            "--strict-readiness=false",
            "--exit-on-error=false",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            "--allow-gpu-metrics=false",
            "--allow-http=false",
            # A request kept for reuse keeps its memory too, also that of a refused giant.
            "--grpc-infer-allocation-pool-size=0",
            *(f"--{name}-address={LOOPBACK}" for name in PORTS),
            *(f"--{name}-port={port}" for name, port in ports.items()),
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
            # Else glibc keeps most of what a giant message took; no slower here (25 volumes of 400 slices).
            "MALLOC_ARENA_MAX": "2",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "131072",
            # Volume models bring images onto the grid by this very package, also where another one is installed.
            "TRITON_STUB_PACKAGES": str(Path(ctmr.__file__).parents[1]),
            # Byte code beside model.py would make Triton take the version for changed and load it again.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return Launch(
            command,
            environment,
            hidden=f"--grpc-restricted-protocol={RESTRICTED}:{CONTROL_HEADER}={self.control_key()}",
        )


def _lives(running: Running) -> bool:
    return running.process.lives


def answers(running: Running) -> bool:
    """Return whether the server is ready; another one that took its port answers under another name."""
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(f"{LOOPBACK}:{running.ports['grpc']}", channel_args=NO_PROXY)
    try:
        metadata = client.get_server_metadata(client_timeout=_ANSWER_S)
        return bool(metadata.name == running.server_id and client.is_server_ready(client_timeout=_ANSWER_S))
    except (InferenceServerException, KeyError):
        return False
    finally:
        client.close()


def connect(home: Home, url: str | None, repository: str | None = None) -> TritonClient:
    """Return a client of the server at an address, or of the home's own, which is started and supervised if need be.

    The key that controls a server elsewhere is taken from ``CTMR_TRITON_CONTROL_KEY``.

    Parameters
    ----------
    repository
        Where a server elsewhere loads from (`ctmr.serving.mirror`); ``None``: from this home.
    """
    if url:
        key, tls = os.environ.get(TRITON_CONTROL_KEY, ""), Tls.of_environment()
        if repository:
            from ctmr.serving.mirror import MirroringClient, mirror_of

            return MirroringClient(
                url, mirror_of(repository), home.model_repository, control_key=key, tls=Tls.of_environment()
            )
        return TritonClient(url, control_key=key, tls=tls)
    triton = EmbeddedTriton(home.triton)
    client = triton.client(home.model_repository)
    triton.supervise(home.model_repository, home.registry_lock)
    return client


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
