"""The embedded Triton comes back when it or a model's process dies, and does not when a person stopped it."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctmr.cli import services
from ctmr.errors import EnvironmentFault
from ctmr.serving import model_repository as repo
from ctmr.serving.client import TritonClient
from ctmr.serving.rollout import canary
from ctmr.serving.server import PORTS, EmbeddedTriton, Endpoint
from ctmr.serving.supervision import FILE, Supervision
from ctmr.system.home import Home
from ctmr.system.locks import locked
from ctmr.system.processes import running_programs
from ctmr.tracking.names import Part
from tests.serving.conftest import Exported

pytestmark = pytest.mark.slow

MODEL, VERSION = "tiny_mr2ct", "4"
RETRY_FOR_S = 120.0


class Watched:
    """A home with a supervised Triton that serves one version."""

    def __init__(self, home: Home) -> None:
        self.home, self.triton = home, EmbeddedTriton(home.triton)
        self.address = self.triton.start(home.model_repository, dict.fromkeys(PORTS, 0)).grpc
        self.supervise()

    def supervise(self) -> Any:
        return self.triton.supervise(self.home.model_repository, self.home.registry_lock, every_s=2.0)

    @property
    def count(self) -> int:
        return Supervision.read(self.home.triton).count

    def kill_stub(self, part: Part) -> None:
        mark = f"{self.home.model_repository}/{MODEL}{part}/{VERSION}/".encode()
        for process in self.triton.leftovers()[0]:
            if mark in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                os.kill(process.pid, signal.SIGKILL)
                return
        raise AssertionError("there is such a process")

    def kill_server(self) -> None:
        running = self.triton.status()
        assert running is not None
        os.kill(running.process.pid, signal.SIGKILL)

    def answers(self) -> bool:
        with TritonClient(self.address) as client:
            return canary(client, MODEL) == VERSION


def until(what: Callable[[], bool], seconds: float = 90.0) -> float:
    """Wait for something and return how long it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, exported: list[Exported]) -> Iterator[Watched]:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the bundled Triton is not installed (pip install --no-deps nvidia-pytriton)")
    home = Home(tmp_path_factory.mktemp("watched") / "home")
    repo.write_version(home.model_repository, exported[0].release(MODEL, int(VERSION)))
    made = Watched(home)
    yield made
    made.triton.stop()


class PatientClients:
    """Hospitals that call in a loop and repeat a call that failed for want of the server, as the docs tell them to."""

    def __init__(self, watched: Watched, array: np.ndarray, wanted: np.ndarray) -> None:
        self.watched, self.array, self.wanted = watched, array, wanted
        self.lost, self.wrong, self.answered, self.repeated = list[str](), 0, 0, 0
        self.longest_s, self.stop = 0.0, threading.Event()

    def ask(self) -> None:
        with TritonClient(self.watched.address) as client:
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    answer = self.patiently(client, began + RETRY_FOR_S)
                except Exception as error:
                    self.lost.append(str(error))
                    continue
                self.answered += 1
                self.wrong += bool(np.abs(answer - self.wanted).max() > 0.55)
                self.longest_s = max(self.longest_s, time.monotonic() - began)

    def patiently(self, client: TritonClient, end: float) -> np.ndarray:
        while True:
            try:
                return client.translate_array(MODEL, self.array, VERSION, deadline_s=30)
            except EnvironmentFault:
                self.repeated += 1
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def __enter__(self) -> PatientClients:
        self.threads = [threading.Thread(target=self.ask) for _ in range(4)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize(
    ("what", "kill"),
    [
        ("generator", lambda watched: watched.kill_stub(Part.GENERATOR)),
        ("volume model", lambda watched: watched.kill_stub(Part.VOLUME)),
        ("server", Watched.kill_server),
    ],
)
def test_patient_clients_lose_nothing_when_a_models_process_or_the_server_is_killed(
    watched: Watched, exported: list[Exported], array: np.ndarray, what: str, kill: Callable[[Watched], None]
) -> None:
    before = watched.count
    with PatientClients(watched, array, exported[0].by_torch(array)) as clients:
        until(lambda: clients.answered > 8)
        kill(watched)
        seconds = until(lambda: watched.count > before)
        goal = clients.answered + 8
        until(lambda: clients.answered > goal)
    assert not clients.lost and not clients.wrong, clients.lost[:3]
    last = Supervision.read(watched.home.triton).restarts[-1]
    print(
        f"{what} killed: started again after {seconds:.1f} s, {last.seconds:g} s of it the attempt; the "
        f"longest call took {clients.longest_s:.1f} s, {clients.answered} were answered, {clients.repeated} repeated"
    )
    running = watched.triton.status()
    assert running is not None and Endpoint.of(running).grpc == watched.address, "clients find it where it was"


def test_the_status_says_what_was_started_again_when_and_why(watched: Watched) -> None:
    watched.kill_server()
    before = watched.count
    until(lambda: watched.count > before)
    row = services.status(watched.home)[3]
    assert (row["name"], row["state"]) == ("supervisor", "running")
    assert f"started again {before + 1} times, last the server at 20" in row["address"]
    assert "its process had ended" in row["address"]


def test_it_waits_while_a_rollout_holds_the_lock(watched: Watched) -> None:
    before = watched.count
    with locked(watched.home.registry_lock):
        watched.kill_stub(Part.GENERATOR)
        time.sleep(6)
        assert watched.count == before
    until(lambda: watched.count > before)
    assert watched.answers()


def test_its_own_death_harms_nothing_and_the_next_command_starts_it_anew(watched: Watched) -> None:
    first = watched.triton.supervisor().running()
    assert first is not None
    os.kill(first.process.pid, signal.SIGKILL)
    until(lambda: not first.process.lives)
    assert watched.answers()
    assert services.status(watched.home)[3]["state"] == "down"
    second = watched.supervise()
    assert second.process != first.process and watched.supervise().process == second.process, "and it is one alone"
    before = watched.count
    watched.kill_server()
    until(lambda: watched.count > before)


def test_what_a_person_stopped_stays_down_and_nothing_is_left(watched: Watched) -> None:
    supervisor = watched.triton.supervisor().running()
    assert supervisor is not None
    assert watched.triton.stop()
    assert not supervisor.process.lives
    time.sleep(4)
    assert watched.triton.status() is None and watched.triton.leftovers() == ([], [])
    assert running_programs("python", str(watched.triton.state_dir)) == []


def test_it_ends_by_itself_when_its_record_is_gone(watched: Watched) -> None:
    running = watched.supervise()
    watched.triton.supervisor().record.unlink()
    until(lambda: not running.process.lives)


def test_a_damaged_record_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    assert Supervision.read(tmp_path) == Supervision()
    Supervision.failed(tmp_path, "it does not come up")
    assert Supervision.read(tmp_path).sentence() == "it does not come up"
    Supervision.restarted(tmp_path, "the server", "why", 1.25)
    assert Supervision.read(tmp_path).trouble == "" and Supervision.read(tmp_path).count == 1
