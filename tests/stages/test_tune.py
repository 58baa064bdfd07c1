"""tune: a real study (Optuna and MLflow in SQLite) whose trials train tiny networks, or die on purpose."""

import json
import math
import os
import signal
import time
from multiprocessing import active_children, get_context
from multiprocessing.connection import wait

import mlflow
import numpy as np
import pytest
import yaml

from ctmr.data.shards import Shard, ShardVolume, write_shard
from ctmr.errors import EnvironmentFault
from ctmr.grid import Plane, volume_grid
from ctmr.home import Home
from ctmr.manifest import Split
from ctmr.recipe import Recipe, override
from ctmr.stages import tune
from ctmr.stages.contract import run_stage
from ctmr.stages.trial import DONE, FAILED, REPORT, STOP
from ctmr.volume import Modality, Unit

pytestmark = pytest.mark.slow

SIZE, SLICES = 16, 4
SETTINGS = [
    ("preprocess.size", [SIZE, SIZE]), ("network.generator.width", 4), ("network.generator.blocks", 1),
    ("network.discriminator.width", 4), ("network.discriminator.layers", 1), ("train.pool", 2), ("tune.trials", 4),
    ("tune.steps", 2), ("tune.reports", 2), ("tune.workers", 2), ("loss.cycle", 7.0),
]  # fmt: skip
SPACE = tuple(Recipe().tune.space)


@pytest.fixture(scope="module")
def preprocessed(tmp_path_factory):
    """Discs of 16 by 16 pixels: two training and one validation subject of each modality, the latter a pair in HU."""
    folder = tmp_path_factory.mktemp("preprocessed")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    head = np.broadcast_to(x**2 + y**2 < 36, (SLICES, SIZE, SIZE))
    affine = ((0.0, 0.0, -1.0, 8.0), (0.0, -1.0, 0.0, 8.0), (2.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    for split, subjects in ((Split.TRAIN, 2), (Split.VAL, 1)):
        for modality in Modality:
            ct = modality is Modality.CT
            images = np.where(head, 40.0 if ct else 900.0, -1000.0 if ct else 10.0)
            slices = np.concatenate([images + rng.normal(0, 5, images.shape) for _ in range(subjects)])[:, None]
            volumes = tuple(
                ShardVolume(
                    image=f"{split}{modality}{k}", subject=f"val{k}" if split is Split.VAL else f"{modality}{k}",
                    uid="", first=k * SLICES, count=SLICES, paths=("x",), sequences=("" if ct else "T1",),
                    affine=affine, level=-1.5,
                )
                for k in range(subjects)
            )  # fmt: skip
            unit = Unit.HU if ct else Unit.ARBITRARY
            stored = slices.round().clip(-1024 if ct else 0, 3000).astype(np.int16 if ct else np.uint16)
            write_shard(
                folder / "shards", split, Shard(stored, np.tile(head, (subjects, 1, 1)), volumes, unit, modality)
            )
    grid = volume_grid(Plane.AXIAL, (SIZE, SIZE), (1.0, 1.0))
    (folder / "grid.json").write_text(grid.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty MLflow database, made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def study(preprocessed, database, tmp_path, home, monkeypatch):
    """Run the stage in a home of its own; several homes tell studies apart."""

    def run(*settings, where="home", report=None):
        # MLflow writes the address it was given last into the environment.
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        place = Home(tmp_path / where)
        if not place.root.exists():
            place.root.mkdir(parents=True)
            (place.root / "mlflow.db").write_bytes(database)
        recipe = override(Recipe(), [*SETTINGS, *settings])
        kwargs = {} if report is None else {"report": report}
        result = run_stage(
            tune.STAGE, inputs={"preprocessed": preprocessed}, recipe=recipe, out=tmp_path / f"{where}-out",
            home=place, **kwargs,
        )  # fmt: skip
        return result, json.loads((result.out / "trials.json").read_text())

    return run


def children(tmp_path, parent, where="home"):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / where / 'mlflow.db'}")
    experiment = client.get_run(parent).info.experiment_id
    return client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")


def tried(tree):
    return [(t["params"], t["state"], t["score"], t["reports"]) for t in tree["trials"]]


def test_a_study_trains_real_networks_and_begins_with_the_recipe(study, tmp_path):
    result, tree = study()
    assert [t["trial"] for t in tree["trials"]] == [0, 1, 2, 3]
    recipe = override(Recipe(), SETTINGS)
    first = tree["trials"][0]
    assert first["state"] == "complete" and set(first["reports"]) == {"1", "2"}
    assert first["params"] == {
        "train.lr_generator": recipe.train.lr_generator,
        "train.lr_discriminator": recipe.train.lr_discriminator,
        "loss.cycle": recipe.loss.cycle,
    }
    assert len({json.dumps(t["params"]) for t in tree["trials"]}) == 4
    assert "MAE (HU, paired" in tree["objective"]
    # The head is about 40 HU and the window reaches from -1024 to 2000: no error can be outside.
    assert all(0 < t["score"] < 2100 for t in tree["trials"] if t["state"] == "complete")
    complete = [t for t in tree["trials"] if t["state"] == "complete"]
    best = min(complete, key=lambda t: t["score"])
    assert tree["best"] == best["trial"]
    assert yaml.safe_load((result.out / "best.yaml").read_text()) == best["params"]
    assert override(recipe, list(best["params"].items())).loss.cycle == best["params"]["loss.cycle"]
    runs = children(tmp_path, result.summary["mlflow_run"])
    assert sorted(r.info.run_name for r in runs) == [f"trial {k}" for k in range(4)]
    assert all(r.info.status == "FINISHED" and "validation_score" in r.data.metrics for r in runs)


# The study's own logic: workers are real processes that compute a score from their parameters instead of training.


def target(params):
    return abs(math.log10(params["train.lr_generator"] / 3e-4)) + abs(params["loss.cycle"] - 9) / 10


def quick(channel, preprocessed, tree, params):
    for step in (1, 2):
        channel.send((REPORT, step, target(params) + 1 / step))
        if channel.recv() == STOP:
            return
    channel.send((DONE, target(params)))


@pytest.fixture
def workers(monkeypatch):
    """Replace what a worker does. Forked, so that a child needs no import; it must not use torch."""

    def use(work):
        monkeypatch.setattr(tune, "run_trial", work)
        monkeypatch.setattr(tune, "get_context", lambda method: get_context("fork"))

    use(quick)
    return use


class CutError(Exception):
    """Stands for a kill of the process that owns the study."""


def cut_at(text):
    seen = []

    def report(message, fraction=None):
        if message.startswith(text) and not seen:
            seen.append(message)
            raise CutError

    return report


@pytest.mark.parametrize("moment", ["trial 2: step 1", "trial 3: step 2"])
def test_a_study_that_was_cut_off_goes_on_to_the_same_trials(study, workers, moment, tmp_path):
    whole = study(where="whole", report=None)[1]
    with pytest.raises(CutError):
        study(where="cut", report=cut_at(moment))
    result, resumed = study(where="cut")
    assert tried(resumed) == tried(whole)
    names = [r.info.run_name for r in children(tmp_path, result.summary["mlflow_run"], "cut")]
    assert len(names) == len(set(names)) == 4


def test_a_study_that_was_cut_off_between_waves_leaves_the_same_file(study, workers, monkeypatch):
    whole = study(where="whole")[1]
    trial = tune._Tracking.trial
    told = []

    def cut(self, found):
        trial(self, found)
        told.append(found.number)
        if len(told) == 2:
            raise CutError

    with monkeypatch.context() as patch:
        patch.setattr(tune._Tracking, "trial", cut)
        with pytest.raises(CutError):
            study(where="cut")
    assert told == [0, 1]
    assert study(where="cut")[1] == whole


def test_every_trial_is_one_child_run_wherever_the_study_was_cut(study, workers, monkeypatch, tmp_path):
    """Cut after Optuna knows of a wave and before MLflow does."""
    with monkeypatch.context() as patch:

        def cut(self, found):
            raise CutError

        patch.setattr(tune._Tracking, "trial", cut)
        with pytest.raises(CutError):
            study()
    result, tree = study()
    names = sorted(r.info.run_name for r in children(tmp_path, result.summary["mlflow_run"]))
    assert names == [f"trial {t['trial']}" for t in tree["trials"]]


def test_equal_studies_are_equal_and_another_seed_is_another_study(study, workers):
    assert study(where="a")[1] == study(where="b")[1]
    other = study(("tune.seed", 1), where="c")[1]
    assert other["trials"][0] == study(where="a")[1]["trials"][0]
    assert other["trials"][1]["params"] != study(where="a")[1]["trials"][1]["params"]


def test_a_trial_whose_process_always_dies_fails_and_another_takes_its_place(study, workers, tmp_path):
    def die_below(channel, preprocessed, tree, params):
        if params["loss.cycle"] == 7.0:
            os.kill(os.getpid(), signal.SIGKILL)
        quick(channel, preprocessed, tree, params)

    workers(die_below)
    result, tree = study()
    assert len(tree["trials"]) == 4
    assert 0 not in [t["trial"] for t in tree["trials"]]
    states = {r.info.run_name: r.info.status for r in children(tmp_path, result.summary["mlflow_run"])}
    assert states["trial 0"] == "FAILED"
    assert list(states.values()).count("FINISHED") == 4


def test_a_worker_that_is_killed_in_the_middle_is_retried(study, workers):
    """kill -9 of one worker, once, after its first report."""
    whole = study(where="whole")[1]
    killed = []

    def kill_one(message, fraction=None):
        if not killed and message.startswith("trial 0: step 1,"):
            killed.append(min(active_children(), key=lambda p: p.pid))
            killed[0].kill()

    def unhurried(channel, preprocessed, tree, params):
        time.sleep(0.2)
        quick(channel, preprocessed, tree, params)

    workers(unhurried)
    assert tried(study(where="killed", report=kill_one)[1]) == tried(whole)
    assert killed[0].exitcode == -signal.SIGKILL


def test_a_worker_that_dies_while_it_waits_for_its_answer_is_retried(study, workers, tmp_path):
    """The report has arrived, the process is gone: sending the answer must not end the study."""
    once = tmp_path / "died"

    def report_and_die(channel, preprocessed, tree, params):
        if params["loss.cycle"] == 7.0 and not once.exists():
            once.write_text("")
            channel.send((REPORT, 1, 5.0))
            os.kill(os.getpid(), signal.SIGKILL)
        quick(channel, preprocessed, tree, params)

    def slow_reader(channels):
        time.sleep(0.3)
        return wait(channels)

    workers(report_and_die)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "wait", slow_reader)
        tree = study()[1]
    assert tree["trials"][0]["params"]["loss.cycle"] == 7.0
    assert tree["trials"][0]["state"] == "complete"


def test_a_trial_that_diverges_fails_alone(study, workers):
    def diverge(channel, preprocessed, tree, params):
        if params["loss.cycle"] != 7.0:
            quick(channel, preprocessed, tree, params)
            return
        channel.send((REPORT, 1, math.nan))
        channel.recv()
        channel.send((DONE, math.nan))

    workers(diverge)
    tree = study()[1]
    assert len(tree["trials"]) == 4
    assert all(math.isfinite(t["score"]) for t in tree["trials"] if t["state"] == "complete")


def test_when_every_trial_fails_the_last_error_is_told(study, workers):
    def fail(channel, preprocessed, tree, params):
        channel.send((FAILED, "RuntimeError: out of memory"))

    workers(fail)
    with pytest.raises(EnvironmentFault, match="every trial failed; the last said: RuntimeError: out of memory"):
        study()


def test_a_hopeless_trial_is_pruned_and_never_the_best(study, workers):
    def worse_each_time(channel, preprocessed, tree, params):
        offset = 0.0 if params["loss.cycle"] == 7.0 else params["loss.cycle"]
        for step in (1, 2):
            channel.send((REPORT, step, 1.0 + offset))
            if channel.recv() == STOP:
                return
        channel.send((DONE, 1.0 + offset))

    workers(worse_each_time)
    result, tree = study(("tune.trials", 8))
    pruned = [t for t in tree["trials"] if t["state"] == "pruned"]
    assert len(pruned) == result.summary["pruned"] > 0
    assert tree["best"] == 0
