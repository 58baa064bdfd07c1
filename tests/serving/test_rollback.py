"""The champion before this one comes back, and whatever differs from MLflow's alias is brought to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from ctmr.cli import champions
from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.pipeline.promotion import ROLLED_BACK, is_unfinished, promotions
from ctmr.pipeline.reconcile import reconcile
from ctmr.pipeline.rollback import roll_back
from ctmr.serving import model_repository as repo
from ctmr.serving.rollout import canary
from ctmr.serving.server import EmbeddedTriton
from ctmr.tracking.mlflow import Tracking
from ctmr.tracking.names import Part
from tests.serving.load import Load
from tests.serving.promoting import ALIAS, NAME, SERVED, Place, client_of, deploy_here, deploy_until_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FULL = os.environ.get("CTMR_DRILL") == "full"


def promoted(place: Place) -> str:
    """Promote one more version and return its number."""
    candidate, release = place.next()
    deploy_here(place.home, candidate, release)
    return candidate.version


def test_a_rollback_brings_the_champion_before_back_everywhere_and_says_why(place: Place) -> None:
    before = promoted(place)
    bad = promoted(place)
    done = roll_back(place.home, "", " bone where air is ")
    assert (done["model"], done["version"], done["taken_back"]) == (NAME, before, bad)
    assert place.disagreement() == ""
    line = promotions(place.home)[-1]
    assert (line["version"], line["previous"], line["rollback"]) == (before, bad, "bone where air is")
    tags = place.tracking().version(NAME, bad).tags
    assert tags[ROLLED_BACK] == "bone where air is"
    with client_of(place.home) as client:
        assert canary(client, SERVED) == before
    print(f"a rollback took {done['seconds']} s")


def test_going_back_again_goes_further_back_and_ends_at_the_first(place: Place) -> None:
    while (champion := place.tracking().champion(NAME, ALIAS)) and champion.version != "1":
        assert roll_back(place.home, NAME, "further")["version"] < champion.version
    with pytest.raises(InputError, match="version 1 is the first champion, so there is no earlier one to go back to"):
        roll_back(place.home, NAME, "further")
    assert place.disagreement() == ""


@pytest.mark.parametrize(
    ("model", "reason", "said"),
    [("", " ", "with --reason TEXT"), ("other", "why", "has promoted no model 'other'; it has promoted: tiny")],
)
def test_a_rollback_that_cannot_be_is_refused_in_a_sentence(place: Place, model: str, reason: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        roll_back(place.home, model, reason)


def test_a_rollback_whose_version_is_spoilt_leaves_everything_as_it_was(place: Place) -> None:
    old = place.tracking().champion(NAME, ALIAS)
    assert old is not None
    live = promoted(place)
    graph = place.home.model_repository / SERVED / old.version / repo.GRAPH
    kept = graph.read_bytes()
    graph.write_bytes(b"junk")
    with pytest.raises(InputError, match="the spec says"):
        roll_back(place.home, NAME, "why")
    graph.write_bytes(kept)
    assert place.disagreement() == "" and promotions(place.home)[-1]["version"] == live


def test_a_version_that_the_repository_lost_comes_from_the_registry(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, live = place.tracking().champion(NAME, ALIAS), promoted(place)
    assert old is not None
    kept = place.home.root / "release"
    folders = [place.home.model_repository / f"{SERVED}{part}" / old.version for part in Part]
    kept.mkdir()
    shutil.copy(folders[0] / repo.GRAPH, kept / "generator.onnx")
    shutil.copy(folders[1] / repo.GRAPH, kept / "range.onnx")
    shutil.copy(folders[2] / repo.SPEC, kept / "spec.json")
    for folder in folders:
        shutil.rmtree(folder)
    asked = []

    def download(self: Tracking, run_id: str, folder: str, target: Path) -> Path:
        asked.append(folder)
        return kept

    monkeypatch.setattr(Tracking, "download", download)
    assert roll_back(place.home, NAME, "why")["taken_back"] == live
    assert asked == ["release/mr2ct"] and place.disagreement() == ""


@pytest.mark.drill
def test_eight_clients_lose_nothing_and_get_nothing_wrong_over_rollouts_and_rollbacks(
    place: Place, array: np.ndarray
) -> None:
    answers = [model.by_torch(array) for model in place.models]
    first = place.tracking().champion(NAME, ALIAS)
    assert first is not None
    with client_of(place.home) as client:
        sha = client.spec(SERVED)[0].generator_sha256
    number = [model.spec.generator_sha256 for model in place.models].index(sha)
    wanted = {int(first.version): answers[number]}
    with Load(client.url, SERVED, array, wanted, clients=8) as load:
        for _ in range(20 if FULL else 2):
            candidate, release = place.next()
            wanted[int(candidate.version)] = answers[place.count % 2]
            deploy_here(place.home, candidate, release)
            load.wait_for_answers()
            assert roll_back(place.home, NAME, "a drill")["version"] == first.version
            load.wait_for_answers()
    assert load.lost_nothing, load.errors[:3]
    assert {int(version) for version in load.versions} == set(wanted) and place.disagreement() == ""
    print(f"{len(load.answers)} answers, none failed, none wrong")


# Reconciliation


def rows(place: Place) -> list[str]:
    (row,) = reconcile(place.home)
    assert place.disagreement() == "" and not is_unfinished(place.home)
    champion = place.tracking().champion(NAME, ALIAS)
    assert champion is not None and row["champion"] == champion.version
    return [str(sentence) for sentence in row["did"]]


def test_what_agrees_is_left_alone(place: Place) -> None:
    assert rows(place) == []


def test_an_alias_that_somebody_moved_decides(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = promoted(place), promoted(place)
    place.tracking().alias(NAME, ALIAS, one)
    said = rows(place)
    assert said == [
        f"{SERVED} serves version {one} instead of {two}",
        f"the record says version {one} instead of {two}",
    ]
    assert promotions(place.home)[-1]["reconciled"] == "true"


def test_a_record_that_was_lost_is_written_anew(place: Place) -> None:
    place.home.promotions.unlink()
    (said,) = rows(place)
    assert "instead of nothing" in said


def test_what_a_killed_rollout_left_is_removed(place: Place) -> None:
    _, release = place.next()
    repo.write_version(place.home.model_repository, release.as_candidate())
    assert len(rows(place)) == 3
    assert repo.leftover_candidates(place.home.model_repository) == ()


def test_a_model_that_does_not_answer_is_started_again(place: Place) -> None:
    triton = EmbeddedTriton(place.home.triton)
    triton.supervisor().stop()  # It would be first.
    processes, _ = triton.leftovers()
    for process in processes:
        if b"stub" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            os.kill(process.pid, signal.SIGKILL)
    (said,) = rows(place)
    assert "did not answer and was started again" in said


def test_without_an_alias_nothing_is_taken_from_triton(place: Place) -> None:
    champion = place.tracking().champion(NAME, ALIAS)
    assert champion is not None
    place.tracking().client.delete_registered_model_alias(NAME, ALIAS)
    (row,) = reconcile(place.home)
    assert row["champion"] is None and "what Triton serves of it stays" in row["did"][0]
    with client_of(place.home) as client:
        assert canary(client, SERVED) == champion.version
    place.tracking().alias(NAME, ALIAS, champion.version)


@pytest.mark.drill
def test_a_deployment_killed_between_any_two_steps_converges(place: Place) -> None:
    """Steps are the calls that change disk, Triton or registry; in the short form three are tried."""
    step, ended = 1, False
    while not ended:
        ended = deploy_until_step(place, step)
        rows(place)
        step += 1 if FULL else 9
    assert step > 12, "it had steps"
    promoted(place)
    assert place.disagreement() == ""


def test_the_commands_print_sentences_or_one_document(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CTMR_HOME", str(place.home.root))
    bad = promoted(place)
    capsys.readouterr()
    champions.rollback(NAME, "why", json_=True)
    assert json.loads(capsys.readouterr().out)["taken_back"] == bad
    champions.reconcile()
    assert "registry, Triton and record agree" in capsys.readouterr().out
    champions.reconcile(json_=True)
    assert json.loads(capsys.readouterr().out)["models"][0]["did"] == []


def test_an_outage_of_the_registry_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: Tracking, name: str, alias: str) -> None:
        raise EnvironmentFault("MLflow is down")

    monkeypatch.setattr(Tracking, "champion", down)
    for call in (lambda: reconcile(place.home), lambda: roll_back(place.home, NAME, "why")):
        with pytest.raises(CtmrError, match="MLflow is down"):
            call()
