"""A home with a real Triton and a real MLflow in which versions are registered and promoted, also by processes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ctmr.pipeline import promotion
from ctmr.pipeline.promotion import Contender, is_unfinished, promote, promotions, recover, registry_lock
from ctmr.serving import model_repository as repo
from ctmr.serving.client import TritonClient
from ctmr.serving.export import ServedSpec
from ctmr.serving.model_repository import Release
from ctmr.serving.server import PORTS, EmbeddedTriton
from ctmr.system.home import Home
from ctmr.tracking.mlflow import TAG, Tracking
from tests.serving.conftest import Exported

NAME, ALIAS, SERVED = "tiny", "champion", "tiny_mr2ct"
KILLED = -signal.SIGKILL
DEPLOY = "from tests.serving.promoting import deploy_as_a_process as d; d()"


def client_of(home: Home) -> TritonClient:
    """Return a client that may control the home's server, which is started on free ports."""
    return EmbeddedTriton(home.triton).client(home.model_repository, dict.fromkeys(PORTS, 0))


@dataclass
class Place:
    """A home with a registry and a Triton, and two models that take turns."""

    home: Home
    models: list[Exported]
    count: int = 0

    def tracking(self) -> Tracking:
        return Tracking(self.home)

    def next(self) -> tuple[Contender, Release]:
        """Register one more version, compared with today's champion."""
        self.count += 1
        tracking = self.tracking()
        champion = tracking.champion(NAME, ALIAS)
        digest = f"digest{self.count}"
        exported = self.models[self.count % 2]
        tags = {"model_digest": digest, "onnx_sha256.mr2ct": exported.spec.generator_sha256}
        made = tracking.client.create_model_version(NAME, "runs:/0/model", tags={TAG + k: v for k, v in tags.items()})
        known = promotion.identity(champion)
        candidate = Contender(NAME, str(made.version), digest, ALIAS, True, known, False, "")
        return candidate, exported.release(SERVED, int(made.version))

    def disagreement(self) -> str:
        """Do what `ctmr up` does, then return how registry, Triton and record differ; empty when they agree."""
        served = client_of(self.home)
        with registry_lock(self.home):
            recover(self.home)
        champion = self.tracking().champion(NAME, ALIAS)
        with served as client:
            live = client.live_version(SERVED)
        recorded = promotions(self.home)[-1]["version"] if promotions(self.home) else None
        found = (champion.version if champion else None, live, recorded)
        left = repo.leftover_candidates(self.home.model_repository)
        agree = len(set(found)) == 1 and not left and not is_unfinished(self.home)
        return "" if agree else f"registry, Triton, record: {found}; left: {left}, {is_unfinished(self.home)}"


def deploy_here(home: Home, candidate: Contender, release: Release) -> None:
    """Do what the stage deploy does, with a proof that only asks whether the version answers."""
    tracking, served = Tracking(home), client_of(home)
    with registry_lock(home), served as client:
        recover(home, tracking)
        if candidate.why_not(tracking.champion(NAME, ALIAS), ""):
            return

        def prove(name: str, version: str) -> None:
            spec, _ = client.spec(name, version)
            assert spec.generator_sha256 == release.spec.generator_sha256

        promote(candidate, [release], prove, home=home, tracking=tracking, client=client)


def deploy_as_a_process() -> None:
    """Deploy what a JSON on the command line says."""
    tree = json.loads(sys.argv[1])
    spec = ServedSpec.from_json(tree["spec"])
    release = Release(SERVED, tree["candidate"]["version"], Path(tree["generator"]), Path(tree["range"]), spec)
    if tree["dies_at"]:
        die_at(tree["dies_at"])
    print("ready", flush=True)
    deploy_here(Home(Path(tree["home"])), Contender(**tree["candidate"]), release)


def start(home: Home, candidate: Contender, release: Release, *, dies_at: int = 0) -> subprocess.Popen[str]:
    tree = {
        "home": str(home.root),
        "candidate": dataclasses.asdict(candidate),
        "generator": str(release.generator),
        "range": str(release.range),
        "spec": release.spec.to_json(),
        "dies_at": dies_at,
    }
    command = [sys.executable, "-W", "ignore", "-c", DEPLOY, json.dumps(tree)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


STEPS: list[tuple[Any, str]] = [
    (promotion, "write_file"),
    (promotion, "append_line"),
    (repo, "write_version"),
    (repo, "set_versions"),
    (repo, "write_configs"),
    (TritonClient, "load"),
    (TritonClient, "unload"),
    (Tracking, "tag_version"),
    (Tracking, "alias"),
    (Path, "unlink"),
]
"""What a deployment calls that changes disk, Triton or registry."""


def deploy_until_step(place: Place, step: int) -> bool:
    """Deploy in a process that dies as if killed before a step; True when it had fewer steps and ended by itself."""
    process = start(place.home, *place.next(), dies_at=step)
    said = process.communicate(timeout=300)[1]
    assert process.returncode in (0, KILLED), said
    return process.returncode == 0


def die_at(step: int) -> None:
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*words: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*words, **more)

        return counting

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


@contextmanager
def made_place(root: Path, models: list[Exported]) -> Iterator[Place]:
    """Make a home whose first version is champion and live, and end its Triton afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "CTMR_PARENT_RUN"):
            patch.delenv(name, raising=False)
        home = Home(root / "home")
        home.root.mkdir()
        made = Place(home, models)
        made.tracking().client.create_registered_model(NAME)
        deploy_here(home, *made.next())
        assert made.disagreement() == "" and promotions(home)[-1]["version"] == "1"
        try:
            yield made
        finally:
            EmbeddedTriton(home.triton).stop()
