"""The command line: one sentence and an exit code for every mistake, nothing heavy before it is needed."""

import json
import os
import subprocess
import sys
import time

import pytest

from ctmr.cli.app import app, main
from ctmr.errors import EnvironmentFault, GateFailed
from ctmr.pipeline import stages

STAGE_NAMES = stages.names()

HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "mlflow",
    "kfp",
    "optuna",
    "dvc",
    "great_expectations",
    "boto3",
    "onnx",
    "onnxruntime",
    "matplotlib",
    "pydicom",
    "nibabel",
    "tritonclient",
    "pydantic",
)


@pytest.fixture
def ctmr(home, monkeypatch, capsys, tmp_path):
    """Run the command line in this process; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["ctmr", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


MISTAKES = [
    (["run", "--dataset", "x", "--recipe", "nonesuch"], "there is no recipe 'nonesuch'"),
    (["run", "--dataset", "nowhere"], "there is no dataset at nowhere"),
    (["fetch", "--dataset", "nowhere"], "there is no dataset at nowhere"),
    (["run", "--dataset", "x", "--set", "train.stepz=5"], "there is no key 'train.stepz'"),
    (["run", "--dataset", "x", "--set", "train.steps"], "is not key=value"),
    (["run", "--dataset", "x", "--set", "gate.nonesuch.psnr.min=5"], "there is no protocol 'nonesuch'"),
    (["run", "--dataset", "x", "--set", "train.steps=5; train.stepz=5"], "there is no key 'train.stepz'"),
    (["train"], "there are 0 runs of recipe demo below"),
    (["train", "--dataset", "x", "--recipe", "default"], "there are 0 runs of recipe default on dataset x"),
    (["evaluate", "--champion", "best"], "allowed are registered, none"),
    (["train", "--out", "run", "--input", "best"], "is not NAME=PATH"),
    (["train", "--out", "run"], "its input preprocessed is not at"),
    (["train", "--out", "run", "--input", "shards=x"], "unknown ['shards']"),
    (["evaluate", "--out", "run"], "run"),
    (["recipe", "resolve", "nonesuch"], "there is no recipe 'nonesuch'"),
    (["phantom", "heads", "--sequences", "FLAIR"], "allowed are T1 and T2"),
    (["phantom", "."], "exists already"),
    (["lineage", "1.2.3"], "is no synthetic image this machine wrote"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_2(ctmr, words, sentence):
    code, out, err = ctmr(*words)
    assert code == 2
    assert sentence in err
    assert err.startswith("ctmr: ") and err.count("\n") == 1
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    "words", [["nonesuch"], ["run", "x"], ["run", "--nonesuch"], ["phantom", "x", "--subjects", "0"], ["phantom"]]
)
def test_a_command_line_that_cannot_be_read_is_exit_2_without_a_traceback(ctmr, words):
    code, out, err = ctmr(*words)
    assert code == 2
    assert err.startswith("ctmr: ") and err.count("\n") == 1 and "--help` says what there is" in err
    assert "Traceback" not in err + out


def test_a_command_line_that_cannot_be_read_is_a_document_too_with_json(ctmr):
    code, out, _ = ctmr("run", "--nonesuch", "--json")
    document = json.loads(out)
    assert (code, document["exit_code"]) == (2, 2) and "--nonesuch" in document["error"]


@pytest.mark.parametrize("words", [w for w, _ in MISTAKES if "--json" not in w and w[0] in ("run", "train", "lineage")])
def test_with_json_a_mistake_is_one_document_on_standard_output(ctmr, words):
    code, out, err = ctmr(*words, "--json")
    document = json.loads(out)
    assert (code, document["exit_code"], document["kind"]) == (2, 2, "InputError")
    assert err == f"ctmr: {document['error']}\n"


@pytest.mark.parametrize(("error", "code"), [(GateFailed("too noisy"), 1), (EnvironmentFault("no disk"), 3)])
def test_gates_and_faults_have_exit_codes_of_their_own(ctmr, monkeypatch, error, code):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("ctmr.tracking.lineage.trace", fail)
    found, _, err = ctmr("lineage", "1.2.3")
    assert (found, err) == (code, f"ctmr: {error}\n")


@pytest.mark.parametrize("words", [["up"], ["down"], ["run", "--dataset", "pictures"]])
def test_a_home_that_is_no_folder_is_one_sentence(ctmr, monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("CTMR_HOME", str(tmp_path / "home"))
    code, _, err = ctmr(*words)
    assert code == 3 and err.count("\n") == 1
    assert err.startswith(f"ctmr: {tmp_path / 'home'}") and "another folder (CTMR_HOME, --out)" in err


def test_a_stop_from_the_keyboard_says_that_work_is_kept(ctmr, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ctmr.tracking.lineage.trace", stop)
    code, _, err = ctmr("lineage", "1.2.3")
    assert code == 130
    assert "kept" in err and "Traceback" not in err


def test_every_stage_is_a_command_and_they_stand_in_order():
    names = [c.name for c in app.registered_commands if c.name in STAGE_NAMES]
    assert names == list(STAGE_NAMES)


def test_a_recipe_is_printed_in_full_and_can_be_read_again(ctmr, tmp_path):
    from ctmr.recipe.loading import load

    code, out, _ = ctmr("recipe", "resolve", "default", "--set", "train.steps=7")
    assert code == 0
    (tmp_path / "mine.yaml").write_text(out)
    assert load(str(tmp_path / "mine.yaml")).train.steps == 7


def test_recipes_are_listed_with_what_they_are_for(ctmr):
    code, out, _ = ctmr("recipe", "list")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert names[0] == "default"
    assert {"demo", "ctmr", "wolterink2017", "duval", "jha_iima", "nehra", "shangari"} <= set(names)


def test_the_command_line_imports_nothing_heavy():
    program = f"import sys\nfrom ctmr.cli.app import app\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_help_answers_at_once():
    command = [sys.executable, "-m", "ctmr.cli", "--help"]
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - began)
    assert all(name in done.stdout for name in STAGE_NAMES)
    # Half a second is the promise; twice that leaves room for a machine that is busy.
    assert min(seconds) < 1.0


@pytest.mark.parametrize(("words", "mode"), [(["status"], 0o600), (["recipe", "list"], 0o644)])
def test_what_holds_images_is_for_its_owner_alone(ctmr, tmp_path, words, mode):
    os.umask(0o022)
    assert ctmr(*words)[0] == 0
    (tmp_path / "written").touch()
    assert (tmp_path / "written").stat().st_mode & 0o777 == mode
