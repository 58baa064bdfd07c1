"""`ctmr dataset` as a person types it: one sentence a mistake, one JSON document with --json, the right exit code."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from ctmr.cli.app import main


@pytest.fixture
def ctmr(home, monkeypatch, capsys, tmp_path):
    """Run the command line in this process; returns (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["ctmr", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return command


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["add", "x", "nowhere", "--repo", "repo"], "there is no folder"),
        (["add", "X Y", ".", "--repo", "repo"], "dataset name 'X Y'"),
        (["add", "x", ".", "--repo", "../repo", "--license-file", "none"], "--license-file none is no file"),
        (["add", "x", ".", "--repo", "../repo", "--first", "PET"], "--first 'PET': folder A holds CT or MR"),
        (["list", "--repo", "nowhere"], "nowhere is no git + DVC repository"),
        (["show", "x", "--repo", "nowhere"], "nowhere is no git + DVC repository"),
        (["verify", "x", "--repo", "nowhere"], "nowhere is no git + DVC repository"),
        (["push", "x", "--repo", "nowhere"], "nowhere is no git + DVC repository"),
        (["pull", "x", "--repo", "nowhere"], "nowhere is no git + DVC repository"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(ctmr, words, sentence):
    code, out, err = ctmr("dataset", *words)
    assert (code, out) == (2, "") and sentence in err
    assert err.startswith("ctmr: ") and err.count("\n") == 1
    code, out, err = ctmr("dataset", *words, "--json")
    assert code == 2 and json.loads(out)["exit_code"] == 2


@pytest.mark.slow
def test_a_dataset_from_folder_to_remote_and_what_each_command_says(ctmr, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("A/1.png", "B/1.png"):
        (tmp_path / "source" / name).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / "source" / name)
    (tmp_path / "LICENSE").write_text("CC BY 4.0\nall of it")
    options = ["--repo", "repo", "--layout", "paired", "--first", "CT", "--license-file", "LICENSE"]
    code, out, err = ctmr("dataset", "add", "pair", "source", *options, "--json")
    assert code == 0, err
    added = json.loads(out)
    assert added["index"]["pairs"] == 1 and (tmp_path / ".ctmr-identities").stat().st_mode & 0o777 == 0o600
    code, out, _ = ctmr("dataset", "add", "again", "source", *options)
    assert code == 0 and "ctmr dataset push again --repo repo" in out and "2 images of 1 subject, 1 pair" in out
    code, out, _ = ctmr("dataset", "list", "--repo", "repo")
    assert code == 0 and [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == ["again", "pair"]
    code, out, _ = ctmr("dataset", "show", "pair", "--repo", "repo")
    assert code == 0 and added["revision"] in out and added["md5"] in out and "CC BY 4.0" in out
    code, out, err = ctmr("dataset", "verify", "pair", "--repo", "repo", "--json")
    assert code == 3 and json.loads(out)["exit_code"] == 3 and "is not there" in err
    assert ctmr("dataset", "push", "pair", "--repo", "repo")[0] == 0
    code, out, _ = ctmr("dataset", "verify", "pair", "--repo", "repo", "--json")
    assert code == 0 and json.loads(out)["faults"] == []
    victim = next(p for p in (tmp_path / "repo-remote").rglob("*") if p.is_file() and p.suffix != ".dir")
    victim.unlink()
    code, out, err = ctmr("dataset", "verify", "pair", "--repo", "repo", "--json")
    assert code == 1 and json.loads(out)["faults"][0]["path"] == "pictures-000.zip"
    assert err.splitlines()[-1].startswith("ctmr: dataset pair: pictures-000.zip is missing in the remote")
    code, out, err = ctmr("dataset", "verify", "pair", "--repo", "repo", "--where", "cache")
    assert code == 0 and "present and whole in cache" in out
    assert ctmr("dataset", "push", "pair", "--repo", "repo")[0] == 0
    assert ctmr("dataset", "pull", "pair", "--repo", "repo", "--json")[0] == 0
    assert ctmr("dataset", "verify", "pair", "--repo", "repo")[0] == 0
