"""Workers of the study: real processes that compute a score instead of training, fail, hang or are killed."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter

import pytest
from studies import trials_of

from ctmr.errors import EnvironmentFault
from ctmr.recipe.recipe import Recipe
from ctmr.system.processes import start_time
from ctmr.tuning import worker
from ctmr.tuning.study import SLOT, WORKER, Study
from ctmr.tuning.trial import Reported

pytestmark = pytest.mark.slow


def cut_at(text):
    def report(message, fraction=None):
        if message.startswith(text):
            raise KeyboardInterrupt

    return report


# Kills


def test_four_workers_on_postgresql_one_of_them_killed(place, postgresql, workers, monkeypatch):
    settings = ("tune.trials", 10), ("tune.workers", 4)
    whole, killed = place("sqlite", *settings).run()[0], []
    monkeypatch.setenv("CTMR_STUDY_STORAGE", postgresql)

    def slow(preprocessed, recipe):
        for report in workers.quick(preprocessed, recipe):
            yield report
            time.sleep(0.5)

    workers.use(slow)
    here = place("server", *settings)

    def kill(message, fraction=None):
        running = here.running()
        if not killed and running:
            killed.append(max(running.items()))
            os.kill(killed[0][1], signal.SIGKILL)

    result, _ = here.run(report=kill)
    assert result.digest == whole.digest
    assert len({t.user_attrs[WORKER]["pid"] for t in here.trials()}) > 2
    died = here.trials("FAIL")
    assert [(t.user_attrs[SLOT], t.user_attrs[WORKER]["pid"]) for t in died] == killed
    assert not list(here.root.glob("work/**/*.db"))
    names = [r.info.run_name for r in here.children(result.summary["mlflow_run"])]
    assert sorted(names) == sorted(f"trial {k}" for k in range(10))


ENDLESS = """
import multiprocessing, sys, time
from pathlib import Path
from ctmr.recipe.recipe import Recipe
from ctmr.tuning import worker as study_worker, trial
from ctmr.system.progress import silent
from ctmr.tuning.study import Study

def endless(preprocessed, recipe):
    yield trial.Reported(1, 1.0)
    time.sleep(600)

trial.scores = endless
fork = multiprocessing.get_context("fork")
study_worker.get_context = lambda method: fork
study = Study("orphans", sys.argv[1], Recipe())
study.create()
study_worker.supervise(study, Path("none"), workers=2, report=silent)
"""


@pytest.mark.parametrize("how", ["KILL", "TERM", "INT"])
def test_workers_end_with_their_supervisor_and_their_trials_are_given_back(how, tmp_path, session, until):
    address = f"sqlite:///{tmp_path / 'study.db'}"
    study = Study("orphans", address, Recipe())
    study.create()
    process = session(ENDLESS, address)
    until(lambda: sum(bool(s.reports) for s in study.slots()) == 2)
    workers = [t.user_attrs[WORKER]["pid"] for t in trials_of(study)]
    process.send_signal(signal.Signals[f"SIG{how}"])
    assert process.wait() == {"KILL": -signal.SIGKILL, "TERM": 128 + signal.SIGTERM, "INT": -signal.SIGINT}[how]
    until(lambda: all(start_time(pid) is None for pid in workers))
    expected = ["running", "running"] if how == "KILL" else ["waiting", "waiting"]
    assert [s.state.value for s in study.slots()[:2]] == expected
    assert [study.claim(0).number for _ in range(2)] == [0, 1]
    assert len(trials_of(study)) == 4


# Interrupts


@pytest.mark.parametrize("moment", ["trial 0: step 1", "trial 3: step 2"])
def test_a_study_that_was_interrupted_goes_on_to_the_same_trials(place, workers, moment):
    whole = place("whole").run()[0]
    here = place("cut")
    with pytest.raises(KeyboardInterrupt):
        here.run(report=cut_at(moment))
    assert not multiprocessing.active_children()
    result, _ = here.run()
    assert result.digest == whole.digest
    names = [r.info.run_name for r in here.children(result.summary["mlflow_run"])]
    assert sorted(names) == [f"trial {k}" for k in range(4)]


def test_a_worker_that_is_asked_to_end_gives_its_trial_back(place, workers, tmp_path):
    asked = tmp_path / "asked"

    def endless_at_first(preprocessed, recipe):
        yield Reported(1, 1.0)
        with contextlib.suppress(FileExistsError):
            (asked / str(recipe.loss.cycle)).mkdir(parents=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        yield Reported(2, 1.0)

    workers.use(endless_at_first)
    here = place("home", ("tune.pruner", "none"))
    _, tree = here.run()
    assert [t["state"] for t in tree["trials"]] == ["complete"] * 4
    assert Counter(t.user_attrs[SLOT] for t in here.trials("FAIL")) == dict.fromkeys(range(4), 1)


# Failures


def test_a_trial_whose_process_always_dies_fails_and_the_others_go_on(place, workers):
    def die_below(preprocessed, recipe):
        yield Reported(1, 5.0)
        if recipe.loss.cycle == 7.0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from workers.quick(preprocessed, recipe)

    workers.use(die_below)
    here, said = place("home", ("tune.pruner", "none")), []
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
    def fail(preprocessed, recipe):
        if recipe.loss.cycle == 7.0:
            if how == "raises":
                raise RuntimeError("out of memory\nand a traceback")
            yield Reported(1, 3.0)
            yield Reported(2, float(how))
        else:
            yield from workers.quick(preprocessed, recipe)

    workers.use(fail)
    here = place("home", ("tune.pruner", "none"))
    tree = here.run()[1]
    assert [t["state"] for t in tree["trials"]] == ["failed", "complete", "complete", "complete"]
    assert tree["trials"][0]["score"] is None and tree["best"] != 0
    error = here.study.slots()[0].error
    assert error == ("RuntimeError: out of memory" if how == "raises" else f"its score is {how}")
    assert len(here.trials()) == 4
    failed, *others = (t.user_attrs[WORKER]["pid"] for t in here.trials())
    if how == "raises":
        assert failed not in others


def test_when_every_trial_fails_the_last_error_is_told_and_the_next_run_tries_again(place, workers):
    def fail(preprocessed, recipe):
        raise RuntimeError(f"out of memory with {recipe.loss.cycle}")
        yield

    workers.use(fail)
    here = place("home", ("tune.trials", 9))
    with pytest.raises(EnvironmentFault, match="every trial failed; the last said: RuntimeError: out of memory with"):
        here.run()
    assert sum("error" in t.user_attrs for t in here.trials()) == 4
    workers.use(workers.quick)
    result, tree = here.run()
    assert [t["state"] for t in tree["trials"]].count("failed") == 0
    runs = here.children(result.summary["mlflow_run"])
    assert sorted(r.info.run_name for r in runs) == [f"trial {k}" for k in range(9)]
    assert all(r.info.status == "FINISHED" for r in runs)


def test_a_hopeless_trial_is_pruned_and_never_the_best(place, workers):
    def worse_each_time(preprocessed, recipe):
        offset = 0.0 if recipe.loss.cycle == 7.0 else recipe.loss.cycle
        yield Reported(1, 1.0 + offset)
        yield Reported(2, 1.0 + offset)

    workers.use(worse_each_time)
    result, tree = place("home", ("tune.trials", 8)).run()
    pruned = [t for t in tree["trials"] if t["state"] == "pruned"]
    assert len(pruned) == result.summary["pruned"] > 0
    assert all(t["reports"] == {"1": t["score"]} for t in pruned)
    assert all(t["trial"] >= 2 for t in pruned)
    assert tree["best"] == 0


def test_a_worker_that_never_takes_a_trial_is_not_started_for_ever(place, workers, monkeypatch):
    monkeypatch.setattr(worker, "run_worker", lambda *arguments: os._exit(7))
    with pytest.raises(EnvironmentFault, match="ended 3 times before it took a trial, the last time with exit code 7"):
        place().run()
