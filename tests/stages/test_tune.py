"""tune: real studies (Optuna and MLflow) by worker processes that train tiny networks, or are killed on purpose."""

import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import mlflow
import pytest
import yaml

from ctmr.errors import EnvironmentFault, InputError
from ctmr.home import Home
from ctmr.processes import start_time
from ctmr.recipe import Recipe, override
from ctmr.stages import study_worker, trial, tune
from ctmr.stages.contract import locate, run_stage
from ctmr.stages.study import RELEASED, SLOT, WORKER, Study, study_name
from ctmr.stages.trial import StoppedError

pytestmark = pytest.mark.slow

SPACE = tuple(Recipe().tune.space)
REAL = (("tune.steps", 40),)
"""Trials that take a second: time enough to be killed in the middle."""


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """An empty MLflow database, made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


class Place:
    """A home with a recipe: a study and all the doors to it."""

    def __init__(self, root, recipe, preprocessed, database):
        self.root, self.recipe, self.preprocessed = root, recipe, preprocessed
        self.inputs = {"preprocessed": preprocessed}
        self.home = Home(root)
        self.out = root / "out"
        if not root.exists():
            root.mkdir()
            (root / "mlflow.db").write_bytes(database)

    def run(self, **kwargs):
        """Run the stage; return its result and trials.json."""
        result = run_stage(
            tune.STAGE, inputs=self.inputs, recipe=self.recipe, out=self.out, home=self.home, **kwargs
        )
        return result, json.loads((result.out / "trials.json").read_text())

    def create(self):
        return tune.create(self.inputs, self.recipe, self.home)

    def work(self, count, report=lambda message, fraction=None: None):
        """Work on the study by so many supervised worker processes."""
        threads = [
            threading.Thread(target=tune.work, args=(self.inputs, self.recipe, self.home, report)) for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @property
    def study(self):
        work = locate(tune.STAGE, inputs=self.inputs, recipe=self.recipe, home=self.home).work
        return Study(study_name(work), self.home.study_storage(work), self.recipe)

    def running(self):
        """Return the process ids of workers by the slot they train."""
        trials = self.study._trials()
        return {t.user_attrs[SLOT]: t.user_attrs[WORKER]["pid"] for t in trials if t.state.name == "RUNNING"}

    def children(self, parent):
        client = mlflow.MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")
        experiment = client.get_run(parent).info.experiment_id
        return client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")


@pytest.fixture
def place(tiny, preprocessed, database, tmp_path, home, monkeypatch):
    """Make homes by name."""
    monkeypatch.delenv("CTMR_STUDY_STORAGE", raising=False)

    def make(name="home", *settings):
        # MLflow writes the address it was given last into the environment.
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Place(tmp_path / name, override(tiny, settings), preprocessed, database)

    return make


@pytest.fixture(scope="module")
def quick_start():
    """Start workers that train by forks of one process that has imported everything; spawned ones need seconds."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["ctmr.stages.study_worker", "ctmr.gan.trainer", "ctmr.stages.scoring", "optuna",
                                   "torch._dynamo", "alembic.command", "optuna.storages._rdb.models"])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_worker, "get_context", lambda method: server)
        yield


@pytest.fixture(scope="module")
def undisturbed(tiny, preprocessed, database, tmp_path_factory, quick_start):
    """A study of real networks that the stage ran with its own two workers, and what it left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("CTMR_STUDY_STORAGE", raising=False)
        recipe = override(tiny, REAL)
        place = Place(tmp_path_factory.mktemp("undisturbed") / "home", recipe, preprocessed, database)
        return place, *place.run()


# Real networks


def test_a_study_trains_real_networks_and_begins_with_the_recipe(undisturbed):
    here, result, tree = undisturbed
    assert [t["trial"] for t in tree["trials"]] == [0, 1, 2, 3]
    recipe = here.recipe
    first = tree["trials"][0]
    assert first["state"] == "complete" and set(first["reports"]) == {"20", "40"}
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
    runs = here.children(result.summary["mlflow_run"])
    assert sorted(r.info.run_name for r in runs) == [f"trial {k}" for k in range(4)]
    assert all(r.info.status == "FINISHED" and "validation_score" in r.data.metrics for r in runs)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing_and_the_stage_after_them_only_writes(
    place, undisturbed, workers, monkeypatch
):
    here = place("home", *REAL)
    name = here.create()
    here.work(workers)
    monkeypatch.setattr(study_worker, "_start", None)
    result, _ = here.run()
    assert result.digest == undisturbed[1].digest
    assert here.study.name == name


def test_a_worker_that_is_killed_in_the_middle_of_a_trial_is_replaced(place, undisturbed):
    here, killed = place("home", *REAL), []

    def kill(message, fraction=None):
        running = here.running()
        if not killed and running:
            killed.append(max(running.items()))
            os.kill(killed[0][1], signal.SIGKILL)

    result, _ = here.run(report=kill)
    assert result.digest == undisturbed[1].digest
    trials = here.study._trials()
    died = [t for t in trials if t.state.name == "FAIL"]
    assert [(t.user_attrs[SLOT], t.user_attrs[WORKER]["pid"]) for t in died] == killed
    assert len(trials) == 5
    names = [r.info.run_name for r in here.children(result.summary["mlflow_run"])]
    assert sorted(names) == [f"trial {k}" for k in range(4)]


STAGE = """
import json, sys
from pathlib import Path
from ctmr.home import Home
from ctmr.recipe import Recipe
from ctmr.stages import tune
from ctmr.stages.contract import run_stage

if __name__ == "__main__":
    recipe, preprocessed, root = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    run_stage(tune.STAGE, inputs={"preprocessed": preprocessed}, recipe=Recipe.model_validate(recipe),
              out=root / "out", home=Home(root))
"""


@pytest.fixture
def session(tmp_path):
    """Start a Python script in a session of its own, so that all its processes can be killed at once."""
    started = []

    def start(script, *arguments):
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


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_study_whose_every_process_was_killed_goes_on_with_what_is_missing(place, undisturbed, session):
    here = place("home", *REAL)
    here.create()
    process = session(STAGE, json.dumps(here.recipe.dump()), here.preprocessed, here.root)
    study = here.study
    until(lambda: any(s.number >= 2 and s.params and not s.finished for s in study.slots()))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = [t.number for t in study._trials() if t.state.name in ("COMPLETE", "PRUNED")]
    result, _ = here.run()
    assert result.digest == undisturbed[1].digest
    after = [t for t in study._trials() if t.state.name in ("COMPLETE", "PRUNED")]
    assert set(before) >= {0, 1} and len(after) == 4
    assert all(t.user_attrs.get(RELEASED) for t in study._trials() if t.state.name == "FAIL")
    names = [r.info.run_name for r in here.children(result.summary["mlflow_run"])]
    assert sorted(names) == [f"trial {k}" for k in range(4)]


def test_two_stages_on_one_study_come_to_the_same_and_log_it_once(place, undisturbed, tmp_path):
    here, results = place("home", *REAL), []

    def run(name):
        results.append(
            run_stage(tune.STAGE, inputs=here.inputs, recipe=here.recipe, out=tmp_path / name, home=here.home)
        )

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.digest for r in results] == [undisturbed[1].digest] * 2
    assert results[0].summary["mlflow_run"] == results[1].summary["mlflow_run"]
    names = [r.info.run_name for r in here.children(results[0].summary["mlflow_run"])]
    assert sorted(names) == [f"trial {k}" for k in range(4)]


# The study's own logic: real processes that compute a score from their parameters instead of training.


def target(recipe):
    return abs(math.log10(recipe.train.lr_generator / 3e-4)) + abs(recipe.loss.cycle - 9) / 10


def quick(preprocessed, recipe, stopped):
    for step in (1, 2):
        if stopped():
            raise StoppedError
        yield step, target(recipe) + 2 - step


@pytest.fixture
def workers(monkeypatch):
    """Replace what a worker does. Forked, so that a child needs no import; it must not use torch."""
    fork = multiprocessing.get_context("fork")

    def use(scores):
        monkeypatch.setattr(trial, "scores", scores)
        monkeypatch.setattr(study_worker, "get_context", lambda method: fork)

    use(quick)
    return use


def slow(preprocessed, recipe, stopped):
    """Like `quick`, with time to be killed after the first report."""
    for step, score in quick(preprocessed, recipe, stopped):
        yield step, score
        time.sleep(0.5)


def test_four_workers_on_postgresql_one_of_them_killed(place, postgresql, workers, monkeypatch):
    settings = ("tune.trials", 10), ("tune.workers", 4)
    whole, killed = place("sqlite", *settings).run()[0], []
    monkeypatch.setenv("CTMR_STUDY_STORAGE", postgresql)
    workers(slow)
    here = place("server", *settings)

    def kill(message, fraction=None):
        if not killed and message.startswith("trial 1: step 1"):
            killed.append(here.running()[1])
            os.kill(killed[0], signal.SIGKILL)

    result, _ = here.run(report=kill)
    assert result.digest == whole.digest
    trials = here.study._trials()
    assert len({t.user_attrs[WORKER]["pid"] for t in trials}) > 2
    assert [(t.user_attrs[SLOT], t.user_attrs[WORKER]["pid"]) for t in trials if t.state.name == "FAIL"] == [
        (1, killed[0])
    ]
    assert not list(here.root.glob("work/**/*.db"))


ENDLESS = """
import multiprocessing, sys, time
from pathlib import Path
from ctmr.recipe import Recipe
from ctmr.stages import study_worker, trial
from ctmr.stages.contract import silent
from ctmr.stages.study import Study

def endless(preprocessed, recipe, stopped):
    yield 1, 1.0
    while not stopped():
        time.sleep(0.01)
    raise trial.StoppedError

trial.scores = endless
fork = multiprocessing.get_context("fork")
study_worker.get_context = lambda method: fork
study = Study("orphans", sys.argv[1], Recipe())
study.create()
study_worker.supervise(study, Path("none"), workers=2, report=silent)
"""


def test_workers_whose_supervisor_was_killed_give_their_trials_back_and_end(tmp_path, session):
    address = f"sqlite:///{tmp_path / 'study.db'}"
    study = Study("orphans", address, Recipe())
    study.create()
    process = session(ENDLESS, address)
    until(lambda: sum(bool(s.reports) for s in study.slots()) == 2)
    workers = [t.user_attrs[WORKER] for t in study._trials() if t.state.name == "RUNNING"]
    process.kill()
    process.wait()
    until(lambda: all(start_time(w["pid"]) != w["started"] for w in workers))
    assert {s.state.value for s in study.slots()} == {"waiting"}
    assert [t.user_attrs.get(RELEASED) for t in study._trials() if t.state.name == "FAIL"] == [True, True]


class CutError(Exception):
    """Stands for an interrupt of the stage."""


def cut_at(text):
    def report(message, fraction=None):
        if message.startswith(text):
            raise CutError

    return report


def tried(tree):
    return [(t["params"], t["state"], t["score"], t["reports"]) for t in tree["trials"]]


@pytest.mark.parametrize("moment", ["trial 0: step 1", "trial 3: step 2"])
def test_a_study_that_was_interrupted_goes_on_to_the_same_trials(place, workers, moment):
    whole = place("whole").run()[0]
    here = place("cut")
    with pytest.raises(CutError):
        here.run(report=cut_at(moment))
    assert not multiprocessing.active_children()
    result, _ = here.run()
    assert result.digest == whole.digest
    names = [r.info.run_name for r in here.children(result.summary["mlflow_run"])]
    assert sorted(names) == [f"trial {k}" for k in range(4)]


@pytest.mark.parametrize("moment", ["start", "metrics", "end"])
def test_every_trial_is_one_whole_child_run_wherever_its_logging_was_cut(place, workers, moment, monkeypatch):
    from ctmr.tracking import Tracking

    here = place()

    def cut(self, *arguments, real=getattr(Tracking, moment), **kwargs):
        done = real(self, *arguments, **kwargs)
        if moment != "start" or kwargs.get("parent"):
            raise CutError
        return done

    with monkeypatch.context() as patch:
        real_log = tune._Tracking._log

        def log(self, slot, child):
            patch.setattr(Tracking, moment, cut)
            real_log(self, slot, child)

        patch.setattr(tune._Tracking, "_log", log)
        with pytest.raises(CutError):
            here.run()
    result, tree = here.run()
    runs = here.children(result.summary["mlflow_run"])
    assert sorted(r.info.run_name for r in runs) == [f"trial {k}" for k in range(4)]
    client = mlflow.MlflowClient(f"sqlite:///{here.root / 'mlflow.db'}")
    for run in runs:
        row = tree["trials"][int(run.info.run_name.split()[1])]
        history = client.get_metric_history(run.info.run_id, "validation_score")
        assert {str(m.step): m.value for m in history} == row["reports"] and len(history) == len(row["reports"])
        assert run.info.status == "FINISHED" and set(run.data.params) == set(SPACE)
    parents = [r for r in client.search_runs([runs[0].info.experiment_id]) if "ctmr.study" in r.data.tags]
    assert len(parents) == 1


def test_another_seed_is_another_study_that_begins_with_the_recipe_too(place, workers):
    first, other = place("a").run()[1], place("b", ("tune.seed", -1)).run()[1]
    assert other["trials"][0] == first["trials"][0]
    assert other["trials"][1]["params"] != first["trials"][1]["params"]


def test_a_trial_whose_process_always_dies_fails_and_the_others_go_on(place, workers):
    def die_below(preprocessed, recipe, stopped):
        yield 1, 5.0
        if recipe.loss.cycle == 7.0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from quick(preprocessed, recipe, stopped)

    workers(die_below)
    here, said = place(), []
    result, tree = here.run(report=lambda message, fraction=None: said.append(message))
    first = tree["trials"][0]
    assert (first["state"], first["score"], first["reports"]) == ("failed", None, {})
    assert first["params"]["loss.cycle"] == 7.0
    assert [t["state"] for t in tree["trials"][1:]] == ["complete"] * 3
    assert any(m.startswith("trial 0: failed: its process died 2 times") for m in said)
    runs = {r.info.run_name: r for r in here.children(result.summary["mlflow_run"])}
    assert runs["trial 0"].info.status == "FAILED" and "died 2 times" in runs["trial 0"].data.tags["ctmr.error"]
    assert [r.info.status for r in runs.values()].count("FINISHED") == 3


@pytest.mark.parametrize("how", ["raises", "nan", "inf"])
def test_a_trial_that_fails_or_diverges_fails_alone(place, workers, how):
    def fail(preprocessed, recipe, stopped):
        if recipe.loss.cycle == 7.0:
            if how == "raises":
                raise RuntimeError("out of memory\nand a traceback")
            yield 1, 3.0
            yield 2, float(how)
        else:
            yield from quick(preprocessed, recipe, stopped)

    workers(fail)
    here = place()
    tree = here.run()[1]
    assert [t["state"] for t in tree["trials"]] == ["failed", "complete", "complete", "complete"]
    assert tree["trials"][0]["score"] is None and tree["best"] != 0
    error = here.study.slots()[0].error
    assert error == ("RuntimeError: out of memory" if how == "raises" else f"its score is {how}")
    trials = here.study._trials()
    assert len(trials) == 4
    failed, *others = (t.user_attrs[WORKER]["pid"] for t in trials)
    if how == "raises":
        assert failed not in others


def test_when_every_trial_fails_the_last_error_is_told_and_the_next_run_tries_again(place, workers):
    def fail(preprocessed, recipe, stopped):
        raise RuntimeError(f"out of memory with {recipe.loss.cycle}")
        yield

    workers(fail)
    here = place("home", ("tune.trials", 9))
    with pytest.raises(EnvironmentFault, match="every trial failed; the last said: RuntimeError: out of memory with"):
        here.run()
    assert sum("error" in t.user_attrs for t in here.study._trials()) == 4
    workers(quick)
    result, tree = here.run()
    assert [t["state"] for t in tree["trials"]].count("failed") == 0
    runs = here.children(result.summary["mlflow_run"])
    assert sorted(r.info.run_name for r in runs) == [f"trial {k}" for k in range(9)]
    assert all(r.info.status == "FINISHED" for r in runs)


def test_a_hopeless_trial_is_pruned_and_never_the_best(place, workers):
    def worse_each_time(preprocessed, recipe, stopped):
        offset = 0.0 if recipe.loss.cycle == 7.0 else recipe.loss.cycle
        yield 1, 1.0 + offset
        yield 2, 1.0 + offset

    workers(worse_each_time)
    result, tree = place("home", ("tune.trials", 8)).run()
    pruned = [t for t in tree["trials"] if t["state"] == "pruned"]
    assert len(pruned) == result.summary["pruned"] > 0
    assert all(t["reports"] == {"1": t["score"]} for t in pruned)
    assert all(t["trial"] >= 2 for t in pruned)
    assert tree["best"] == 0


def test_a_worker_that_never_takes_a_trial_is_not_started_for_ever(place, workers, monkeypatch):
    monkeypatch.setattr(study_worker, "work_on", lambda *arguments: os._exit(7))
    with pytest.raises(EnvironmentFault, match="ended 3 times before it took a trial, the last time with exit code 7"):
        place().run()


def test_what_ends_a_worker_is_told_in_its_words(place, workers, monkeypatch):
    def gone(*arguments):
        raise EnvironmentFault("the study's database at x is gone")

    monkeypatch.setattr(study_worker, "work_on", gone)
    with pytest.raises(EnvironmentFault, match=r"^the study's database at x is gone$"):
        place().run()


def test_work_before_the_study_was_created_is_refused(place):
    here = place()
    with pytest.raises(InputError, match="create it before its workers start"):
        tune.work(here.inputs, here.recipe, here.home)


def test_a_worker_that_is_asked_to_end_gives_its_trial_back(place, workers):
    def endless(preprocessed, recipe, stopped):
        yield 1, 1.0
        until(stopped)
        raise StoppedError

    workers(endless)
    here = place()
    with pytest.raises(CutError):
        here.run(report=cut_at("trial 1: step 1"))
    assert [s.state.value for s in here.study.slots()] == ["waiting"] * 4
    assert [t.user_attrs[RELEASED] for t in here.study._trials() if t.state.name == "FAIL"] == [True, True]
