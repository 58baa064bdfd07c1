"""Servers of a home are started once, found again, stopped with everything below them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from ctmr.cli import services
from ctmr.cli.services import mlflow_ui, pipelines, pipelines_address
from ctmr.errors import EnvironmentFault
from ctmr.system.daemon import Daemon
from ctmr.system.processes import start_time

# Answers on its port, and has a child.
SERVER = """
import os, socket, subprocess, sys, time
below = subprocess.Popen(["sleep", "60"])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("child", below.pid, "variable", os.environ.get("SHADE"), "folder", os.getcwd(), flush=True)
while True:
    listener.accept()
"""


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def daemon(home, port, tmp_path):
    made = Daemon(
        "it",
        "the test server",
        home.root / "it",
        port,
        ("-c", SERVER, "{port}"),
        environment={"SHADE": "blue"},
        folder=tmp_path,
    )
    yield made
    made.stop()


def pid(daemon) -> int:
    return json.loads(daemon.record.read_text())["pid"]


def said(daemon) -> list[str]:
    while not daemon.log.read_text().endswith("\n"):
        time.sleep(0.01)
    return daemon.log.read_text().split()


def test_it_starts_once_and_answers_on_its_port(daemon, port, tmp_path):
    assert daemon.row() == {"name": "it", "state": "down", "address": ""}
    assert daemon.start() == port
    first = pid(daemon)
    assert daemon.start() == port
    assert pid(daemon) == first
    assert daemon.row() == {"name": "it", "state": "running", "address": f"http://127.0.0.1:{port}"}
    assert said(daemon)[2:] == ["variable", "blue", "folder", str(tmp_path)]


def test_it_stops_with_what_it_started(daemon):
    daemon.start()
    child = int(said(daemon)[1])
    daemon.stop()
    assert start_time(child) is None
    assert daemon.answers_on() is None
    assert daemon.row(otherwise="elsewhere")["address"] == "elsewhere"
    assert not daemon.record.exists()
    daemon.stop()


def test_a_killed_one_is_down_and_starts_again_without_leftovers(daemon):
    daemon.start()
    child, first = int(said(daemon)[1]), pid(daemon)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert daemon.answers_on() is None
    daemon.start()
    assert pid(daemon) != first
    assert start_time(child) is None


def test_a_taken_port_gives_the_next_one(daemon, port):
    with socket.create_server(("127.0.0.1", port)):
        assert daemon.start() > port
    assert daemon.answers_on() != port


def test_a_stranger_on_the_port_is_not_taken_for_it(daemon, port, monkeypatch):
    # Takes the port after it was found to be free.
    monkeypatch.setattr(services, "_free_port", lambda preferred: preferred)
    deaf = dataclasses.replace(daemon, arguments=("-c", "import time; time.sleep(60)"))
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(EnvironmentFault, match=r"did not come up .*[Aa]ddress already in use"):
            daemon.start()
        monkeypatch.setattr(services, "START_TIMEOUT_S", 0.3)
        with pytest.raises(EnvironmentFault, match="did not come up"):
            deaf.start()
    assert daemon.row()["state"] == "down"


def test_a_recycled_process_number_is_not_taken_for_it(daemon):
    daemon.start()
    record = json.loads(daemon.record.read_text())
    running = dict(record)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        daemon.record.write_text(json.dumps({**record, "pid": stranger.pid}))
        assert daemon.answers_on() is None
        daemon.stop()
        assert stranger.poll() is None
        stranger.kill()
    daemon.record.write_text(json.dumps(running))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": 1, "port": 1}'])
def test_an_unreadable_record_is_no_server(daemon, content):
    daemon.record.parent.mkdir(parents=True)
    daemon.record.write_text(content)
    assert daemon.answers_on() is None
    daemon.stop()


def test_one_that_ends_at_once_is_a_fault_with_its_last_words(daemon):
    broken = dataclasses.replace(daemon, arguments=("-c", "raise SystemExit('the moon is full')"))
    with pytest.raises(EnvironmentFault, match=r"the test server did not come up .*the moon is full \(its log is"):
        broken.start()
    assert not broken.record.exists()


def test_one_that_never_answers_is_ended(daemon, monkeypatch):
    monkeypatch.setattr(services, "START_TIMEOUT_S", 0.3)
    silent = dataclasses.replace(daemon, arguments=("-c", "import time; print('hm', flush=True); time.sleep(60)"))
    with pytest.raises(EnvironmentFault, match="did not come up"):
        silent.start()
    assert not silent.record.exists()


def test_the_address_of_pipelines_that_are_down_is_a_fault(home):
    with pytest.raises(EnvironmentFault, match="`ctmr up`"):
        pipelines_address()


def test_every_service_has_its_row(home):
    expected = [("triton", "down", ""), ("mlflow", "down", home.tracking_uri), ("pipelines", "down", "")]
    for rows in (services.status(home), services.down(home)):
        assert [(r["name"], r["state"], r["address"]) for r in rows] == expected


@pytest.mark.slow
def test_the_pipeline_endpoint_is_a_service(home, port):
    service = dataclasses.replace(pipelines(home), port=port)
    try:
        assert service.start() == port
        assert pipelines_address() == f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{pipelines_address()}/apis/v2beta1/healthz", timeout=10) as answer:
            assert json.load(answer)["pipeline_store"] == "ctmr local runner"
        assert (home.root / "pipelines" / "records.db").exists()
        second = subprocess.run(
            [sys.executable, "-m", "ctmr.kubeflow.local_api", "--port", "0"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 3
        assert "end it with `ctmr down`" in second.stderr
    finally:
        service.stop()
    assert service.row()["state"] == "down"


@pytest.mark.slow
def test_the_mlflow_ui_is_a_service(home, port):
    service = dataclasses.replace(mlflow_ui(home), port=port)
    try:
        assert service.start() == port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
            assert answer.read() == b"OK"
    finally:
        service.stop()
    assert service.row(otherwise=home.tracking_uri) == {
        "name": "mlflow",
        "state": "down",
        "address": home.tracking_uri,
    }
