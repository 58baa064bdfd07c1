"""Services on this machine: Triton, the MLflow UI and the pipeline endpoint, started on loopback, found, stopped."""

from __future__ import annotations

from ctmr.errors import EnvironmentFault
from ctmr.kubeflow.local_api import PIPELINES_PORT
from ctmr.system.daemon import LOOPBACK, PORT, Daemon, ServiceRow
from ctmr.system.environment import HOME
from ctmr.system.home import Home

MLFLOW_PORT = 5000


def up(home: Home) -> list[ServiceRow]:
    """Start what is down and return every service with its address."""
    from ctmr.serving.server import EmbeddedTriton

    EmbeddedTriton(home.triton).start(home.model_repository)
    mlflow_ui(home).start()
    pipelines(home).start()
    return status(home)


def status(home: Home) -> list[ServiceRow]:
    """Return every service: name, state, address."""
    from ctmr.serving.server import EmbeddedTriton

    running = EmbeddedTriton(home.triton).status()
    rows = [{"name": "triton", "state": "running" if running else "down", "address": ""}]
    if running:
        where = running.endpoint
        rows[0]["address"] = f"gRPC {where.grpc}, HTTP {where.http}, metrics {where.metrics}"
    return [*rows, mlflow_ui(home).row(otherwise=home.tracking_uri), pipelines(home).row()]


def down(home: Home) -> list[ServiceRow]:
    """Stop what runs and return every service; a pipeline run that is stopped so can be submitted again."""
    from ctmr.serving.server import EmbeddedTriton

    pipelines(home).stop()
    EmbeddedTriton(home.triton).stop()
    mlflow_ui(home).stop()
    return status(home)


def mlflow_ui(home: Home) -> Daemon:
    """Return the MLflow server of a home."""
    command = (
        "-m",
        "mlflow",
        "server",
        "--host",
        LOOPBACK,
        "--port",
        PORT,
        "--workers",
        "1",
        "--backend-store-uri",
        home.tracking_uri,
        "--serve-artifacts",
        "--artifacts-destination",
        str(home.artifacts),
    )
    return Daemon("mlflow", "the MLflow UI", home.root / "mlflow-ui", MLFLOW_PORT, command, folder=home.root)


def pipelines(home: Home) -> Daemon:
    """Return the pipeline endpoint of a home; relative paths in its runs' parameters start where it was started."""
    command = ("-m", "ctmr.kubeflow.local_api", "--port", PORT)
    state = home.root / "pipeline-endpoint"
    environment = {HOME: str(home.root)}
    return Daemon("pipelines", "the pipeline endpoint", state, PIPELINES_PORT, command, environment=environment)


def pipelines_address() -> str:
    """Return the address of the current home's pipeline endpoint.

    Raises
    ------
    EnvironmentFault
        It does not run.
    """
    port = pipelines(Home.current()).answers_on()
    if port is None:
        raise EnvironmentFault("the local pipeline endpoint is down; start it with `ctmr up`, or name another address")
    return f"http://{LOOPBACK}:{port}"
