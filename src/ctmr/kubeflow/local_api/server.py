"""The process of the local runner: one a home, on loopback, until it is told to end."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.kubeflow.local_api import FOLDER, NAME, PIPELINES_PORT, TOKEN_FILE
from ctmr.kubeflow.local_api.api import Api
from ctmr.kubeflow.local_api.app import application
from ctmr.kubeflow.local_api.queue import RunQueue
from ctmr.kubeflow.local_api.records import Records
from ctmr.pipeline import kfp_local
from ctmr.system.daemon import LOOPBACK
from ctmr.system.environment import ALLOW_ANY_PIPELINE
from ctmr.system.files import owners_secret, written
from ctmr.system.home import Home
from ctmr.system.locks import locked

CONNECTIONS_END_S = 2
log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ctmr.kubeflow.local_api", description=f"The {NAME}.")
    parser.add_argument("--port", type=int, default=PIPELINES_PORT, help=f"on {LOOPBACK}; default %(default)s")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs side by side; default %(default)s")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home = Home.current()
    try:
        if given.at_once < 1:
            raise InputError(f"--at-once is {given.at_once}; allowed are whole numbers from 1")
        trusted = None if os.environ.get(ALLOW_ANY_PIPELINE) == "1" else kfp_local.shipped_pipeline()
        serve(home, given.port, kfp_local.start, kfp_local.outcome, trusted=trusted, at_once=given.at_once)
    except CtmrError as error:
        print(f"ctmr: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def serve(
    home: Home,
    port: int,
    start: Callable[[Path], subprocess.Popen[bytes]],
    outcome: Callable[[Path], kfp_local.RunOutcome],
    *,
    trusted: Path | None,
    at_once: int = 1,
) -> None:
    """Settle what the last server left, then serve until a signal ends it.

    Parameters
    ----------
    port
        On loopback; 0 is any free one, which the log names.
    start, outcome, at_once
        As `RunQueue` takes them.
    trusted
        Compiled file that may run; None lets every pipeline run.

    Raises
    ------
    EnvironmentFault
        The port is taken, another server serves this home, or the records cannot be opened.
    """
    folder = home.root / FOLDER
    with _only_one(folder), _bound(port) as listener, closing(Records(folder / "records.db")) as records:
        runs = folder / "runs"
        runs.mkdir(mode=0o700, exist_ok=True)
        queue = RunQueue(records, runs, start, outcome, at_once=at_once)
        queue.recover()
        port = int(listener.getsockname()[1])
        app = application(Api(records, queue, trusted), queue, port, token_of(home))
        what = "any pipeline" if trusted is None else f"{trusted} alone"
        log.info("%s on http://%s:%d, records in %s, runs %s", NAME, LOOPBACK, port, folder, what)
        # uvicorn raises the signal that ended it once more; the records are still to be closed then.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        uvicorn.Server(configuration(app)).run(sockets=[listener])


def token_of(home: Home) -> str:
    """Return what a caller of the home's runner must know; made when it is asked for first."""
    return owners_secret(home.root / FOLDER / TOKEN_FILE)


def configuration(app: Starlette) -> uvicorn.Config:
    """Return how the application is served, whatever else is installed beside uvicorn."""
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[("Server", NAME)],
        timeout_graceful_shutdown=CONNECTIONS_END_S,
    )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold a home's records for this process alone: two servers would both run what is pending."""
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    with locked(folder / "lock", busy=f"another {NAME} serves {folder} already; end it with `ctmr down`"):
        yield


@contextmanager
def _bound(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise EnvironmentFault(f"port {port} on {LOOPBACK} cannot be used ({error}); choose another one") from None
        yield listener
