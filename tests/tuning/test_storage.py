"""tune: what can be searched, a search space that changed, a database that goes down, a password that stays secret."""

import json
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from urllib.parse import quote_plus

import pytest

from ctmr.cli.app import main
from ctmr.errors import EnvironmentFault, InputError
from ctmr.pipeline.stages import tune
from ctmr.recipe.loading import render
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.tuning import LogUniform, Uniform
from ctmr.tuning import storage
from ctmr.tuning.figures import importances
from ctmr.tuning.trial import Slot, SlotState

pytestmark = pytest.mark.slow


@pytest.fixture
def ctmr_tune(monkeypatch, capfd, tmp_path):
    """Run ``ctmr tune`` in this process; return its exit code and all that it said."""

    def command(here):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(render(here.recipe))
        monkeypatch.setenv("CTMR_HOME", str(here.root))
        words = ["tune", "--recipe", recipe, "--out", tmp_path / "run", "--input", f"preprocessed={here.preprocessed}"]
        monkeypatch.setattr(sys, "argv", ["ctmr", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, " ".join("".join(capfd.readouterr()).split())

    return command


# Search spaces

EVERYTHING = {
    "train.lr_generator": {"kind": "log_uniform", "low": 1e-4, "high": 1e-3},
    "train.discriminator_every": {"kind": "choice", "values": [1, 2]},
    "train.generator_every": {"kind": "choice", "values": [1, 2]},
    "train.pool": {"kind": "int", "low": 0, "high": 4},
    "train.flip": {"kind": "choice", "values": [True, False]},
    "train.rotation_deg": {"kind": "uniform", "low": 0, "high": 15},
    "loss.identity": {"kind": "uniform", "low": 0, "high": 1},
    "network.generator.kind": {"kind": "choice", "values": ["resnet", "unet"]},
    "network.generator.blocks": {"kind": "int", "low": 1, "high": 5},
}


def test_everything_is_searched_at_once_and_what_does_not_fit_fails_by_name(place, quick_start):
    """Five levels of a U-Net need slices divisible by 32; the two ratios are known to contradict when drawn."""
    here = place(
        "home",
        ("tune.space", EVERYTHING),
        ("tune.trials", 12),
        ("tune.workers", 4),
        ("tune.subset_images", 3),
        ("tune.subset_cases", 1),
    )
    _, tree = here.run()
    kinds = Counter()
    for row, slot in zip(tree["trials"], here.study.slots(), strict=True):
        params = row["params"]
        contradicts = params["train.discriminator_every"] == 2 == params["train.generator_every"]
        unfit = params["network.generator.kind"] == "unet" and params["network.generator.blocks"] == 5
        assert (row["state"] == "failed") == unfit, slot
        assert not contradicts
        if unfit:
            assert "32" in slot.error and "Error" not in slot.error
        kinds["failed"] += row["state"] == "failed"
        kinds[params["network.generator.kind"]] += 1
        assert type(params["train.pool"]) is int and type(params["train.flip"]) is bool
    assert 0 < kinds["failed"] < 7 and kinds["resnet"] and kinds["unet"]


def test_what_mattered_is_what_the_score_was_made_of():
    space = {"train.lr_generator": LogUniform(low=1e-4, high=1e-2), "loss.cycle": Uniform(low=0.0, high=10.0)}
    recipe = Recipe().model_copy(update={"tune": Recipe().tune.model_copy(update={"space": space})})
    slots = []
    for number in range(30):
        params = {"train.lr_generator": 10 ** (-4 + (number * 7 % 30) / 15), "loss.cycle": number / 3}
        slots.append(Slot(number, SlotState.COMPLETE, params, {10: number / 3}, number / 3))
    shares = importances(recipe, slots)
    assert shares["loss.cycle"] > 0.9 and sum(shares.values()) == pytest.approx(1)
    assert importances(recipe, slots) == shares
    assert importances(recipe, slots[:3]) == {}
    assert importances(recipe, [replace(s, score=1.0) for s in slots]) == {}


def test_a_changed_search_space_is_exit_2_and_one_sentence_and_the_old_study_goes_on(place, workers, ctmr_tune):
    here = place()
    _, before = here.run()
    wide = ("tune.space", {"loss.cycle": {"kind": "uniform", "low": 5, "high": 20}})
    changed = place("home", wide)
    code, said = ctmr_tune(changed)
    assert code == 2 and "Traceback" not in said
    assert "tune.space.loss.cycle was uniform 5 to 15 and is uniform 5 to 20" in said
    assert "tune.space.train.lr_generator was log_uniform 0.0001 to 0.001 and is not searched" in said
    assert "put it back to go on with that study, or give tune.study a name that begins another" in said
    for door in (changed.run, changed.create, lambda: tune.work(changed.inputs, changed.recipe, changed.home)):
        with pytest.raises(InputError, match="searches another space"):
            door()
    named = place("home", wide, ("tune.study", "wide")).run()[1]
    assert set(named["trials"][1]["params"]) == {"loss.cycle"}
    assert here.run()[1] == before


# The database


def test_the_password_of_the_database_is_nowhere(place, workers, postgresql_server, postgresql, monkeypatch, capfd):
    """Not in what is said, not in any file of the home, MLflow's among them, whether trials end well or fail."""
    monkeypatch.setenv("CTMR_STUDY_STORAGE", postgresql)

    def fail(preprocessed, recipe):
        if recipe.loss.cycle == 7.0:
            raise RuntimeError("out of memory")
        yield from workers.quick(preprocessed, recipe)

    workers.use(fail)
    here, said = place(), []
    result, tree = here.run(report=lambda message, fraction=None: said.append(message))
    assert tree["trials"][0]["state"] == "failed"
    files = [path for path in here.root.rglob("*") if path.is_file()]
    assert {"mlflow.db", "trials.json", "stage.json"} <= {path.name for path in files}
    told = [json.dumps(result.summary), *said, *capfd.readouterr()]
    for secret in (postgresql_server.PASSWORD, quote_plus(postgresql_server.PASSWORD)):
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert not [text for text in told if secret in text]


def test_a_server_that_is_down_is_exit_3_and_one_sentence_without_its_password(
    place, postgresql_server, postgresql, ctmr_tune, monkeypatch
):
    monkeypatch.setenv("CTMR_STUDY_STORAGE", postgresql)
    postgresql_server.stop()
    code, said = ctmr_tune(place())
    postgresql_server.start()
    assert code == 3 and "Traceback" not in said
    assert f"the study's database at postgresql://127.0.0.1:{postgresql_server.port}/postgres cannot be used" in said
    assert postgresql_server.PASSWORD not in said and quote_plus(postgresql_server.PASSWORD) not in said


def paced(workers, go):
    """Trials that wait, after their first report, until they may go on."""

    def scores(preprocessed, recipe):
        first, second = workers.quick(preprocessed, recipe)
        yield first
        go.wait()
        yield second

    workers.use(scores)


def test_workers_outlive_a_server_that_goes_down_and_comes_back(
    place, workers, postgresql_server, postgresql, monkeypatch
):
    whole = place("sqlite").run()[0]
    monkeypatch.setenv("CTMR_STUDY_STORAGE", postgresql)
    go = get_context("fork").Event()
    paced(workers, go)
    here, said = place("server"), []

    def watch(message, fraction=None):
        said.append(message)
        if len(said) == 1:
            postgresql_server.stop()
            go.set()
            time.sleep(1.0)
            postgresql_server.start()

    result, _ = here.run(report=watch)
    assert result.digest == whole.digest
    names = [r.info.run_name for r in here.children(result.summary["mlflow_run"])]
    assert sorted(names) == [f"trial {k}" for k in range(4)]
    assert all(slot.finished for slot in here.study.slots())


def test_a_study_goes_on_after_a_server_that_was_gone_for_longer_than_anybody_waits(
    place, workers, postgresql_server, postgresql, monkeypatch
):
    whole = place("sqlite").run()[0]
    monkeypatch.setenv("CTMR_STUDY_STORAGE", postgresql)
    go = get_context("fork").Event()
    paced(workers, go)
    here, said = place("server"), []

    def watch(message, fraction=None):
        said.append(message)
        if len(said) == 1:
            monkeypatch.setattr(storage, "RETRY_S", 1.0)
            postgresql_server.stop()
            go.set()

    with pytest.raises(EnvironmentFault, match=r"database at postgresql://127.0.0.1.* cannot be used") as caught:
        here.run(report=watch)
    assert postgresql_server.PASSWORD not in str(caught.value)
    postgresql_server.start()
    monkeypatch.setattr(storage, "RETRY_S", 120.0)
    # Else what could not be given back would count as somebody's for the new server's first minute.
    monkeypatch.setattr(storage, "GRACE_S", 0)
    result, _ = here.run()
    assert result.digest == whole.digest
