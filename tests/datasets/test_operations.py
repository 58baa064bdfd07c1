"""`ctmr dataset` on real git + DVC repositories with a folder as remote: whole or not at all, and every fault named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_repository import PAIRS, pictures, run_git, state
from PIL import Image

from ctmr.datasets.dvc import materialise, resolve
from ctmr.datasets.dvc.objects import Where
from ctmr.datasets.names import Dates, FolderLayout
from ctmr.datasets.operations import AddOptions, add, list_datasets, show, verify
from ctmr.datasets.repository import DataRepository
from ctmr.errors import EnvironmentFault, InputError
from ctmr.pipeline.stages.fetch import describe, find_images

pytestmark = pytest.mark.slow


# Adding


def test_a_dataset_is_committed_with_its_index(made):
    root, _, done = made
    assert run_git(root / "repo", "status", "--porcelain") == ""
    assert done["revision"] == run_git(root / "repo", "rev-parse", "HEAD").strip() and done["changed"]
    index = json.loads(run_git(root / "repo", "show", "HEAD:pairs.json"))
    assert (index["images"], index["subjects"], index["pairs"], index["layout"]) == (8, 4, 4, "paired")
    assert index["counts"] == [
        {"split": s, "modality": m, "sequence": "", "images": 2, "subjects": 2}
        for s in ("test", "train")
        for m in ("CT", "MR")
    ]
    assert (index["license"], index["description"]) == ("CC0", "pairs")
    assert index["deidentification"]["dates"] == "removed"
    assert str(root) not in json.dumps(index)
    config = (root / "repo" / ".dvc" / "config").read_text()
    assert "analytics = False" in config and "../../repo-remote" in config


def test_pictures_are_packed_and_fetched_back_as_pairs(made, tmp_path, said):
    root, _, done = made
    names = sorted(p.relative_to(root / "repo" / "pairs").as_posix() for p in (root / "repo" / "pairs").rglob("*.*"))
    assert names == ["test/pictures-000.zip", "train/pictures-000.zip"]
    source = resolve(str(root / "repo"), path="pairs", revision=done["revision"])
    assert source.dataset.md5 == done["md5"]
    materialise(source, tmp_path / "raw", said)
    rows = [describe(tmp_path / "raw", entry) for entry in find_images(tmp_path / "raw")]
    assert all(r["error"] == r["identity"] == "" for r in rows)
    subjects = {}
    for row in rows:
        subjects.setdefault((row["split_given"], row["subject"]), set()).add(row["modality"])
    assert len(subjects) == 4 and all(m == {"CT", "MR"} for m in subjects.values())
    before = {Image.open(root / "source" / n).tobytes() for n in PAIRS}
    assert {Image.open(p).tobytes() for p in (tmp_path / "raw").rglob("*.png")} == before
    originals = json.loads((root / "ids").read_text())
    assert set(originals["files"].values()) == set(PAIRS) and len(originals["subjects"]) == 4


def test_list_and_show_say_what_there_is(made):
    root, _, done = made
    (row,) = list_datasets(root / "repo")
    assert (row["name"], row["images"]) == ("pairs", 8)
    assert [row["revision"]] == row["revisions"] == [done["revision"]]
    shown = show("pairs", root / "repo")
    assert (shown["revision"], shown["md5"], shown["files"]) == (done["revision"], done["md5"], 2)
    assert shown["index"]["pairs"] == 4 and shown["size"] > 8 * 1600
    assert show("pairs", root / "repo", "main")["revision"] == done["revision"]
    with pytest.raises(InputError, match="no dataset nonesuch at revision HEAD"):
        show("nonesuch", root / "repo")


def test_the_author_is_the_users_or_a_neutral_one(copy, said, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    folder, options = copy
    add("more", folder / "source", folder / "repo", options, said)
    assert run_git(folder / "repo", "log", "-1", "--format=%an <%ae>").strip() == "ctmr <ctmr@ctmr.invalid>"
    run_git(folder / "repo", "config", "user.name", "Ada")
    run_git(folder / "repo", "config", "user.email", "ada@example.invalid")
    add("third", folder / "source", folder / "repo", options, said)
    assert run_git(folder / "repo", "log", "-1", "--format=%an <%ae>").strip() == "Ada <ada@example.invalid>"
    assert [r["name"] for r in list_datasets(folder / "repo")] == ["more", "pairs", "third"]


def test_a_second_version_is_asked_for_and_the_first_stays(copy, said):
    folder, options = copy
    first = show("pairs", folder / "repo")
    with pytest.raises(InputError, match="has a dataset pairs already; with --replace"):
        add("pairs", folder / "source", folder / "repo", options, said)
    again = AddOptions(
        FolderLayout.PAIRED, identity_file=folder / "ids", replace=True, license="CC0", description="pairs"
    )
    unchanged = add("pairs", folder / "source", folder / "repo", again, said)
    assert not unchanged["changed"] and unchanged["revision"] == first["revision"]
    pictures(folder / "source", ["train/CT/p9.png", "train/MR/p9.png"], seed=9)
    second = add("pairs", folder / "source", folder / "repo", again, said)
    assert second["changed"] and second["index"]["subjects"] == 5 and second["md5"] != first["md5"]
    (row,) = list_datasets(folder / "repo")
    assert row["revisions"] == [second["revision"], first["revision"]]
    assert show("pairs", folder / "repo", first["revision"])["md5"] == first["md5"]
    # The old subjects keep their pseudonyms: the key is the same.
    source = resolve(str(folder / "repo"), path="pairs", revision=first["revision"])
    materialise(source, folder / "raw", said)
    old = {p.parent.name for p in (folder / "raw").rglob("*.png")}
    materialise(resolve(str(folder / "repo"), path="pairs"), folder / "raw2", said)
    assert old < {p.parent.name for p in (folder / "raw2").rglob("*.png")}


def test_a_users_own_changes_are_neither_committed_nor_lost(copy, said):
    folder, options = copy
    (folder / "repo" / "notes.txt").write_text("mine")
    run_git(folder / "repo", "add", "notes.txt")
    add("more", folder / "source", folder / "repo", options, said)
    assert run_git(folder / "repo", "status", "--porcelain").split() == ["A", "notes.txt"]
    committed = run_git(folder / "repo", "show", "--name-only", "--format=").split()
    assert set(committed) == {".gitignore", "more.dvc", "more.json"}


@pytest.mark.parametrize(
    ("name", "source", "repo", "options", "words"),
    [
        ("Pairs", "source", "new", {}, "dataset name 'Pairs'"),
        ("../x", "source", "new", {}, "dataset name '../x'"),
        ("x", "nowhere", "new", {}, "there is no folder"),
        ("x", "source", "source/repo", {}, "lie in each other"),
        ("x", "repo/pairs", "repo", {}, "lie in each other"),
        ("x", "source", "full", {}, "is not empty and no git"),
        ("x", "source", "repo", {"remote": "elsewhere"}, "has the remote"),
        ("x", "source", "new", {"remote": "gs://bucket"}, "neither a folder nor s3"),
        ("x", "source", "new", {"remote": "s3://key:secret@bucket/x"}, "holds a credential"),
        ("x", "source", "new", {"remote": "s3://b", "endpoint": "http://key:secret@host"}, "holds a credential"),
        ("x", "source", "new", {"endpoint": "http://host"}, "belongs to an s3"),
        ("x", "source", "new", {"identity_file": Path("new/ids")}, "lies in the data repository"),
        ("x", "source", "new", {"identity_file": Path("new-remote/ids")}, "lies in the remote"),
        ("x", "source", "new", {"layout": FolderLayout.IXI}, "no image of layout ixi"),
        ("x", "source", "new", {"layout": FolderLayout.AUTO}, "say --layout paired"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(copy, said, monkeypatch, name, source, repo, options, words):
    folder, given = copy
    monkeypatch.chdir(folder)
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    before = state(folder / "repo")
    made = AddOptions(**({"layout": FolderLayout.PAIRED, "identity_file": given.identity_file} | options))
    with pytest.raises(InputError, match=words) as caught:
        add(name, Path(source), Path(repo), made, said)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert state(folder / "repo") == before
    assert not (folder / "new").exists() and not list(folder.glob(".new*"))


def test_a_repository_without_dvc_is_never_committed_to(tmp_path, said):
    clone = tmp_path / "clone"
    clone.mkdir()
    run_git(clone, "init", "-q")
    pictures(tmp_path / "source", PAIRS)
    with pytest.raises(InputError, match="no git \\+ DVC repository"):
        add("x", tmp_path / "source", clone, AddOptions(FolderLayout.PAIRED, identity_file=tmp_path / "ids"), said)
    assert [p.name for p in clone.iterdir()] == [".git"]


def test_what_cannot_be_deidentified_refuses_all_or_is_counted(copy, said, planted, some_tokens):
    import pydicom

    folder, _ = copy
    scans = folder / "scans"
    planted(scans / "good", some_tokens, "CT", patient="1", series="1", everywhere=False)
    bad = planted(scans / "bad", some_tokens, "CT", patient="2", series="2", everywhere=False)[1]
    image = pydicom.dcmread(bad)
    image.BurnedInAnnotation = "YES"
    image.save_as(bad)
    options = AddOptions(identity_file=folder / "ids")
    with pytest.raises(InputError, match=r"bad/.*BurnedInAnnotation YES.*nothing was added"):
        add("ct", scans, folder / "repo", options, said)
    assert [r["name"] for r in list_datasets(folder / "repo")] == ["pairs"]
    (scans / "bad" / "torn.dcm").write_bytes(bad.read_bytes()[:300])
    with pytest.raises(InputError, match=r"bad/torn.dcm is a damaged DICOM file"):
        add("ct", scans, folder / "repo", options, said)
    skipping = AddOptions(identity_file=folder / "ids", skip_refused=True, dates=Dates.SHIFT)
    done = add("ct", scans, folder / "repo", skipping, said)
    assert done["index"]["left_out"] == {"damaged DICOM file": 1, "refused": 1} and done["index"]["images"] == 1
    assert done["index"]["deidentification"]["recognizable_visual_features"] == {"YES": 1}
    assert done["index"]["deidentification"]["burned_in_annotation"] == {"not stated": 1}
    assert "shifted" in done["index"]["deidentification"]["dates"]


# Nothing half committed


@pytest.mark.parametrize(
    ("failing", "replace"), [("dvc add", True), ("dvc add", False), ("git add", True), ("git commit", False)]
)
def test_a_failure_while_committing_leaves_the_repository_as_it_was(copy, said, monkeypatch, failing, replace):
    from ctmr.datasets import repository as module

    folder, _ = copy
    before = state(folder / "repo")
    tool, verb = failing.split()
    real = getattr(module, tool)

    def broken(root, *words, **options):
        if words[0] == verb:
            raise EnvironmentFault(f"{failing} failed: no space left on device")
        return real(root, *words, **options)

    monkeypatch.setattr(module, tool, broken)
    pictures(folder / "source", ["train/CT/p9.png", "train/MR/p9.png"], seed=9)
    options = AddOptions(FolderLayout.PAIRED, identity_file=folder / "ids", replace=replace)
    with pytest.raises(EnvironmentFault, match=f"{failing} failed: no space left on device; nothing was committed"):
        add("pairs" if replace else "more", folder / "source", folder / "repo", options, said)
    assert state(folder / "repo") == before
    assert not (folder / "repo" / "more").exists()
    assert [f for f in verify("pairs", folder / "repo", said)[2] if f] == []


ADD = (
    "import sys; from pathlib import Path; from ctmr.datasets import repository\n"
    "from ctmr.datasets.operations import *\n"
    "from ctmr.datasets.names import FolderLayout\n"
    "point, folder = sys.argv[1], Path(sys.argv[2])\n"
    "def stop_before(module, name, verb):\n"
    "    real = getattr(module, name)\n"
    "    def call(root, *words, **options):\n"
    "        if words[0] == verb: print('here', flush=True); time.sleep(60)\n"
    "        return real(root, *words, **options)\n"
    "    setattr(module, name, call)\n"
    "import time\n"
    "tool, verb = point.split()\n"
    "stop_before(repository, tool, verb)\n"
    "options = AddOptions(FolderLayout.PAIRED, identity_file=folder / 'ids', replace=sys.argv[3] == 'pairs')\n"
    "add(sys.argv[3], folder / 'source', folder / sys.argv[4], options, lambda m, f=None: None)\n"
)


def killed_at(point, folder, name, repo="repo"):
    process = subprocess.Popen(
        [sys.executable, "-c", ADD, point, str(folder), name, repo], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(("point", "name"), [("dvc add", "pairs"), ("git diff", "more"), ("git commit", "pairs")])
def test_an_add_that_was_killed_is_undone_by_the_next_command(copy, said, point, name):
    folder, options = copy
    before = state(folder / "repo")
    pictures(folder / "source", ["train/CT/p9.png", "train/MR/p9.png"], seed=9)
    killed_at(point, folder, name)
    assert run_git(folder / "repo", "log", "--format=%H") == before[0]
    with DataRepository.open(folder / "repo").locked():
        assert state(folder / "repo") == before
        assert not (folder / "repo" / "more").exists()
        assert not list((folder / "repo" / ".dvc" / "tmp").glob("ctmr-*"))
    add("more", folder / "source", folder / "repo", options, said)
    assert [r["name"] for r in list_datasets(folder / "repo")] == ["more", "pairs"]


def test_a_repository_that_was_killed_while_it_was_made_is_not_there(copy, said):
    folder, options = copy
    killed_at("git commit", folder, "pairs", "fresh")
    assert not (folder / "fresh").exists() and len(list(folder.glob(".fresh.*.partial"))) == 1
    add("pairs", folder / "source", folder / "fresh", options, said)
    assert not list(folder.glob(".fresh.*.partial"))
    assert [r["name"] for r in list_datasets(folder / "fresh")] == ["pairs"]


def test_a_full_disk_commits_nothing(copy, said, small_disk):
    folder, options = copy
    add("pairs", folder / "source", small_disk / "repo", options, said)
    before = state(small_disk / "repo")
    rng = np.random.default_rng(0)
    for name in PAIRS:
        Image.fromarray(rng.integers(0, 256, (900, 900), dtype=np.uint8)).save(folder / "source" / name)
    for name, repo in (("more", "repo"), ("more", "second")):
        with pytest.raises(EnvironmentFault, match=r"No space left on device.*nothing was committed") as caught:
            add(name, folder / "source", small_disk / repo, options, said)
        assert "\n" not in str(caught.value)
    assert state(small_disk / "repo") == before
    assert not (small_disk / "second").exists() and not list(small_disk.glob(".second*"))
    assert verify("pairs", small_disk / "repo", said, places=(Where.CACHE,))[2] == []
    free = shutil.disk_usage(small_disk).free
    assert free > 1_500_000


def test_a_full_disk_while_git_commits_is_undone_as_well(copy, said, small_disk, monkeypatch):
    from ctmr.datasets import repository as module

    folder, options = copy
    add("pairs", folder / "source", small_disk / "repo", options, said)
    before = state(small_disk / "repo")
    real = module.dvc

    def filling(root, *words, **given):
        done = real(root, *words, **given)
        with (small_disk / "filler").open("wb") as stream:
            stream.write(bytes(shutil.disk_usage(small_disk).free))
        return done

    monkeypatch.setattr(module, "dvc", filling)
    pictures(folder / "source", ["train/CT/p9.png", "train/MR/p9.png"], seed=9)
    with pytest.raises(EnvironmentFault, match="nothing was committed"):
        add("more", folder / "source", small_disk / "repo", options, said)
    (small_disk / "filler").unlink()
    with DataRepository.open(small_disk / "repo").locked():
        assert state(small_disk / "repo") == before


def test_two_commands_at_once_take_turns(copy, said):
    folder, options = copy
    with DataRepository.open(folder / "repo").locked(), pytest.raises(EnvironmentFault, match="another `ctmr dataset`"):
        add("more", folder / "source", folder / "repo", options, said)
