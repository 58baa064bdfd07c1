"""What every stage obeys, shown on toy stages: reuse, reasons, atomic outputs, work that survives."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ctmr.errors import EnvironmentFault, GateFailed, InputError
from ctmr.pipeline.stage import RECORD, Stage, run_stage
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.system.digest import content_digest, tree_digest


class Toy:
    """A stage that copies its input, counts its runs and can be told to misbehave."""

    def __init__(self, home, root):
        self.home, self.root = home, root
        self.runs = 0
        self.contexts = []
        self.recipe = Recipe()
        self.fail = None
        self.data = root / "data"
        self.data.mkdir()
        (self.data / "x.txt").write_text("one")
        self.stage = Stage(
            "toy", takes={"data": "data"}, sections=("train",), run=self.work, options={"who": "Who asks."}
        )
        self.out = root / "run" / "toy"

    def work(self, context):
        self.runs += 1
        self.contexts.append(context)
        (context.out / "copy.txt").write_text((context.inputs["data"] / "x.txt").read_text() + str(self.recipe.loss))
        (context.out / "provenance").mkdir()
        (context.out / "provenance" / "note.txt").write_text(f"run {self.runs}")
        if self.fail is not None:
            self.fail(context)
        return {"runs": self.runs}

    def __call__(self, **changes):
        arguments = {"inputs": {"data": self.data}, "recipe": self.recipe, "out": self.out, "home": self.home}
        return run_stage(self.stage, **{**arguments, **changes})


@pytest.fixture
def toy(home, tmp_path):
    return Toy(home, tmp_path)


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def raiser(error):
    def fail(context):
        raise error

    return fail


# Reuse and reasons


def test_what_has_not_changed_is_reused_with_its_summary(toy):
    first, second = toy(), toy()
    assert (first.reused, first.because) == (False, "it had not run yet")
    assert (second.reused, second.because) == (True, "nothing changed")
    assert (second.digest, second.summary, toy.runs) == (first.digest, {"runs": 1}, 1)
    assert first.digest == content_digest(toy.out)


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (lambda t: (t.data / "x.txt").write_text("two"), "input data changed"),
        (
            lambda t: (t.data / "x.txt").rename(t.data / "y.txt") and (t.data / "x.txt").write_text("one"),
            "input data changed",
        ),
        (lambda t: setattr(t, "recipe", override(t.recipe, [("train.steps", 3)])), "recipe.train changed"),
        (lambda t: setattr(t, "stage", replace(t.stage, version=2)), "version changed"),
        (lambda t: setattr(t, "stage", replace(t.stage, sections=("train", "loss"))), "recipe.loss changed"),
        (lambda t: (t.out / "copy.txt").write_text("altered"), "its output was altered"),
        (lambda t: (t.out / "more.txt").write_text(""), "its output was altered"),
        (lambda t: (t.out / "copy.txt").unlink(), "its output was altered"),
        (lambda t: (t.out / RECORD).unlink(), "it had not run yet"),
    ],
)
def test_a_rerun_names_what_changed_and_restores_the_output(toy, change, because):
    toy()
    change(toy)
    again = toy()
    assert (again.reused, again.because, toy.runs) == (False, because, 2)
    assert toy().reused


def test_the_bytes_of_a_file_that_the_recipe_names_count_and_it_must_be_there(toy, tmp_path):
    named = tmp_path / "weights"
    toy.stage = replace(toy.stage, files=lambda recipe: {"train.weights": str(named)})
    with pytest.raises(InputError, match=r"train\.weights names .*weights, and there is no such file"):
        toy()
    named.write_text("one")
    toy()
    assert toy().reused
    named.write_text("two")
    assert toy().because == "file train.weights changed"


def test_an_output_made_when_a_recipe_listed_its_directions_is_reused(toy):
    toy.stage = replace(toy.stage, sections=("direction", "train"))
    toy()
    record = json.loads((toy.out / RECORD).read_text())
    assert record["parts"]["recipe.directions"] == tree_digest({"directions": ["mr2ct"]})
    assert record["settings"]["directions"] == ["mr2ct"]
    toy.recipe = override(toy.recipe, [("direction", "ct2mr")])
    assert toy().because == "recipe.directions changed"


def test_several_reasons_are_all_named(toy):
    toy()
    (toy.data / "x.txt").write_text("two")
    toy.recipe = override(toy.recipe, [("train.steps", 3)])
    assert toy(options={"who": "me"}).because == "input data, option who, recipe.train changed"


@pytest.mark.parametrize("key", ["gate.paired_volume_hu.psnr.min", "deploy.chunk", "tune.trials", "evaluate.bootstrap"])
def test_a_recipe_section_that_is_not_declared_never_invalidates(toy, key):
    toy()
    toy.recipe = override(toy.recipe, [(key, 7)])
    assert toy().reused


def test_what_lies_in_an_inputs_provenance_never_invalidates(toy):
    toy()
    (toy.data / "provenance").mkdir()
    (toy.data / "provenance" / "seconds.txt").write_text("12")
    assert toy().reused


def test_an_equal_rerun_stops_the_cascade(toy, tmp_path):
    """The second stage reads only the content of the first, so a rerun that gives the same leaves it alone."""
    next_stage = Stage("next", takes={"toy": "toy"}, sections=(), run=lambda context: {})

    def follow():
        return run_stage(
            next_stage, inputs={"toy": toy.out}, recipe=toy.recipe, out=tmp_path / "run" / "next", home=toy.home
        )

    toy()
    follow()
    toy.recipe = override(toy.recipe, [("train.steps", 3)])
    assert not toy().reused
    assert follow().reused


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"parts": {}}', "\xff"])
def test_an_unreadable_record_is_a_rerun_not_a_crash(toy, text):
    toy()
    (toy.out / RECORD).write_text(text, encoding="latin-1")
    again = toy()
    assert not again.reused
    assert toy().reused


def test_what_is_no_longer_true_of_the_world_is_done_again(toy):
    seen = []

    def still_true(context):
        seen.append(context.out)
        return len(seen) != 2

    toy.stage = replace(toy.stage, still_true=still_true, side_effects=True)
    toy()
    assert seen == []
    assert toy().reused
    again = toy()
    assert (again.reused, again.because) == (False, "what it did is no longer there")
    assert seen == [toy.out] * 2


def test_the_record_says_what_was_read_and_never_counts(toy):
    result = toy(options={"who": "me"})
    record = json.loads((toy.out / RECORD).read_text())
    assert record["digest"] == result.digest == content_digest(toy.out)
    assert set(record["parts"]) == {"version", "recipe.train", "input data", "option who"}
    assert {"host", "finished", "seconds", "code_revision"} <= set(record)


# Atomic


@pytest.mark.parametrize("error", [ValueError("boom"), InputError("bad"), GateFailed("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_output_and_nothing_half_done(toy, error):
    toy()
    before = files_of(toy.out)
    toy.recipe = override(toy.recipe, [("train.steps", 3)])
    toy.fail = raiser(error)
    with pytest.raises(type(error)):
        toy()
    assert files_of(toy.out) == before
    assert [p.name for p in toy.out.parent.iterdir()] == ["toy"]


def test_the_first_output_appears_only_when_it_is_complete(toy):
    def look(context):
        assert not toy.out.exists()
        assert context.out != toy.out

    toy.fail = look
    toy()
    assert set(files_of(toy.out)) == {"copy.txt", "provenance/note.txt", RECORD}


def test_a_stage_for_one_process_refuses_several_that_torchrun_started(toy, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="stage toy runs in one process, and torchrun started 2"):
        toy()
    assert toy.runs == 0 and not toy.out.exists()


def full_disk(context=None):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/model.onnx")


def test_a_full_disk_is_a_fault_of_the_environment_that_names_the_file(toy):
    toy()
    before = files_of(toy.out)
    toy.recipe = override(toy.recipe, [("train.steps", 3)])
    toy.fail = full_disk
    with pytest.raises(EnvironmentFault, match=r"stage toy could not write /out/model.onnx: No space left") as caught:
        toy()
    assert "\n" not in str(caught.value)
    assert files_of(toy.out) == before
    assert [p.name for p in toy.out.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize("where", ["os.fsync", "ctmr.system.files.exchange"])
def test_a_disk_that_fills_while_the_output_is_put_in_place_leaves_the_old_one(toy, monkeypatch, where):
    toy()
    before = files_of(toy.out)
    toy.recipe = override(toy.recipe, [("train.steps", 3)])
    monkeypatch.setattr(where, lambda *paths: full_disk())
    with pytest.raises(EnvironmentFault, match="/toy cannot be written: No space left on device"):
        toy()
    assert files_of(toy.out) == before
    assert [p.name for p in toy.out.parent.iterdir()] == ["toy"]


def test_an_input_that_vanishes_under_a_running_stage_is_not_called_a_full_disk(toy):
    def vanish(context):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(toy.data / "x.txt"))

    toy.fail = vanish
    with pytest.raises(EnvironmentFault) as caught:
        toy()
    assert "could not write" not in str(caught.value)


KILLED = """
import os, signal, sys
from pathlib import Path
from ctmr.system.home import Home
from ctmr.recipe.recipe import Recipe
from ctmr.pipeline.stage import Stage, run_stage
from ctmr.system import files

root, when = Path(sys.argv[1]), sys.argv[2]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def work(context):
    with (context.work / "checkpoints.txt").open("a") as stream:
        stream.write("step ")
    (context.out / "half.txt").write_text("half")
    if when == "run":
        die()
    return {}


if when in ("before the exchange", "after the exchange"):
    swap = files.exchange

    def stop(a, b):
        if when == "after the exchange":
            swap(a, b)
        die()

    files.exchange = stop
stage = Stage("toy", takes={"data": "data"}, sections=("train",), run=work)
result = run_stage(stage, inputs={"data": root / "data"}, recipe=Recipe(), out=root / "out", home=Home.current())
print(result.because)
"""


def run_and_die(root, when):
    return subprocess.run([sys.executable, "-c", KILLED, str(root), when], capture_output=True, text=True)


@pytest.fixture
def finished(home, tmp_path):
    """A finished output whose input has changed since, so that the next run works again."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.txt").write_text("one")
    assert run_and_die(tmp_path, "never").returncode == 0
    (tmp_path / "data" / "x.txt").write_text("two")
    return tmp_path


def test_a_kill_after_the_exchange_leaves_the_new_output_complete(finished):
    assert run_and_die(finished, "after the exchange").returncode == -signal.SIGKILL
    assert (finished / "out" / RECORD).is_file()
    assert run_and_die(finished, "never").stdout.strip() == "nothing changed"


@pytest.mark.parametrize("when", ["run", "before the exchange"])
def test_a_kill_leaves_the_old_output(finished, when):
    before = files_of(finished / "out")
    assert run_and_die(finished, when).returncode == -signal.SIGKILL
    assert files_of(finished / "out") == before


def test_after_a_kill_the_next_run_finishes_in_the_same_work_folder_and_clears_up(finished, home):
    for _ in range(2):
        assert run_and_die(finished, "run").returncode == -signal.SIGKILL
    done = run_and_die(finished, "never")
    assert done.stdout.strip() == "input data changed"
    texts = sorted(p.read_text() for p in (home.work / "toy").rglob("checkpoints.txt"))
    assert texts == ["step ", "step step step "]
    assert sorted(p.name for p in finished.iterdir() if p.name != home.root.name) == ["data", "out"]


# Work folder


def test_the_work_folder_is_the_same_for_the_same_key_and_survives_an_error(toy):
    def leave(context):
        (context.work / "checkpoint").write_text("step 5")
        raise ValueError("boom")

    toy.fail = leave
    with pytest.raises(ValueError, match="boom"):
        toy()
    toy.fail = None
    toy(out=toy.root / "elsewhere" / "toy")
    first, second = (c.work for c in toy.contexts)
    assert first == second
    assert (second / "checkpoint").read_text() == "step 5"
    assert first.is_relative_to(toy.home.work / "toy")
    assert not first.is_relative_to(toy.out)


def test_another_input_recipe_or_option_has_another_work_folder(toy):
    toy()
    toy(options={"who": "me"})
    toy.recipe = override(toy.recipe, [("train.steps", 3)])
    toy()
    (toy.data / "x.txt").write_text("two")
    toy()
    assert len({c.work for c in toy.contexts}) == 4


# Mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": {}}, r"stage toy takes the inputs \['data'\]; unknown \[\], missing \['data'\]"),
        ({"inputs": {"data": Path("/"), "more": Path("/")}}, r"unknown \['more'\]"),
        ({"options": {"nonesuch": "1"}}, r"takes the options \['who'\]; unknown \['nonesuch'\]"),
        ({"inputs": {"data": Path("/nowhere/at/all")}}, "its input data is not at /nowhere/at/all; run the stage"),
    ],
)
def test_a_wrong_input_or_option_is_refused_before_anything_runs(toy, changes, words):
    with pytest.raises(InputError, match=words):
        toy(**changes)
    assert toy.runs == 0
    assert not toy.out.exists()


def test_a_stage_that_leaves_a_link_is_refused(toy):
    toy.fail = lambda context: (context.out / "link").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="symbolic link"):
        toy()
    assert not toy.out.exists()
