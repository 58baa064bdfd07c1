"""The InferenceService serves the repository as the embedded server does, and names nothing that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ctmr.serving.client import CONTROL_HEADER
from ctmr.serving.server import RESTRICTED

FILE = Path(__file__).resolve().parents[2] / "infra" / "kserve" / "inferenceservice.yaml"


@pytest.fixture
def predictor() -> dict[str, Any]:
    tree = yaml.safe_load(FILE.read_text())
    assert (tree["apiVersion"], tree["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    found: dict[str, Any] = tree["spec"]["predictor"]
    return found


def test_triton_loads_what_it_is_told_and_keeps_control_to_those_who_know_the_key(predictor: dict[str, Any]) -> None:
    options = dict(word.split("=", 1) for word in predictor["model"]["args"])
    assert options["--model-control-mode"] == "explicit" and options["--strict-readiness"] == "false"
    kept = f"{RESTRICTED}:{CONTROL_HEADER}=$(CONTROL_KEY)"
    assert options["--grpc-restricted-protocol"] == options["--http-restricted-api"] == kept
    (variable,) = predictor["model"]["env"]
    assert variable["name"] == "CONTROL_KEY" and set(variable["valueFrom"]) == {"secretKeyRef"}


def test_one_server_has_enough_shared_memory_on_the_port_that_is_named(predictor: dict[str, Any]) -> None:
    assert predictor["minReplicas"] == predictor["maxReplicas"] == 1
    mounted = {mount["name"]: mount["mountPath"] for mount in predictor["model"]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in predictor["volumes"]}
    assert mounted == {"shm": "/dev/shm"} and volumes["shm"]["emptyDir"]["medium"] == "Memory"
    (port,) = predictor["model"]["ports"]
    assert f"--grpc-port={port['containerPort']}" in predictor["model"]["args"]


def test_the_repository_is_that_of_a_home(predictor: dict[str, Any], home: Any) -> None:
    place = home.model_repository.relative_to(home.root)
    assert predictor["model"]["storageUri"] == f"pvc://ctmr-home/{place}"
    assert predictor["model"]["modelFormat"] == {"name": "triton"}
    assert predictor["model"]["protocolVersion"] == "grpc-v2"
