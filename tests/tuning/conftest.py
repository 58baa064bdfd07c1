"""Tuning studies of a few pixels, and what they need: a PostgreSQL server, workers that do not train."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from few_pixels import database, preprocessed, tiny
from studies import trials_of

from ctmr.pipeline.stage import Result, run_stage
from ctmr.pipeline.stages import tune
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home
from ctmr.system.progress import silent
from ctmr.tuning import trial
from ctmr.tuning import worker as study_worker
from ctmr.tuning.study import SLOT, WORKER, Study

__all__ = ["database", "preprocessed", "tiny"]


class PostgreSql:
    """A PostgreSQL server of our own: a new cluster in a folder, on a free port of the loopback, with a password."""

    USER, PASSWORD = "ctmr", "Geh3im/&wort@"

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder, self._who = programs, folder, dict[str, str]()
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root.
            self._who = {"user": "postgres" if "postgres" in {p.pw_name for p in pwd.getpwall()} else "nobody"}
            shutil.chown(folder, **self._who)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = folder / "password"
        secret.write_text(self.PASSWORD)
        words = ("-U", self.USER, "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
        self._run("initdb", "-D", folder / "data", *words)
        self.running = False

    @property
    def address(self) -> str:
        return f"postgresql://{self.USER}:{quote_plus(self.PASSWORD)}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-o", settings, "start")
        self.running = True

    def stop(self) -> None:
        """Go down as if the power failed."""
        self._run("pg_ctl", "-D", self._folder / "data", "-m", "immediate", "stop")
        self.running = False

    def _run(self, program: str, *words: str | Path) -> None:
        subprocess.run(
            [str(self._programs / program), *map(str, words)],
            check=True,
            timeout=120,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._who,
        )


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSql]:
    """A running server, which a test may stop if it starts it again."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not (found[-1].parent / "pg_ctl").is_file():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    # Below pytest's own folder nobody else may look.
    folder = Path(tempfile.mkdtemp(prefix="ctmr-pg-"))
    try:
        server = PostgreSql(found[-1].parent, folder)
        server.start()
        try:
            yield server
        finally:
            if server.running:
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql(postgresql_server: PostgreSql) -> str:
    """Address of an empty database on a PostgreSQL server, password included."""
    import psycopg2

    if not postgresql_server.running:
        postgresql_server.start()
    # What another test's study left there would be gone on with.
    with contextlib.closing(psycopg2.connect(postgresql_server.address)) as connection:
        connection.autocommit = True
        connection.cursor().execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return postgresql_server.address


class Place:
    """A home with a recipe: a study, and the doors to it."""

    def __init__(self, root: Path, recipe: Recipe, preprocessed: Path, database: bytes) -> None:
        self.root, self.recipe, self.preprocessed = root, recipe, preprocessed
        self.inputs = {"preprocessed": preprocessed}
        self.home = Home(root)
        if not root.exists():
            root.mkdir()
            (root / "mlflow.db").write_bytes(database)

    def run(self, **kwargs: Any) -> tuple[Result, dict[str, Any]]:
        """Run the stage; return its result and trials.json."""
        result = run_stage(
            tune.STAGE, inputs=self.inputs, recipe=self.recipe, out=self.root / "out", home=self.home, **kwargs
        )
        return result, json.loads((result.out / "trials.json").read_text())

    def create(self) -> str:
        return tune.create(self.inputs, self.recipe, self.home)

    def work(self, count: int) -> None:
        """Work on the study by so many supervised worker processes."""
        arguments = (self.inputs, self.recipe, self.home, silent)
        threads = [threading.Thread(target=tune.work, args=arguments) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def study(self) -> Study:
        return tune.open_study(self.inputs, self.recipe, self.home)

    def trials(self, state: str = "") -> list[Any]:
        """Return Optuna's trials, of one state if it is named."""
        return [trial for trial in trials_of(self.study) if state in ("", trial.state.name)]

    def running(self) -> dict[int, int]:
        """Return the process ids of workers by the slot they train."""
        return {t.user_attrs[SLOT]: t.user_attrs[WORKER]["pid"] for t in self.trials("RUNNING")}

    def children(self, parent: str) -> list[Any]:
        """Return the MLflow runs below one."""
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        experiment = client.get_run(parent).info.experiment_id
        return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'"))


@pytest.fixture(scope="session")
def place_at(tiny: Recipe, preprocessed: Path, database: bytes) -> Callable[..., Place]:
    """Make a home in a folder, with settings."""

    def make(root: Path, *settings: tuple[str, Any]) -> Place:
        return Place(root, override(tiny, settings), preprocessed, database)

    return make


@pytest.fixture
def place(
    place_at: Callable[..., Place], tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Place]:
    """Make homes by name, with settings."""

    def make(name: str = "home", *settings: tuple[str, Any]) -> Place:
        # MLflow writes the address it was given last into the environment.
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return place_at(tmp_path / name, *settings)

    return make


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a Python script in a session of its own, so that all its processes can be killed at once."""
    started: list[subprocess.Popen[bytes]] = []

    def start(script: str, *arguments: Any) -> subprocess.Popen[bytes]:
        path = tmp_path / f"script-{len(started)}.py"
        path.write_text(script)
        words = [sys.executable, path, *arguments]
        started.append(subprocess.Popen([str(w) for w in words], start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition: Callable[[], Any], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Wait for something to become true."""
    return wait_until


def target(recipe: Recipe) -> float:
    return abs(math.log10(recipe.train.lr_generator / 3e-4)) + abs(recipe.loss.cycle - 9) / 10


@pytest.fixture(scope="module")
def quick_start():
    """Start workers that train by forks of one process that has imported everything; spawned ones need seconds."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        [
            "ctmr.tuning.worker",
            "ctmr.training.trainer",
            "ctmr.tuning.objective",
            "optuna",
            "torch._dynamo",
            "alembic.command",
            "optuna.storages._rdb.models",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_worker, "get_context", lambda method: server)
        yield


class Workers:
    """What worker processes do instead of training: forked, so that they need no import; they must not use torch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        fork = multiprocessing.get_context("fork")
        monkeypatch.setattr(study_worker, "get_context", lambda method: fork)
        self.use(self.quick)

    def use(self, scores: Callable[..., Iterator[trial.Reported]]) -> None:
        self._monkeypatch.setattr(trial, "scores", scores)

    @staticmethod
    def quick(preprocessed: Path, recipe: Recipe) -> Iterator[trial.Reported]:
        """Report twice a score that depends on the parameters alone."""
        for step in (1, 2):
            yield trial.Reported(step, target(recipe) + 2 - step)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Workers that do not train."""
    return Workers(monkeypatch)
