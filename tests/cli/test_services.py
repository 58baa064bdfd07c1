"""Services of a home: each has its row, is started, found and stopped."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import urllib.request

import pytest

from ctmr.cli import services
from ctmr.cli.services import mlflow_ui, pipelines, pipelines_address, pipelines_token
from ctmr.errors import EnvironmentFault
from ctmr.system.daemon import HTTP
from ctmr.tracking.mlflow import Tracking


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_address_of_pipelines_that_are_down_is_a_fault(home):
    with pytest.raises(EnvironmentFault, match="`ctmr up`"):
        pipelines_address()


def test_every_service_has_its_row(home):
    expected = [("triton", "down", ""), ("mlflow", "down", home.tracking_uri), ("pipelines", "down", "")]
    expected.append(("supervisor", "down", ""))
    for rows in (services.status(home), services.down(home)):
        assert [(r["name"], r["state"], r["address"]) for r in rows] == expected


@pytest.mark.slow
def test_the_pipeline_endpoint_is_a_service(home, port):
    service = dataclasses.replace(pipelines(home), ports={HTTP: port}, timeout_s=300.0)
    try:
        assert service.start().port == port
        assert pipelines_address() == f"http://127.0.0.1:{port}"
        bearer = {"Authorization": f"Bearer {pipelines_token(pipelines_address())}"}
        request = urllib.request.Request(f"{pipelines_address()}/apis/v2beta1/healthz", headers=bearer)
        with urllib.request.urlopen(request, timeout=10) as answer:
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
    assert service.running() is None


def test_no_password_is_shown_or_stands_among_the_arguments_of_a_server(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:hush@db/ml")
    assert services.status(home)[1]["address"] == "postgresql://ann:***@db/ml"
    launch = mlflow_ui(home).launch({HTTP: 1}, "id")
    assert "hush" not in " ".join(launch.command)
    assert launch.environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://ann:hush@db/ml"


@pytest.mark.slow
def test_the_mlflow_ui_is_a_service(home, port, monkeypatch, capsys):
    service = dataclasses.replace(mlflow_ui(home), ports={HTTP: port}, timeout_s=300.0)
    try:
        assert service.start().port == port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
            assert answer.read() == b"OK"
        row = {"name": "mlflow", "state": "running", "address": f"http://127.0.0.1:{port}"}
        assert services.status(home)[1] == row
        monkeypatch.setenv("MLFLOW_TRACKING_URI", row["address"])
        tracking = Tracking(home)
        tracking.end(tracking.start("a run", tags={}))
        assert capsys.readouterr().out == "", "a document of JSON would not be one with MLflow's links before it"
    finally:
        service.stop()
    assert service.running() is None


def test_status_shows_a_deployment_that_did_not_end(home):
    assert "deployment" not in [row["name"] for row in services.status(home)]
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "promotion.json").write_text("{}")
    (row,) = [row for row in services.status(home) if row["name"] == "deployment"]
    assert row["state"] == "unfinished" and "ctmr up" in row["address"]
