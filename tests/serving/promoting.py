"""A home with a real Triton and a real MLflow in which versions are registered and promoted, also by processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ctmr.pipeline import promotion
from ctmr.pipeline.promotion import Contender, is_unfinished, promote, promotions, recover, registry_lock
from ctmr.serving import model_repository as repo
from ctmr.serving.client import TritonClient
from ctmr.serving.model_repository import Release
from ctmr.serving.server import PORTS, EmbeddedTriton
from ctmr.system.home import Home
from ctmr.tracking.mlflow import TAG, Tracking
from tests.serving.conftest import Exported

NAME, ALIAS, SERVED = "tiny", "champion", "tiny_mr2ct"
KILLED = -signal.SIGKILL
PROCESSES = multiprocessing.get_context("forkserver")
"""Gives each process what was imported once: starting Python and importing MLflow take longer than a deployment."""
PROCESSES.set_forkserver_preload(["tests.serving.promoting", "mlflow", "sqlalchemy.orm", "alembic.command"])


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


def deploy_as_a_process(
    home: Home, candidate: Contender, release: Release, said: Path, ready: Connection, dies_at: int
) -> None:
    """Deploy in a process of its own, which may be killed; what it says goes into a file."""
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    if dies_at:
        die_at(dies_at)
    ready.send(True)
    deploy_here(home, candidate, release)


@dataclass
class Deployment:
    """A deployment in a process of its own."""

    process: Any
    said: Path

    def end(self) -> tuple[int | None, str]:
        """Wait for it; return its exit code and what it said."""
        self.process.join(300)
        return self.process.exitcode, self.said.read_text()


def start(home: Home, candidate: Contender, release: Release, *, dies_at: int = 0) -> Deployment:
    here, there = PROCESSES.Pipe(duplex=False)
    said = home.root.parent / f"said{candidate.version}.txt"
    process = PROCESSES.Process(target=deploy_as_a_process, args=(home, candidate, release, said, there, dies_at))
    process.start()
    there.close()
    here.recv()
    return Deployment(process, said)


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
    code, said = start(place.home, *place.next(), dies_at=step).end()
    assert code in (0, KILLED), said
    return code == 0


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
