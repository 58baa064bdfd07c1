"""Only the store's own "does not exist" is no champion, no version, no run; every other answer is a fault."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ctmr.errors import EnvironmentFault, InputError
from ctmr.pipeline.inline import resolve_champion
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home
from ctmr.tracking.mlflow import Tracking, Version

EXPERIMENT = {"experiment": {"experiment_id": "1", "name": "ctmr", "lifecycle_stage": "active"}}
ALIASES = [{"alias": "champion", "version": "3"}]
MODEL = {"registered_model": {"name": "tiny", "aliases": ALIASES}}
VERSION = {
    "model_version": {
        "name": "tiny",
        "version": "3",
        "run_id": "r1",
        "tags": [{"key": "ctmr.model_digest", "value": "f00d"}],
    }
}
Answer = tuple[int, bytes] | None
"""Status and body; ``None`` closes the connection without one."""
MISSING: Answer = (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"}')
OUTAGES: dict[str, Answer] = {
    "busy": (503, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}'),
    "failed": (500, b'{"error_code": "INTERNAL_ERROR", "message": "database is gone"}'),
    "a proxy without the page": (404, b"<html>nginx</html>"),
    "a proxy's own page": (200, b"<html>maintenance</html>"),
    "not logged in": (401, b"who are you?"),
    "another fault of the client": (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad"}'),
    "hangs up": None,
}


def found(tree: object) -> Answer:
    return 200, json.dumps(tree).encode()


class Server(ThreadingHTTPServer):
    """An MLflow server that answers each path as it is told."""

    answers: dict[str, Answer]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("mlflow/")[2]
        answer = self.server.answers[name]
        if answer is None:
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Handler) as running:
        running.answers = {
            "experiments/get-by-name": found(EXPERIMENT),
            "registered-models/get": found(MODEL),
            "model-versions/get": found(VERSION),
        }
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


ASKED: dict[str, tuple[str, Callable[[Tracking], object]]] = {
    "champion": ("registered-models/get", lambda t: t.champion("tiny", "champion")),
    "the champion's version": ("model-versions/get", lambda t: t.champion("tiny", "champion")),
    "version": ("model-versions/get", lambda t: t.version("tiny", "3")),
    "run": ("runs/get", lambda t: t.exists("r1")),
}


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.parametrize("asked", ASKED)
def test_an_outage_is_a_fault_of_the_environment(server: Server, home: Home, asked: str, outage: str) -> None:
    path, ask = ASKED[asked]
    server.answers[path] = OUTAGES[outage]
    with pytest.raises(EnvironmentFault, match=r"MLflow at http://127\.0\.0\.1:\d+ failed: ") as caught:
        ask(Tracking(home))
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_run_does_not_begin_while_the_champion_is_unknown(server: Server, home: Home, outage: str) -> None:
    server.answers["registered-models/get"] = OUTAGES[outage]
    with pytest.raises(EnvironmentFault):
        resolve_champion("pictures", Recipe(), home)


def test_what_does_not_exist_is_none(server: Server, home: Home) -> None:
    server.answers |= {"registered-models/get": MISSING, "model-versions/get": MISSING, "runs/get": MISSING}
    tracking = Tracking(home)
    assert tracking.champion("tiny", "champion") is None and tracking.exists("r1") is False
    assert resolve_champion("pictures", Recipe(), home) == {}
    with pytest.raises(InputError, match="has no version 3 of model tiny"):
        tracking.version("tiny", "3")


def test_a_model_without_that_alias_has_no_champion(server: Server, home: Home) -> None:
    server.answers["registered-models/get"] = found({"registered_model": {"name": "tiny"}})
    assert Tracking(home).champion("tiny", "champion") is None


def test_what_an_alias_points_at_is_the_champion(server: Server, home: Home) -> None:
    champion = Tracking(home).champion("tiny", "champion")
    assert champion == Version("tiny", "3", "r1", "f00d", {"model_digest": "f00d"})
