"""A version goes live only when it was proven; until then, and when it was not, the old one answers every call."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.serving import model_repository as repo
from ctmr.serving.client import TritonClient
from ctmr.serving.rollout import RolloutFailed, canary, deploy, revive, silent_models
from ctmr.tracking.names import Part
from tests.serving.load import Load

pytestmark = pytest.mark.slow


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def prover(client, exported, array):
    """Golden inference: the version's answer equals that of model `number` in PyTorch."""

    def prover(number):
        wanted = exported[number].by_torch(array)

        def prove(model, version):
            difference = np.abs(client.translate_array(model, array, version) - wanted).max()
            if difference > 1:
                raise CtmrError(f"golden inference differs by {difference:g} HU")

        prove.array = array
        return prove

    return prover


def loaded(client, model):
    return {(m.model.removeprefix(model), m.version) for m in client.index() if model in m.model and m.state == "READY"}


def all_parts(version):
    return {(part.value, version) for part in Part}


@pytest.fixture(scope="module")
def live(server, exported):
    """A model whose version 2 is live; a failed rollout leaves it so."""
    with server.client() as client:
        report = deploy(client, server.repository, exported[0].release("live_mr2ct", 2), lambda *_: None)
    assert not report.reason and (report.previous, report.live) == (None, "2")
    return "live_mr2ct"


def as_before(server, client, live):
    """Version 2 alone is loaded and the default, and nothing is left of what was tried."""
    return (
        client.live_version(live) == "2"
        and loaded(client, live) == all_parts("2")
        and repo.versions(server.repository, live) == ("2",)
        and {repo.served_versions(server.repository, live, part) for part in Part} == {("2",)}
        and repo.leftover_candidates(server.repository) == ()
    )


def test_a_version_that_fails_its_proof_is_never_answered_with(server, client, live, exported, array, prover):
    wanted = {2: exported[0].by_torch(array)}
    with Load(server.endpoint.grpc, live, array, wanted) as load, pytest.raises(RolloutFailed) as caught:
        deploy(client, server.repository, exported[1].release(live, 3), prover(0))
    assert load.lost_nothing and load.versions == {"2"}, load.errors[:3]
    report = caught.value.report
    assert report.reason and report.live == "2" and "golden inference differs by" in report.reason
    assert "version 2 is still live" in str(caught.value)
    assert as_before(server, client, live)


@pytest.mark.parametrize("new", [3, pytest.param(1, marks=pytest.mark.drill)])
def test_a_version_that_fails_only_under_its_real_name_is_rolled_back(
    server, client, live, exported, array, prover, new
):
    def prove(name, version):
        prover(1)(name, version)
        if name == live:
            raise CtmrError("wrong in the end")

    wanted = {2: exported[0].by_torch(array), new: exported[1].by_torch(array)}
    with Load(server.endpoint.grpc, live, array, wanted) as load:
        with pytest.raises(RolloutFailed, match="wrong in the end; version 2 is still live"):
            deploy(client, server.repository, exported[1].release(live, new), prove)
        load.wait_for_answers()
    assert load.lost_nothing, load.errors[:3]
    assert load.answers[-1][0] == "2"
    assert as_before(server, client, live)


def test_a_graph_that_cannot_be_loaded_never_goes_live(server, client, live, exported, prover, tmp_path):
    junk = tmp_path / "generator.onnx"
    junk.write_bytes(b"junk")
    spec = exported[1].spec.model_copy(update={"generator_sha256": hashlib.sha256(b"junk").hexdigest()})
    broken = dataclasses.replace(exported[1].release(live, 3), generator=junk, spec=spec)
    with pytest.raises(RolloutFailed, match="could not be loaded") as caught:
        deploy(client, server.repository, broken, prover(1))
    assert str(server.repository) not in str(caught.value)
    assert as_before(server, client, live)


def test_other_content_under_the_live_number_is_refused(server, client, live, exported, prover):
    with pytest.raises(InputError, match="other content"):
        deploy(client, server.repository, exported[1].release(live, 2), prover(1))
    prover(0)(live, "2")
    assert as_before(server, client, live)


@pytest.mark.drill
def test_an_interrupted_rollout_is_cleared_up(server, client, live, exported, prover):
    repo.write_version(server.repository, exported[1].release(live, 3).as_candidate())

    def interrupted(name, version):
        if name == live:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(client, server.repository, exported[1].release(live, 3), interrupted)
    assert as_before(server, client, live)


@pytest.mark.parametrize("part", [Part.GENERATOR, pytest.param(Part.VOLUME, marks=pytest.mark.drill)])
def test_the_canary_notices_a_dead_process_and_revive_brings_it_back(server, client, live, prover, part):
    assert canary(client, live) == "2"
    mark = f"{server.repository}/{live}{part}/2/".encode()
    stubs = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if mark in commands(path)]
    assert stubs
    for pid in stubs:
        os.kill(pid, signal.SIGKILL)
    assert loaded(client, live) == all_parts("2"), "Triton itself keeps calling it ready"
    with pytest.raises((EnvironmentFault, InputError)):
        canary(client, live, deadline_s=5)
    assert silent_models(client, server.repository, deadline_s=5) == (live,)
    assert revive(client, server.repository, live) == "2"
    assert silent_models(client, server.repository) == ()
    prover(0)(live, "2")


def test_a_new_version_takes_over_under_load_without_losing_a_call(server, client, live, exported, array, prover):
    wanted = {2: exported[0].by_torch(array), 4: exported[1].by_torch(array)}
    change_under_load(server, client, live, exported[1].release(live, 4), prover(1), wanted, "2")
    assert repo.versions(server.repository, live) == ("2", "4"), "the way back stays open"


@pytest.mark.drill
def test_an_older_version_takes_over_under_load_without_losing_a_call(server, client, exported, array, prover):
    name = "backwards_mr2ct"
    assert deploy(client, server.repository, exported[1].release(name, 4), prover(1)).live == "4"
    wanted = {2: exported[0].by_torch(array), 4: exported[1].by_torch(array)}
    change_under_load(server, client, name, exported[0].release(name, 2), prover(0), wanted, "4")
    again = deploy(client, server.repository, exported[0].release(name, 2), prover(0))
    assert not again.reason and again.previous == "2", "deploying the live version again proves it again"


def change_under_load(server, client, model, release, prove, wanted, previous):
    with Load(server.endpoint.grpc, model, prove.array, wanted) as load:
        report = deploy(client, server.repository, release, prove)
        load.wait_for_answers()
    assert not report.reason and (report.previous, report.live) == (previous, release.version)
    assert load.lost_nothing, load.errors[:3]
    assert load.versions == {previous, release.version} and load.answers[-1][0] == release.version
    assert loaded(client, model) == all_parts(release.version), "the old version retired, the candidate is gone"


@pytest.mark.drill
def test_a_client_that_prepared_for_a_retired_version_follows_to_its_successor(server, client, exported, head, prover):
    name = "followed_mr2ct"
    deploy(client, server.repository, exported[0].release(name, 1), prover(0))
    errors, versions, stop = [], [], threading.Event()

    def ask():
        with server.client() as own:
            while not stop.is_set():
                try:
                    versions.append(own.translate_volume(name, head).version)
                except CtmrError as error:
                    errors.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    deploy(client, server.repository, exported[1].release(name, 2), prover(1))
    end = time.monotonic() + 20
    while "2" not in versions and time.monotonic() < end:
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert errors == [] and versions[0] == "1" and versions[-1] == "2"


@pytest.mark.parametrize("real_name", [True, pytest.param(False, marks=pytest.mark.drill)])
def test_a_first_version_that_fails_leaves_nothing_loaded(server, client, exported, real_name):
    name = "first_mr2ct"

    def prove(model, version):
        if (model == name) is real_name:
            raise ValueError("boom")

    with pytest.raises(RolloutFailed, match="ValueError: boom; nothing is live"):
        deploy(client, server.repository, exported[0].release(name, 1), prove)
    assert loaded(client, name) == set() and client.live_version(name) is None
    assert not list(server.repository.glob(f"{name}*"))


def test_a_server_that_is_not_there_is_told_before_anything_is_written(exported, tmp_path):
    with TritonClient("127.0.0.1:1") as client, pytest.raises(EnvironmentFault, match="is Triton running"):
        deploy(client, tmp_path / "models", exported[0].release("m_mr2ct", 1), lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def commands(path: Path) -> bytes:
    """Return a process's command line; empty where it has ended meanwhile."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
