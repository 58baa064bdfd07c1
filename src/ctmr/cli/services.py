"""Services on this machine: Triton, the MLflow UI and the pipeline endpoint, started on loopback, found, stopped."""

from __future__ import annotations

import contextlib
import os

from ctmr.errors import CtmrError, EnvironmentFault, without_secrets
from ctmr.kubeflow.local_api import PIPELINES_PORT, TOKEN_VARIABLE
from ctmr.system import environment
from ctmr.system.daemon import HTTP, LOOPBACK, PORT, Daemon, python_server
from ctmr.system.home import Home

MLFLOW_PORT = 5000
_CANARY_S = 15.0

ServiceRow = dict[str, str]


def up(home: Home) -> list[ServiceRow]:
    """Start what is down, models that died too, finish what a killed deployment left, and return every service."""
    from ctmr.pipeline.promotion import is_unfinished, recover, registry_lock
    from ctmr.serving.rollout import revive, silent_models
    from ctmr.serving.server import EmbeddedTriton
    from ctmr.tracking import database
    from ctmr.tracking.mlflow import faults

    triton = EmbeddedTriton(home.triton)
    triton.start(home.model_repository)
    triton.supervise(home.model_repository, home.registry_lock)
    if file := database.file_of(home.tracking_uri):
        with faults(home.tracking_uri):
            database.make(file)
    mlflow_ui(home).start()
    pipelines(home).start()
    if is_unfinished(home):
        with registry_lock(home, busy="a deployment, or the supervisor, is at work; wait until it has ended"):
            recover(home)
    with triton.client(home.model_repository) as client:
        for model in silent_models(client, home.model_repository, deadline_s=_CANARY_S):
            # What cannot be helped is shown below; who holds the lock sees to it.
            with contextlib.suppress(CtmrError), registry_lock(home, busy="a deployment is under way"):
                revive(client, home.model_repository, model)
    return status(home)


def status(home: Home) -> list[ServiceRow]:
    """Return every service: name, state, address; models that do not answer; and a deployment that has not ended.

    Triton itself calls a model ready whose process died, so each is asked to translate a small made-up volume.
    """
    from ctmr.pipeline.promotion import is_unfinished
    from ctmr.serving.client import TritonClient
    from ctmr.serving.rollout import silent_models
    from ctmr.serving.server import EmbeddedTriton, Endpoint
    from ctmr.serving.supervision import Supervision

    triton = ""
    silent: tuple[str, ...] = ()
    embedded = EmbeddedTriton(home.triton)
    watched = {"state": "down", "address": ""}
    if home.triton.is_dir():
        state = "running" if embedded.supervisor().running() else "down"
        watched = {"state": state, "address": Supervision.read(home.triton).sentence()}
    if running := embedded.status():
        where = Endpoint.of(running)
        triton = f"gRPC {where.grpc}, metrics {where.metrics}"
        with TritonClient(where.grpc) as client:
            silent = silent_models(client, home.model_repository, deadline_s=_CANARY_S)
    more = {"name": "deployment", "state": "unfinished", "address": "`ctmr up` finishes or undoes it, unless one runs"}
    return [
        {"name": "triton", "state": "running" if triton else "down", "address": triton},
        *({"name": model, "state": "silent", "address": "`ctmr up` starts it again"} for model in silent),
        _row("mlflow", mlflow_ui(home), without_secrets(home.tracking_uri)),
        _row("pipelines", pipelines(home)),
        {"name": "supervisor", **watched},
        *([more] if is_unfinished(home) else []),
    ]


def _row(name: str, daemon: Daemon, otherwise: str = "") -> ServiceRow:
    running = daemon.answering()
    address = f"http://{LOOPBACK}:{running.port}" if running else otherwise
    return {"name": name, "state": "running" if running else "down", "address": address}


def down(home: Home) -> list[ServiceRow]:
    """Stop what runs and return every service; a pipeline run that is stopped so can be submitted again."""
    from ctmr.serving.server import EmbeddedTriton

    pipelines(home).stop()
    EmbeddedTriton(home.triton).stop()
    mlflow_ui(home).stop()
    return status(home)


def mlflow_ui(home: Home) -> Daemon:
    """Return the MLflow server of a home."""
    server = python_server(
        "-m",
        "mlflow",
        "server",
        "--host",
        LOOPBACK,
        "--port",
        PORT,
        "--workers",
        "1",
        "--serve-artifacts",
        "--artifacts-destination",
        str(home.artifacts),
        # Not among the arguments, which every user of the machine can list: it may hold a password.
        environment={"MLFLOW_BACKEND_STORE_URI": home.tracking_uri},
        folder=home.root,
    )
    return Daemon("the MLflow UI", home.root / "mlflow-ui", {HTTP: MLFLOW_PORT}, server)


def pipelines(home: Home) -> Daemon:
    """Return the pipeline endpoint of a home; relative paths in its runs' parameters start where it was started."""
    more = {environment.HOME: str(home.root)}
    server = python_server("-m", "ctmr.kubeflow.local_api", "--port", PORT, environment=more)
    return Daemon("the pipeline endpoint", home.root / "pipeline-endpoint", {HTTP: PIPELINES_PORT}, server)


def pipelines_address() -> str:
    """Return the address of the current home's pipeline endpoint.

    Raises
    ------
    EnvironmentFault
        It does not run.
    """
    running = pipelines(Home.current()).answering()
    if running is None:
        raise EnvironmentFault("the local pipeline endpoint is down; start it with `ctmr up`, or name another address")
    return f"http://{LOOPBACK}:{running.port}"


def pipelines_token(address: str) -> str:
    """Return what the server at an address wants to hear: the current home's token when it is its own endpoint."""
    from ctmr.kubeflow.local_api.server import token_of

    home = Home.current()
    running = pipelines(home).answering()
    own = running is not None and address.rstrip("/") in {f"http://{n}:{running.port}" for n in (LOOPBACK, "localhost")}
    return os.environ.get(TOKEN_VARIABLE) or (token_of(home) if own else "")
