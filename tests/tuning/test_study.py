"""The study's queue, on SQLite and on PostgreSQL: who may take what, what becomes of the slots of the dead."""

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context

import optuna
import pytest
import sqlalchemy

from ctmr.errors import EnvironmentFault, InputError
from ctmr.pipeline.stage import StageKey
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.tuning import Choice, Integers, Uniform
from ctmr.system.processes import start_time
from ctmr.tuning import storage
from ctmr.tuning.naming import study_folder
from ctmr.tuning.study import SLOT, LostError, Study
from ctmr.tuning.trial import SlotState

PARAMS = {"train.lr_generator": 3e-4, "train.lr_discriminator": 2e-4, "loss.cycle": 7.25}


def recipe_of(trials, wave):
    return override(Recipe(), [("tune.trials", trials), ("tune.workers", wave)])


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def address(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return request.getfixturevalue("postgresql")


@pytest.fixture
def opened(address, tmp_path):
    """Open this test's study; every test has a study of its own, on PostgreSQL in the same database."""

    def open_(trials=4, wave=2, create=True):
        study = Study(f"study-{tmp_path.name}", address, recipe_of(trials, wave))
        if create:
            study.create()
        return study

    return open_


class Sleeper:
    """A process that does nothing but live, and be the worker that a study is told of."""

    def __init__(self, study, above=None):
        self.process = subprocess.Popen(["sleep", "600"])
        above = os.getpid() if above is None else above.process.pid
        self.study = study
        study._me = {
            **study._me,
            "pid": self.process.pid,
            "started": start_time(self.process.pid),
            "supervisor": above,
            "supervisor_started": start_time(above),
        }

    def kill(self):
        """Kill it without asking for its exit status: a zombie is dead too."""
        self.process.send_signal(signal.SIGKILL)
        while start_time(self.process.pid) is not None:
            time.sleep(0.01)


@pytest.fixture
def worker(opened):
    """Return a worker: a study of its own that speaks for a process of its own."""
    started = []

    def start(above=None, **shape):
        started.append(Sleeper(opened(**shape), above))
        return started[-1]

    yield start
    for sleeper in started:
        sleeper.process.kill()
        sleeper.process.wait()


def states(study):
    return [slot.state.value for slot in study.slots()]


def trials_by_slot(study):
    return Counter(t.user_attrs[SLOT] for t in study._trials())


# Creation


def test_a_created_study_waits_with_all_its_slots_and_creating_it_again_adds_none(opened):
    opened(), opened()
    study = opened(create=False)
    assert states(study) == ["waiting"] * 4
    assert trials_by_slot(study) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert not study.over(study.slots())


def test_a_study_that_nobody_created_is_refused_by_name(opened):
    study = opened(create=False)
    with pytest.raises(InputError, match=f"there is no study {study.name} at .*create it"):
        study.claim()


def at_once(count, work, *arguments):
    """Run a function in processes that start it at the same moment; return their exit codes."""
    fork = get_context("fork")
    barrier = fork.Barrier(count)
    processes = [fork.Process(target=work, args=(barrier, k, *arguments)) for k in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_processes_that_create_a_study_at_once_create_one(address, tmp_path):
    def create(barrier, number):
        barrier.wait()
        Study(f"once-{tmp_path.name}", address, recipe_of(12, 4)).create()

    assert at_once(6, create) == [0] * 6
    study = Study(f"once-{tmp_path.name}", address, recipe_of(12, 4))
    assert trials_by_slot(study) == dict.fromkeys(range(12), 1)


@pytest.mark.parametrize("mender", ["create", "claim"])
def test_a_creation_that_was_cut_in_two_is_completed(opened, mender, monkeypatch):
    added = []

    def add(self, trial, real=optuna.Study.add_trial):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(trial)
        real(self, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", add)
        with pytest.raises(KeyboardInterrupt):
            opened()
    study = opened(create=mender == "create")
    study.claim()
    assert trials_by_slot(study) == {0: 1, 1: 1, 2: 1, 3: 1}


def test_studies_of_other_names_in_the_same_database_are_strangers(address, opened, tmp_path):
    mine, other = opened(), Study(f"other-{tmp_path.name}", address, recipe_of(2, 2))
    other.create()
    other.fail(other.claim(), "no")
    assert states(mine) == ["waiting"] * 4
    assert mine.uid != other.uid


# Taking slots


def test_slots_are_taken_in_order_and_a_wave_waits_for_the_end_of_those_before(worker):
    one, two, three = worker(), worker(), worker()
    first, second = one.study.claim(), two.study.claim()
    assert (first.number, second.number) == (0, 1)
    assert three.study.claim() is None
    two.study.complete(second, 1.0)
    assert three.study.claim() is None
    one.study.fail(first, "no")
    third = three.study.claim()
    assert third.number == 2
    assert [s.state for s in third.slots[:2]] == [SlotState.FAILED, SlotState.COMPLETE]


def test_processes_that_take_slots_at_once_never_take_the_same(address, opened, tmp_path):
    count, slots = 6, 24
    study = opened(slots, slots)

    def take(barrier, number):
        mine = opened(slots, slots, create=False)
        barrier.wait()
        for _ in range(slots // count):
            claim = mine.claim()
            with (tmp_path / f"taken-{number}").open("a") as stream:
                stream.write(f"{claim.number}\n")
            mine.complete(claim, 1.0)

    assert at_once(count, take) == [0] * count
    taken = [int(line) for path in tmp_path.glob("taken-*") for line in path.read_text().split()]
    assert sorted(taken) == list(range(slots))
    assert study.over(study.slots())


def test_what_a_slot_tried_and_reported_is_kept_exactly(worker):
    study = worker().study
    claim = study.claim()
    study.begin(claim, PARAMS)
    study.report(claim, 5, 0.1 + 0.2)
    study.report(claim, 10, 1 / 3)
    study.complete(claim, 1 / 3, pruned=True)
    slot = study.slots()[0]
    assert (slot.state, slot.params, slot.score) == (SlotState.PRUNED, PARAMS, 1 / 3)
    assert slot.reports == {5: 0.1 + 0.2, 10: 1 / 3}
    assert study._trials()[0].params == PARAMS


def test_what_a_trial_leaves_is_kept_in_bytes_and_the_last_word_counts(worker):
    study = worker().study
    claim = study.claim()
    study.keep(claim, {"losses.json": b"{}", "pictures.npz": bytes(range(256)) * 500})
    study.keep(claim, {"losses.json": b"[1]"})
    study.complete(claim, 1.0)
    done, waiting = study.slots()[:2]
    assert study.kept(done) == {"losses.json": b"[1]", "pictures.npz": bytes(range(256)) * 500}
    assert study.kept(waiting) == {}


# The search space


def searching(study, space):
    tune = study.recipe.tune.model_copy(update={"space": space})
    return Study(study.name, study.address, study.recipe.model_copy(update={"tune": tune}))


def test_a_changed_search_space_is_refused_by_name(opened):
    study = opened()
    before = study.recipe.tune.space
    changed = {
        "loss.cycle": Uniform(low=5.0, high=20.0),
        "train.lr_generator": before["train.lr_generator"],
        "train.pool": Integers(low=0, high=50, step=10),
        "network.generator.kind": Choice(values=("resnet", "unet")),
    }
    other = searching(study, changed)
    for refused in (other.create, other.require_same_space):
        with pytest.raises(InputError) as caught:
            refused()
        assert str(caught.value) == (
            f"the study {study.name} at {study._database.where} searches another space: "
            "tune.space.loss.cycle was uniform 5 to 15 and is uniform 5 to 20; "
            "tune.space.network.generator.kind was not searched and is choice of resnet, unet; "
            "tune.space.train.lr_discriminator was log_uniform 0.0001 to 0.001 and is not searched; "
            "tune.space.train.pool was not searched and is int 0 to 50 in steps of 10; "
            "put it back to go on with that study, or give tune.study a name that begins another"
        )
    assert trials_by_slot(study) == {0: 1, 1: 1, 2: 1, 3: 1}
    searching(study, dict(reversed(before.items()))).create()
    study.create()


def test_recipes_that_differ_in_their_search_space_alone_mean_one_study(tmp_path):
    place = StageKey(
        "key", {"version": "1", "recipe.tune": "x", "recipe.train": "y", "input data": "z"}, tmp_path / "key"
    )
    recipe = recipe_of(4, 2)

    def folder(*changes, place=place):
        return study_folder(place.parts, place.work, override(recipe, changes))

    assert folder() == folder(("tune.space", {"loss.cycle": {"kind": "uniform", "low": 1, "high": 2}}))
    others = [
        folder(("tune.trials", 5)),
        folder(("tune.seed", 1)),
        folder(("tune.study", "wide")),
        folder(place=replace(place, parts={**place.parts, "input data": "other"})),
        folder(place=replace(place, parts={**place.parts, "recipe.train": "other"})),
    ]
    assert len({folder(), *others}) == 6
    assert folder(("tune.study", "wide")).name.startswith("wide-")
    assert all(path.parent == tmp_path for path in others)


# The slots of the dead


def test_the_slot_of_a_dead_worker_is_tried_once_more_and_then_fails(worker):
    first, second, third = worker(), worker(), worker()
    claims = [first.study.claim()]
    first.kill()
    claims.append(second.study.claim())
    second.kill()
    assert [c.number for c in claims] == [0, 0]
    assert third.study.claim().number == 1
    slot = third.study.slots()[0]
    assert slot.state is SlotState.FAILED and slot.score is None
    assert slot.error.startswith("its process died 2 times, the last time on ")


def test_a_worker_that_died_with_its_supervisor_costs_its_slot_nothing(worker):
    for _ in range(3):
        above = worker()
        below = worker(above=above)
        assert below.study.claim().number == 0
        below.kill(), above.kill()
    assert worker().study.claim().number == 0


def test_a_slot_that_was_given_back_is_taken_again(worker):
    one, two = worker(), worker()
    for _ in range(3):
        one.study.release(one.study.claim())
    assert two.study.claim().number == 0
    assert states(one.study) == ["running", "waiting", "waiting", "waiting"]


def test_a_recycled_process_id_is_another_process(worker):
    one, two = worker(), worker()
    one.study._me["started"] -= 1
    assert one.study.claim().number == 0
    assert two.study.claim().number == 0


def test_a_slot_whose_worker_never_heard_that_it_got_it_is_taken_by_the_same_worker(worker):
    one = worker()
    assert [one.study.claim().number for _ in range(3)] == [0, 0, 0]


@pytest.fixture
def old_server(monkeypatch):
    """A server that has run for long."""
    monkeypatch.setattr(storage.Database, "is_young", False)


def silence(study):
    """Make the last heartbeat of all trials an hour old."""
    with study._storage.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = :then"),
            {"then": optuna.storages._rdb.storage.datetime(2020, 1, 1)},
        )


def test_a_worker_on_another_machine_is_dead_when_its_heartbeat_stops(worker, old_server):
    far, near = worker(), worker()
    far.study._me["host"] = "elsewhere/boot/pid:[1]"
    claim = far.study.claim()
    assert near.study.claim().number == 1
    near.study.release(near.study.claim())
    silence(near.study)
    assert near.study.claim().number == 0
    with pytest.raises(LostError):
        far.study.report(claim, 5, 1.0)
    with pytest.raises(LostError):
        far.study.complete(claim, 1.0)


def test_a_heartbeat_keeps_a_worker_on_another_machine_alive(worker, old_server):
    far, near = worker(), worker()
    far.study._me["host"] = "elsewhere/boot/pid:[1]"
    claim = far.study.claim()
    silence(near.study)
    far.study.beat(claim)
    assert near.study.claim().number == 1


@pytest.mark.slow
def test_nobody_is_dead_for_a_server_that_was_away_itself(postgresql_server, postgresql, tmp_path, monkeypatch):
    """Heartbeats could not arrive: a worker elsewhere that trained on through it must keep its slot."""
    far, near = (Study(f"away-{tmp_path.name}", postgresql, recipe_of(4, 4)) for _ in range(2))
    far.create()
    far._me["host"] = "elsewhere/boot/pid:[1]"
    claim = far.claim()
    silence(near)
    postgresql_server.stop()
    postgresql_server.start()
    assert near.claim().number == 1
    far.complete(claim, 1.0)
    monkeypatch.setattr(storage, "GRACE_S", 0)
    assert not near._database.is_young


def test_a_worker_on_this_machine_needs_no_heartbeat(worker):
    """A laptop that slept has workers that were silent and live."""
    one, two = worker(), worker()
    one.study.claim()
    silence(two.study)
    assert two.study.claim().number == 1


# Failures


def test_a_failed_slot_is_not_tried_again_and_the_study_goes_on(worker):
    study = worker(trials=3, wave=1).study
    study.fail(study.claim(), "RuntimeError: out of memory")
    slot = study.slots()[0]
    assert (slot.state, slot.error) == (SlotState.FAILED, "RuntimeError: out of memory")
    claim = study.claim()
    assert claim.number == 1
    study.complete(claim, 1.0)
    study.fail(study.claim(), "no")
    assert study.over(study.slots()) and study.claim() is None
    assert states(study) == ["failed", "complete", "failed"]


def test_after_two_waves_of_failures_nothing_more_is_tried_until_somebody_was_told(worker):
    study = worker(trials=9, wave=1).study
    study.fail(study.claim(), "no")
    assert not study.over(study.slots())
    study.fail(study.claim(), "no")
    assert study.over(study.slots()) and study.claim() is None
    study.create()
    assert study.over(study.slots())
    study.tell_failure()
    study.create()
    assert states(study) == ["waiting"] * 9
    assert study.claim().number == 0


# The database


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("no address", "what it holds is no address"),
        ("mysql://me:secret@host/db", "it begins with mysql://"),
        ("sqlite://", "it names no file"),
        ("sqlite:///:memory:", "it names no file"),
        ("postgresql://me:secret@host", "it names no database"),
    ],
)
def test_an_address_that_workers_cannot_share_is_refused_without_its_password(address, said):
    with pytest.raises(InputError, match=said) as caught:
        Study("s", address, recipe_of(2, 2))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("postgresql://me:secret@127.0.0.1:1/db?application_name=secret", "postgresql://127.0.0.1:1/db"),
        ("postgresql://me@127.0.0.1:1/db?password=secret", "postgresql://127.0.0.1:1/db"),
        ("postgresql://me@/db?host=%2Fsecret&password=secret", "postgresql:///db"),
        ("sqlite:////no/such/folder/study.db", "sqlite:////no/such/folder/study.db"),
    ],
)
def test_a_database_that_does_not_answer_is_named_without_its_password(address, where):
    began = time.monotonic()
    with pytest.raises(EnvironmentFault) as caught:
        Study("s", address, recipe_of(2, 2))
    assert f"the study's database at {where} cannot be used: " in str(caught.value)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_what_is_written_elsewhere_waits_for_a_server_and_is_not_undone_by_its_end(
    postgresql_server, postgresql, tmp_path
):
    study = Study(f"elsewhere-{tmp_path.name}", postgresql, recipe_of(2, 2))
    study.create()
    postgresql_server.stop()
    timer = threading.Timer(1.0, postgresql_server.start)
    timer.start()
    with study.alone():
        timer.join()
        postgresql_server.stop()
    postgresql_server.start()
    assert states(study) == ["waiting"] * 2


def test_a_database_that_another_process_keeps_locked_ends_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_SQLITE_TIMEOUT_S", 0.05)
    study = Study("s", f"sqlite:///{tmp_path / 'study.db'}", recipe_of(2, 2))
    study.create()
    claim = study.claim()
    other = sqlite3.connect(tmp_path / "study.db", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.0, other.rollback)
    timer.start()
    began = time.monotonic()
    study.report(claim, 1, 0.5)
    assert time.monotonic() - began > 0.9
    assert study.slots()[0].reports == {1: 0.5}
    timer.join()
    other.close()


def test_a_database_that_is_gone_for_good_ends_in_one_sentence(tmp_path, monkeypatch):
    study = Study("s", f"sqlite:///{tmp_path / 'study.db'}", recipe_of(2, 2))
    study.create()
    claim = study.claim()
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    with sqlite3.connect(tmp_path / "study.db") as other:
        other.execute("DROP TABLE trial_intermediate_values")
    with pytest.raises(EnvironmentFault, match="cannot be used: no such table"):
        study.report(claim, 1, 0.5)
