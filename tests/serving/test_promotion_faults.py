"""Registry, Triton and the record of promotions agree after every fault, with a real Triton and a real MLflow."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.pipeline import promotion
from ctmr.pipeline.promotion import promote, promotions, registry_lock
from ctmr.serving.client import TritonClient
from ctmr.serving.export import export_translator
from ctmr.serving.model_repository import Release
from ctmr.serving.rollout import canary
from ctmr.serving.server import EmbeddedTriton
from ctmr.tracking.mlflow import Tracking
from tests.serving.conftest import CHANNELS, tiny_translator
from tests.serving.promoting import NAME, SERVED, Place, client_of, deploy_here, start

FAULTS = 50 if os.environ.get("CTMR_DRILL") == "full" else 6
pytestmark = [pytest.mark.slow, pytest.mark.drill, pytest.mark.timeout(120 * FAULTS + 1080)]

SEED = 20261130
CALLS = ("alias", "tag_version", "champion", "deploy", "record", "proof")
"""What may fail in a process that lives on; a number after it says at which call."""


def kill_deployment(place: Place, chance: random.Random, seconds: float) -> None:
    deployment = start(place.home, *place.next())
    time.sleep(chance.uniform(0, 1.2 * seconds))
    deployment.process.kill()
    deployment.end()


def kill_triton(place: Place, chance: random.Random, seconds: float) -> None:
    deployment = start(place.home, *place.next())
    time.sleep(chance.uniform(0, 1.2 * seconds))
    running = EmbeddedTriton(place.home.triton).status()
    if running is not None:
        os.kill(running.process.pid, signal.SIGKILL)
    deployment.end()


def race(place: Place, chance: random.Random, seconds: float) -> None:
    one, two = (start(place.home, *place.next()) for _ in range(2))
    ended = [deployment.end() for deployment in (one, two)]
    assert sorted(code == 0 for code, _ in ended) == [False, True], ended
    assert any("and now version" in words for _, words in ended), ended


def fail_inside(place: Place, chance: random.Random, seconds: float) -> None:
    what, number, after = chance.choice(CALLS), chance.randint(1, 3), chance.random() < 0.5
    count = 0

    def breaking(call: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*words: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            fails = count == number
            if fails and not after:
                raise EnvironmentFault(f"{what} failed")
            found = call(*words, **more)
            if fails:
                raise EnvironmentFault(f"the answer of {what} was lost")
            return found

        return broken

    with pytest.MonkeyPatch.context() as patch:
        owner, name = {
            "deploy": (TritonClient, "load"),
            "record": (promotion, "append_line"),
            "proof": (TritonClient, "spec"),
        }.get(what, (Tracking, what))
        candidate, release = place.next()
        patch.setattr(owner, name, breaking(getattr(owner, name)))
        try:
            deploy_here(place.home, candidate, release)
        except CtmrError as error:
            print(f"{what} {number} {'after' if after else 'before'}: {error}")


KINDS = [kill_deployment, kill_triton, race, fail_inside]


def test_registry_triton_and_record_agree_after_every_fault(place: Place) -> None:
    chance = random.Random(SEED)
    began = time.monotonic()
    deployment = start(place.home, *place.next())
    loaded = time.monotonic()
    assert deployment.end() == (0, "")
    seconds = time.monotonic() - loaded
    print(f"a deployment takes {seconds:.1f} s, {loaded - began:.1f} s after it was started")
    # Each kind at least once; the two cheap ones, inside this process, fill what is left in the short form.
    plan = KINDS + [fail_inside] * (FAULTS - len(KINDS))
    if len(KINDS) * 3 < FAULTS:
        plan = [KINDS[k % len(KINDS)] for k in range(FAULTS)]
    disagreements = []
    for number, fault in enumerate(plan):
        fault(place, chance, seconds)
        found = place.disagreement()
        print(f"fault {number}, {fault.__name__}: {found or 'they agree'}", flush=True)
        if found:
            disagreements.append(f"{number} {fault.__name__}: {found}")
    assert not disagreements
    assert start(place.home, *place.next()).end() == (0, "")
    assert place.disagreement() == ""


def test_another_geometry_takes_the_place_when_a_person_says_so_and_goes_back_when_it_fails(
    place: Place, tmp_path: Path
) -> None:
    candidate, old = place.next()
    files = export_translator(tiny_translator(2), CHANNELS, (48, 48), tmp_path)
    spec = old.spec.model_copy(
        update={
            "grid": old.spec.grid.model_copy(update={"size": (48, 48)}),
            "generator_sha256": files.generator_sha256,
            "range_sha256": files.range_sha256,
        }
    )
    release = Release(SERVED, candidate.version, files.generator, files.range, spec)
    odd = dataclasses.replace(candidate, replaces_champion=False, uncompared=True, stays="another grid")
    served = client_of(place.home)
    before = promotions(place.home)[-1]["version"]
    with registry_lock(place.home), served as client:
        volume = np.random.default_rng(0).integers(0, 2000, (CHANNELS, 3, 48, 48)).astype(np.uint16)

        def prove(name: str, version: str) -> None:
            assert client.translate_array(name, volume, version).shape == (3, 48, 48)

        def wrong_in_the_end(name: str, version: str) -> None:
            prove(name, version)
            if name == SERVED:
                raise CtmrError("wrong in the end")

        def attempt(proof: Any, reason: str) -> None:
            promote(
                odd,
                [release],
                proof,
                home=place.home,
                tracking=place.tracking(),
                client=client,
                reason=reason,
            )

        with pytest.raises(InputError, match=r"served with other channels, size or units.*--replace-uncompared"):
            attempt(prove, "")
        with pytest.raises(CtmrError, match=f"wrong in the end; version {before} is still live"):
            attempt(wrong_in_the_end, "we changed the grid")
        assert client.live_version(SERVED) == before and canary(client, SERVED) == before
        attempt(prove, "we changed the grid")
        assert client.spec(SERVED)[0].grid.size == (48, 48)
    assert place.disagreement() == "" and promotions(place.home)[-1]["uncompared"] == "we changed the grid"
    tags = place.tracking().version(NAME, candidate.version).tags
    assert tags["replaced_uncompared"] == "we changed the grid" and tags["replaces"] == before
