"""The study's queue, on SQLite and on PostgreSQL: who may take what, what becomes of the slots of the dead."""

import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context

import optuna
import pytest
from studies import trials_of

from ctmr.errors import EnvironmentFault, InputError
from ctmr.pipeline.stage import StageKey
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.tuning import Choice, Integers, Uniform
from ctmr.tuning import storage
from ctmr.tuning.naming import study_folder
from ctmr.tuning.study import SLOT, Study
from ctmr.tuning.trial import SlotState, propose


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

    studies = []

    def open_(trials=4, wave=2, create=True, host="here"):
        studies.append(Study(f"study-{tmp_path.name}", address, recipe_of(trials, wave), host))
        if create:
            studies[-1].create()
        return studies[-1]

    yield open_
    for study in studies:
        study.leave()


@pytest.fixture
def supervisor(opened):
    """Return a study whose slots somebody is present to take; on another machine if it is named."""

    def start(host="here", **shape):
        study = opened(host=host, **shape)
        study.attend()
        return study

    return start


@pytest.fixture
def old_server(monkeypatch):
    """A server that has run for long."""
    monkeypatch.setattr(storage, "GRACE_S", 0)


def states(study):
    return [slot.state.value for slot in study.slots()]


def trials_by_slot(study):
    return Counter(t.user_attrs[SLOT] for t in trials_of(study))


# Creation


def test_a_created_study_waits_with_all_its_slots(opened):
    opened(), opened()
    study = opened(create=False)
    assert states(study) == ["waiting"] * 4
    assert not study.over(study.slots())


def test_a_study_that_nobody_created_is_refused_by_name(opened):
    study = opened(create=False)
    with pytest.raises(InputError, match=f"there is no study {study.name} at .*create it"):
        study.claim(1)


def at_once(count, work, *arguments):
    """Run a function in processes that start it at the same moment; return their exit codes."""
    fork = get_context("fork")
    barrier = fork.Barrier(count)
    processes = [fork.Process(target=work, args=(barrier, k, *arguments)) for k in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def test_processes_that_create_a_study_at_once_create_one(address, tmp_path):
    def create(barrier, number):
        barrier.wait()
        Study(f"once-{tmp_path.name}", address, recipe_of(12, 4)).create()

    assert at_once(4, create) == [0] * 4
    study = Study(f"once-{tmp_path.name}", address, recipe_of(12, 4))
    assert states(study) == ["waiting"] * 12 and study.claim(1).number == 0


def test_a_creation_that_was_cut_in_two_is_completed(opened, monkeypatch):
    def cut(self, key, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_user_attr", cut)
        with pytest.raises(KeyboardInterrupt):
            opened()
    assert len(opened().uid) == 32


def test_studies_of_other_names_in_the_same_database_are_strangers(address, opened, tmp_path):
    mine, other = opened(), Study(f"other-{tmp_path.name}", address, recipe_of(2, 2))
    other.create()
    other.fail(other.claim(1), "no")
    assert states(mine) == ["waiting"] * 4
    assert mine.uid != other.uid


# Taking slots


def test_slots_are_taken_in_order_and_a_wave_waits_for_the_end_of_those_before(supervisor):
    one, two, three = supervisor(), supervisor(), supervisor()
    first, second = one.claim(1), two.claim(1)
    assert (first.number, second.number) == (0, 1)
    assert three.claim(1) is None
    two.complete(second, 1.0)
    assert three.claim(1) is None
    one.fail(first, "no")
    third = three.claim(1)
    assert third.number == 2
    assert [s.state for s in third.slots[:2]] == [SlotState.FAILED, SlotState.COMPLETE]


def test_processes_that_take_slots_at_once_never_take_the_same(address, opened, tmp_path):
    count, slots = 4, 12
    study = opened(slots, slots)

    def take(barrier, number):
        mine = Study(study.name, address, study.recipe)
        mine.attend()
        barrier.wait()
        for _ in range(slots // count):
            claim = mine.claim(1)
            with (tmp_path / f"taken-{number}").open("a") as stream:
                stream.write(f"{claim.number}\n")
            mine.complete(claim, 1.0)

    assert at_once(count, take) == [0] * count
    taken = [int(line) for path in tmp_path.glob("taken-*") for line in path.read_text().split()]
    assert sorted(taken) == list(range(slots))
    assert study.over(study.slots())


def test_what_a_slot_tried_and_reported_is_kept_exactly(supervisor):
    study = supervisor()
    claim = study.claim(1)
    study.report(claim, 5, 0.1 + 0.2)
    study.report(claim, 10, 1 / 3)
    study.prune(claim)
    slot = study.slots()[0]
    assert (slot.state, slot.score) == (SlotState.PRUNED, 1 / 3)
    assert slot.params == claim.params == propose(study.recipe, 0, [])
    assert slot.reports == {5: 0.1 + 0.2, 10: 1 / 3}
    assert trials_of(study)[0].params == slot.params


def test_optunas_own_tools_see_no_value_outside_the_search_range(address, tmp_path):
    recipe = override(recipe_of(2, 2), [("loss.cycle", 99.0)])
    study = Study(f"outside-{tmp_path.name}", address, recipe)
    study.create()
    assert study.claim(1).params["loss.cycle"] == 99.0
    assert set(trials_of(study)[0].params) == set(recipe.tune.space) - {"loss.cycle"}


def test_what_a_trial_leaves_is_kept_in_bytes_and_the_last_word_counts(supervisor):
    study = supervisor()
    claim = study.claim(1)
    study.keep(claim, {"losses.json": b"{}", "pictures.npz": bytes(range(256)) * 500})
    study.keep(claim, {"losses.json": b"[1]"})
    study.complete(claim, 1.0)
    done, waiting = study.slots()[:2]
    assert study.kept(done) == {"losses.json": b"[1]", "pictures.npz": bytes(range(256)) * 500}
    assert study.kept(waiting) == {}


# The search space


def searching(study, address, space):
    tune = study.recipe.tune.model_copy(update={"space": space})
    return Study(study.name, address, study.recipe.model_copy(update={"tune": tune}))


def test_a_changed_search_space_is_refused_by_name(opened, address):
    study = opened()
    before = study.recipe.tune.space
    changed = {
        "loss.cycle": Uniform(low=5.0, high=20.0),
        "train.lr_generator": before["train.lr_generator"],
        "train.pool": Integers(low=0, high=50, step=10),
        "network.generator.kind": Choice(values=("resnet", "unet")),
    }
    other = searching(study, address, changed)
    for refused in (other.create, other.require_same_space):
        with pytest.raises(InputError) as caught:
            refused()
        assert str(caught.value) == (
            f"the study {study.name} at {study.database.where} searches another space: "
            "tune.space.loss.cycle was uniform 5 to 15 and is uniform 5 to 20; "
            "tune.space.network.generator.kind was not searched and is choice of resnet, unet; "
            "tune.space.train.lr_discriminator was log_uniform 0.0001 to 0.001 and is not searched; "
            "tune.space.train.pool was not searched and is int 0 to 50 in steps of 10; "
            "put it back to go on with that study, or give tune.study a name that begins another"
        )
    searching(study, address, dict(reversed(before.items()))).create()
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


def test_the_slot_of_a_worker_that_died_is_tried_once_more_and_then_fails(supervisor):
    study = supervisor()
    for _ in range(2):
        claim = study.claim(1)
        assert claim.number == 0
        study.count_death(claim)
    assert study.claim(1).number == 1
    slot = study.slots()[0]
    assert slot.state is SlotState.FAILED and slot.score is None
    assert slot.error == "its process died 2 times, the last time on here"


def test_a_slot_that_was_given_back_is_taken_again(supervisor):
    one, two = supervisor(), supervisor()
    for _ in range(3):
        one.release(one.claim(1))
    assert two.claim(1).number == 0
    assert states(one) == ["running", "waiting", "waiting", "waiting"]


def test_a_supervisor_that_was_killed_costs_its_slot_nothing_and_one_that_lives_keeps_it(
    address, supervisor, old_server
):
    live = supervisor()

    def die(name, recipe):
        study = Study(name, address, recipe, "here")
        study.attend()
        assert study.claim(1).number == 0
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        process = get_context("fork").Process(target=die, args=(live.name, live.recipe))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL and states(live)[0] == "running"
    assert live.claim(1).number == 0
    assert supervisor().claim(1).number == 1
    assert trials_by_slot(live) == {0: 4, 1: 1}


def test_a_whole_machine_that_ends_counts_against_its_slot(supervisor, old_server):
    near = supervisor()
    for number in range(2):
        far = supervisor(host=f"pod-{number}")
        claim = far.claim(1)
        assert claim.number == 0
        far.leave()
        near.release(near.claim(1))
    assert near.slots()[0].error == "its process died 2 times, the last time on pod-1"


def test_who_was_thought_dead_and_comes_back_is_told_and_changes_nothing(supervisor, old_server):
    late, near = supervisor(), supervisor()
    claim = late.claim(1)
    assert late.report(claim, 5, 1.0)
    late.leave()
    assert near.claim(1).number == 0
    assert not late.report(claim, 10, 1.0)
    late.complete(claim, 1.0)
    late.fail(claim, "no")
    assert states(near)[0] == "running"


def test_a_slot_whose_taker_never_heard_that_it_got_it_is_taken_by_the_same(supervisor, monkeypatch):
    study, lost = supervisor(), []

    def ask(self, space, real=optuna.Study.ask):
        trial = real(self, space)
        if not lost:
            lost.append(trial.number)
            raise optuna.exceptions.StorageInternalError("the connection broke")
        return trial

    monkeypatch.setattr(optuna.Study, "ask", ask)
    assert study.claim(1).number == 0
    assert [t.state.name for t in trials_of(study)] == ["FAIL", "RUNNING"]


def test_a_slot_that_was_enqueued_and_never_asked_for_holds_nobody_up(supervisor, monkeypatch):
    def cut(self, space):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", cut)
        with pytest.raises(KeyboardInterrupt):
            supervisor().claim(1)
    study = supervisor()
    assert [study.claim(1).number for _ in range(2)] == [0, 1]
    assert [t.state.name for t in trials_of(study)] == ["FAIL", "RUNNING", "RUNNING"]


@pytest.mark.slow
def test_nobody_is_dead_for_a_server_that_was_away_itself(postgresql_server, postgresql, tmp_path, monkeypatch):
    """Its locks are gone: a supervisor elsewhere that goes on through it must keep its slots."""
    near, far = (Study(f"away-{tmp_path.name}", postgresql, recipe_of(4, 4), host) for host in ("near", "far"))
    far.create()
    far.attend()
    claim = far.claim(1)
    postgresql_server.stop()
    postgresql_server.start()
    assert near.claim(1).number == 1
    far.attend()
    monkeypatch.setattr(storage, "GRACE_S", 0)
    assert near.claim(1).number == 2
    far.complete(claim, 1.0)
    assert states(near)[0] == "complete"
    far.leave(), near.leave()


# Failures


def test_a_failed_slot_is_not_tried_again_and_the_study_goes_on(supervisor):
    study = supervisor(trials=3, wave=1)
    study.fail(study.claim(1), "RuntimeError: out of memory")
    slot = study.slots()[0]
    assert (slot.state, slot.error) == (SlotState.FAILED, "RuntimeError: out of memory")
    claim = study.claim(1)
    assert claim.number == 1
    study.complete(claim, 1.0)
    study.fail(study.claim(1), "no")
    assert study.over(study.slots()) and study.claim(1) is None
    assert states(study) == ["failed", "complete", "failed"]


def test_after_two_waves_of_failures_nothing_more_is_tried_until_somebody_was_told(supervisor):
    study = supervisor(trials=9, wave=1)
    study.fail(study.claim(1), "no")
    assert not study.over(study.slots())
    study.fail(study.claim(1), "no")
    assert study.over(study.slots()) and study.claim(1) is None
    study.create()
    assert study.over(study.slots())
    study.tell_failure()
    study.create()
    assert states(study) == ["waiting"] * 9
    assert study.claim(1).number == 0


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
    claim = study.claim(1)
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
    claim = study.claim(1)
    monkeypatch.setattr(storage, "RETRY_S", 0.1)
    with sqlite3.connect(tmp_path / "study.db") as other:
        other.execute("DROP TABLE trial_intermediate_values")
    with pytest.raises(EnvironmentFault, match="cannot be used: no such table"):
        study.report(claim, 1, 0.5)
