"""A pipeline of one task with a parameter of each type, and a local runner in this process whose runs are shell."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ctmr.pipeline.kfp_local import FAILED, PARAMETERS, SUCCEEDED, RunOutcome

PIPELINE_SPEC: dict[str, Any] = {
    "components": {"comp-work": {"executorLabel": "exec-work"}},
    "deploymentSpec": {
        "executors": {
            "exec-work": {
                "container": {
                    "image": "python:3.11",
                    "command": ["sh", "-ec", "python3 -m kfp.dsl.executor_main", "print('work')"],
                    "args": ["--executor_input", "{{$}}", "--function_to_execute", "work"],
                }
            }
        }
    },
    "pipelineInfo": {"name": "tiny"},
    "root": {
        "dag": {"tasks": {"work": {"componentRef": {"name": "comp-work"}, "taskInfo": {"name": "work"}}}},
        "inputDefinitions": {
            "parameters": {
                "script": {"parameterType": "STRING"},
                "count": {"parameterType": "NUMBER_INTEGER", "defaultValue": 3.0, "isOptional": True},
                "rate": {"parameterType": "NUMBER_DOUBLE", "defaultValue": 0.5, "isOptional": True},
                "flag": {"parameterType": "BOOLEAN", "isOptional": True},
                "items": {"parameterType": "LIST", "defaultValue": [], "isOptional": True},
                "table": {"parameterType": "STRUCT", "defaultValue": {}, "isOptional": True},
            }
        },
    },
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.0",
}
GRACE_S = 0.5


def shell(folder: Path) -> subprocess.Popen[bytes]:
    """Start a run that is a shell script: its parameter `script`, in its folder."""
    script = json.loads((folder / PARAMETERS).read_text())["script"]
    return subprocess.Popen(["sh", "-c", script], cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL)


def shell_outcome(folder: Path) -> RunOutcome:
    """Return how a script ended: it says so in a file `ended`."""
    with contextlib.suppress(OSError):
        said = (folder / "ended").read_text().strip()
        return RunOutcome(SUCCEEDED) if said == "well" else RunOutcome(FAILED, said, 2, "InputError")
    return RunOutcome(FAILED, "it was killed", 3, "EnvironmentFault")


def wait_until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for a condition; fail when it does not come."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)


TOKEN = "the owner's token"


@dataclass
class Answer:
    """Status and JSON of an answer."""

    status: int
    tree: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """The sentence of a refusal."""
        assert set(self.tree) == {"error", "code", "message", "details"}
        return str(self.tree["message"])


@dataclass
class LocalRunner:
    """A local runner on a free port, and the ways to talk to it."""

    port: int
    folder: Path
    queue: Any
    records: Any
    token: str = TOKEN

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, tree: object = None, headers: dict[str, str] | None = None, raw: bytes = b""
    ) -> Answer:
        """Send one request and return the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}", **(headers or {})}
        with contextlib.closing(connection):
            body = raw or (json.dumps(tree).encode() if tree is not None else None)
            connection.request(method, path if path.startswith("/") else f"/apis/v2beta1/{path}", body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, json.loads(answer.read()), dict(answer.getheaders()))

    def client(self) -> Any:
        """kfp's own client."""
        import kfp

        return kfp.Client(host=self.url, existing_token=TOKEN)

    def submit(self, script: str, **more: Any) -> dict[str, Any]:
        """Submit a script as a run and return its record."""
        body = {
            "display_name": "a run",
            "pipeline_spec": PIPELINE_SPEC,
            "runtime_config": {"parameters": {"script": script}},
        }
        answer = self.call("POST", "runs", body | more)
        assert answer.status == 200, answer.tree
        return answer.tree

    def run(self, key: str) -> dict[str, Any]:
        """Return a run's record."""
        return self.call("GET", f"runs/{key}").tree

    def wait_for(self, path: Path) -> str:
        """Wait until a file has a whole line and return its text."""
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
        return path.read_text()

    def wait(self, key: str, *states: str) -> dict[str, Any]:
        """Wait until a run is in one of the states and return its record."""
        wait_until(lambda: self.run(key)["state"] in states)
        return self.run(key)


@contextlib.contextmanager
def serve_here(folder: Path, trusted: Path | None = None, at_once: int = 1) -> Iterator[LocalRunner]:
    """Serve on a free port from a thread of this process."""
    import uvicorn

    from ctmr.kubeflow.local_api.api import Api
    from ctmr.kubeflow.local_api.app import application
    from ctmr.kubeflow.local_api.queue import RunQueue
    from ctmr.kubeflow.local_api.records import Records
    from ctmr.kubeflow.local_api.server import configuration

    (folder / "runs").mkdir(parents=True, exist_ok=True)
    records = Records(folder / "records.db")
    queue = RunQueue(records, folder / "runs", shell, shell_outcome, at_once=at_once, grace_s=GRACE_S)
    queue.recover()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app = application(Api(records, queue, trusted), queue, port, TOKEN)
        server = uvicorn.Server(configuration(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield LocalRunner(port, folder, queue, records)
        finally:
            server.should_exit = True
            thread.join()
            records.close()


@pytest.fixture
def local_runner(tmp_path: Path) -> Iterator[LocalRunner]:
    """A local runner that runs any pipeline."""
    with serve_here(tmp_path / "pipelines") as runner:
        yield runner


@pytest.fixture(scope="session")
def running() -> Callable[..., contextlib.AbstractContextManager[LocalRunner]]:
    """Serve from a folder of records, with a trusted file or several runs at once."""
    return serve_here


@pytest.fixture
def pipeline_spec() -> dict[str, Any]:
    """A compiled pipeline to change at will."""
    return copy.deepcopy(PIPELINE_SPEC)
