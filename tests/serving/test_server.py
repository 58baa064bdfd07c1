"""The bundled Triton starts once, survives its starter, comes back after a crash and leaves nothing behind."""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from ctmr.errors import EnvironmentFault
from ctmr.serving import model_repository as repo
from ctmr.serving import server as embedded
from ctmr.serving.client import TritonClient
from ctmr.serving.rollout import canary
from ctmr.serving.server import PORTS, EmbeddedTriton, Endpoint, answers
from ctmr.system import daemon

pytestmark = pytest.mark.slow
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("pytriton") is None,
    reason="the bundled Triton is not installed (pip install --no-deps nvidia-pytriton)",
)

ANY = dict.fromkeys(PORTS, 0)
MODEL = "tiny_mr2ct"


@pytest.fixture
def triton(tmp_path):
    triton = EmbeddedTriton(tmp_path / "state")
    yield triton
    triton.stop()


@needs_wheel
def test_it_serves_what_the_repository_holds_and_comes_back_after_a_crash(triton, tmp_path, exported):
    repo.write_version(tmp_path / "models", exported[0].release(MODEL, 4))
    endpoint = triton.start(tmp_path / "models", ANY)
    assert triton.start(tmp_path / "models", ANY) == endpoint, "a second start reuses the server"
    with TritonClient(endpoint.grpc) as client:
        assert canary(client, MODEL) == "4"
    before = triton.status()
    processes, segments = triton.leftovers()
    assert segments and len(processes) == 4

    os.kill(before.process.pid, signal.SIGKILL)
    while triton.status() is not None:
        time.sleep(0.02)
    endpoint = triton.start(tmp_path / "models", ANY)
    assert triton.status().process != before.process and Endpoint.of(triton.status()) == endpoint
    with TritonClient(endpoint.grpc) as client:
        assert canary(client, MODEL) == "4"

    assert triton.stop()
    assert triton.status() is None and triton.leftovers() == ([], [])
    assert not triton.stop()


@needs_wheel
def test_it_outlives_the_process_that_started_it(triton, tmp_path):
    script = (
        "import sys; from pathlib import Path; from ctmr.serving.server import EmbeddedTriton;"
        "EmbeddedTriton(Path(sys.argv[1])).start(Path(sys.argv[2]), dict(grpc=0, metrics=0))"
    )
    secret = {**os.environ, "AWS_SECRET_ACCESS_KEY": "hush"}
    command = [sys.executable, "-c", script, str(tmp_path / "state"), str(tmp_path / "models")]
    subprocess.run(command, check=True, env=secret, timeout=60)
    running = triton.status()
    assert running is not None and answers(running)
    process = Path(f"/proc/{running.process.pid}")
    assert b"hush" not in (process / "environ").read_bytes()
    key = triton.state_dir / "control.key"
    assert key.stat().st_mode & 0o077 == 0 and (process / "environ").stat().st_mode & 0o077 == 0
    assert key.read_bytes() not in (process / "cmdline").read_bytes(), (
        "everybody may read what a process was started with"
    )
    with pytest.raises(EnvironmentFault, match=r"already serves .*models, not .*others; stop it first"):
        triton.start(tmp_path / "others", ANY)


EVIL = """
import pathlib
class TritonPythonModel:
    def initialize(self, args):
        pathlib.Path({witness!r}).touch()
"""


@needs_wheel
def test_nobody_without_the_key_loads_code_shares_memory_or_traces(triton, tmp_path):
    endpoint = triton.start(tmp_path / "models", ANY)
    witness = tmp_path / "witness"
    config = json.dumps({"backend": "python", "input": [], "output": []})
    files = {"file:1/model.py": EVIL.format(witness=str(witness)).encode()}
    asked = {
        "load": lambda c, h: c.load_model("evil", headers=h, config=config, files=files),
        "unload": lambda c, h: c.unload_model("evil", headers=h),
        "index": lambda c, h: c.get_model_repository_index(headers=h),
        "share": lambda c, h: c.register_system_shared_memory("r", "/ctmr_x", 8, headers=h),
        "shared": lambda c, h: c.get_system_shared_memory_status(headers=h),
        "trace": lambda c, h: c.update_trace_settings(settings={"trace_file": str(witness)}, headers=h),
        "log": lambda c, h: c.update_log_settings({"log_file": str(witness)}, headers=h),
    }
    guesses = [{}, {"triton-grpc-protocol-ctmr-control": "guess"}, {"triton-grpc-protocol-ctmr-control": ""}]
    with grpcclient.InferenceServerClient(endpoint.grpc) as stranger:
        for (name, call), headers in itertools.product(asked.items(), guesses):
            with pytest.raises(InferenceServerException, match="restricted"):
                call(stranger, headers)
            assert not witness.exists(), name
        assert stranger.is_server_ready()
    with TritonClient(endpoint.grpc) as client, pytest.raises(EnvironmentFault, match="set CTMR_TRITON_CONTROL_KEY"):
        client.index()
    with triton.client(tmp_path / "models") as client:
        assert client.index() == ()


@needs_wheel
def test_memory_comes_back_after_a_giant_request_is_refused(triton, tmp_path, exported):
    repo.write_version(tmp_path / "models", exported[0].release(MODEL, 1))
    endpoint = triton.start(tmp_path / "models", ANY)
    resident = psutil.Process(triton.status().process.pid).memory_info
    before = resident().rss
    with grpcclient.InferenceServerClient(endpoint.grpc) as client:
        declared = client.get_model_metadata(MODEL).inputs[0]
        giant = np.zeros((1, 1, 4096, 16384), triton_to_np_dtype(declared.datatype))
        given = grpcclient.InferInput(declared.name, giant.shape, declared.datatype)
        given.set_data_from_numpy(giant)
        for _ in range(2):
            with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
                client.infer(MODEL, [given])
    end = time.monotonic() + 30
    while resident().rss > before + giant.nbytes // 4 and time.monotonic() < end:
        time.sleep(0.1)
    assert resident().rss - before < giant.nbytes // 4


@needs_wheel
def test_no_web_page_reaches_the_server(triton, tmp_path):
    """A page sends HTTP/1.1; the only port that answers it knows metrics and nothing else."""
    endpoint = triton.start(tmp_path / "models", ANY)
    body = b"{}"
    for port in triton.status().ports.values():
        for path in ("/v2/repository/models/evil/load", "/v2/health/ready"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("POST", path, body, {"Origin": "http://evil.example", "Content-Type": "text/plain"})
            try:
                assert connection.getresponse().status in (404, 405)
            except (http.client.HTTPException, OSError):
                assert port == triton.status().ports["grpc"]
            connection.close()
    assert endpoint.metrics.endswith("/metrics")


@needs_wheel
def test_busy_ports_are_replaced_by_free_ones_and_recorded(triton, tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        endpoint = triton.start(tmp_path / "models", dict.fromkeys(PORTS, taken))
        recorded = triton.status().ports
        assert taken not in recorded.values() and len(set(recorded.values())) == 2
        assert endpoint.grpc == f"127.0.0.1:{recorded['grpc']}"


@needs_wheel
def test_ports_that_another_server_takes_in_between_are_left_to_it(triton, tmp_path, monkeypatch):
    other = EmbeddedTriton(tmp_path / "other")
    theirs = other.start(tmp_path / "models", ANY)
    found, asked = [other.status().ports], daemon.free_ports
    monkeypatch.setattr(daemon, "free_ports", lambda wanted: found.pop() if found else asked(wanted))
    try:
        ours = triton.start(tmp_path / "models", ANY)
        assert not found and ours.grpc != theirs.grpc
        assert answers(triton.status()) and answers(other.status())
        assert not answers(replace(triton.status(), ports=other.status().ports)), "a stranger's answer"
    finally:
        other.stop()


@needs_wheel
def test_a_server_that_does_not_come_up_is_ended_and_its_last_words_are_told(triton, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "models", lambda repository: ("nothing", "--no-such-option"))
    monkeypatch.setattr(embedded, "answers", lambda running: False)
    with pytest.raises(EnvironmentFault, match=r"Triton did not come up on port .+: .+ \(its log is .*triton\.log\)"):
        triton.start(tmp_path / "models", ANY, timeout_s=1)
    assert triton.status() is None and triton.leftovers() == ([], [])


def test_without_the_wheel_it_says_what_to_do(triton, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="pip install --no-deps nvidia-pytriton"):
        triton.start(tmp_path / "models")
