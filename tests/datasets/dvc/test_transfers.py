"""Verifying, pushing and pulling with a folder as remote: every fault is named, and what was stopped goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_repository import PAIRS, clone_of, objects, overwrite, pictures, state

from ctmr.datasets import operations
from ctmr.datasets.dvc import materialise, resolve
from ctmr.datasets.dvc.objects import ObjectState, Where
from ctmr.datasets.operations import AddOptions, add, pull, push, verify
from ctmr.errors import CtmrError, EnvironmentFault

pytestmark = pytest.mark.slow


def test_a_pushed_dataset_is_whole_everywhere(made, said):
    root, _, done = made
    assert verify("pairs", root / "repo", said) == (done["revision"], 2, [])


@pytest.mark.parametrize(("where", "folder"), [(Where.CACHE, "repo/.dvc/cache"), (Where.REMOTE, "repo-remote")])
@pytest.mark.parametrize("what", ["data", "listing"])
@pytest.mark.parametrize("how", list(ObjectState))
def test_every_fault_is_named(copy, said, where, folder, what, how):
    base, _ = copy
    data, listing = objects(base / folder)
    victim = data[0] if what == "data" else listing
    victim.chmod(0o644)
    victim.unlink() if how is ObjectState.MISSING else overwrite(victim, b"damaged")
    _, _, faults = verify("pairs", base / "repo", said)
    assert [(f.where, f.state) for f in faults] == [(where, how)]
    assert faults[0].object == "/".join(victim.parts[-4:])
    expected = "." if what == "listing" else r"^(test|train)/pictures-000.zip$"
    assert re.search(expected, faults[0].path)
    words = operations.sentence("pairs", faults)
    assert how.value in words and where.value in words and faults[0].object in words


def test_a_dataset_that_was_not_pushed_is_missing_in_the_remote(copy, said):
    folder, options = copy
    add("more", pictures(folder / "other", PAIRS, seed=5), folder / "repo", options, said)
    _, _, faults = verify("more", folder / "repo", said)
    assert {(f.where, f.state) for f in faults} == {(Where.REMOTE, ObjectState.MISSING)} and len(faults) == 3
    shutil.rmtree(folder / "repo-remote")
    with pytest.raises(EnvironmentFault, match="repo-remote is not there"):
        verify("more", folder / "repo", said)


def test_a_damaged_cache_is_not_pushed(copy, said):
    folder, _ = copy
    overwrite(objects(folder / "repo/.dvc/cache")[0][0], b"damaged")
    with pytest.raises(CtmrError, match=r"pictures-000.zip is corrupted in the cache .*nothing was pushed") as caught:
        push("pairs", folder / "repo", said)
    assert caught.value.exit_code == 1


def test_what_the_remote_lost_is_sent_again_and_what_it_damaged_is_repaired(copy, said):
    folder, _ = copy
    data, listing = objects(folder / "repo-remote")
    data[0].unlink()
    assert push("pairs", folder / "repo", said) == 1
    assert verify("pairs", folder / "repo", said)[2] == []
    overwrite(data[0], b"damaged")
    listing.unlink()
    push("pairs", folder / "repo", said, repair=True)
    assert verify("pairs", folder / "repo", said)[2] == []


def test_a_clone_pulls_what_was_pushed(copy, said):
    folder, _ = copy
    clone = clone_of(folder)
    assert {f.state for f in verify("pairs", clone, said, places=(Where.CACHE,))[2]} == {ObjectState.MISSING}
    pull("pairs", clone, said)
    assert verify("pairs", clone, said)[2] == []
    assert state(clone)[3] == state(folder / "repo")[3]


@pytest.mark.parametrize("how", list(ObjectState))
def test_a_faulty_object_of_the_remote_is_named_and_does_not_stay(copy, said, how):
    folder, _ = copy
    victim = objects(folder / "repo-remote")[0][0]
    whole = victim.read_bytes()
    victim.chmod(0o644)
    victim.unlink() if how is ObjectState.MISSING else overwrite(victim, b"damaged")
    clone = clone_of(folder)
    with pytest.raises(CtmrError, match=rf"pictures-000.zip is {how}") as caught:
        pull("pairs", clone, said)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    assert not any(p.read_bytes() == b"damaged" for p in (clone / ".dvc/cache").rglob("*") if p.is_file())
    source = resolve(str(clone), path="pairs")
    with pytest.raises(CtmrError):
        materialise(source, folder / "raw", said)
    overwrite(victim, whole) if victim.exists() else victim.write_bytes(whole)
    pull("pairs", clone, said)
    assert verify("pairs", clone, said)[2] == []


@pytest.mark.parametrize("how", list(ObjectState))
@pytest.mark.parametrize("command", [["fetch"], ["run", "--recipe", "demo"]], ids=lambda c: c[0])
def test_no_command_goes_on_with_a_faulty_object(copy, how, command):
    folder, _ = copy
    victim = objects(folder / "repo-remote")[0][0]
    victim.chmod(0o644)
    victim.unlink() if how is ObjectState.MISSING else overwrite(victim, b"damaged")
    words = [*command, "--dataset", str(clone_of(folder)), "--path", "pairs", "--out", str(folder / "out"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "ctmr.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CTMR_HOME": str(folder / "home")},
    )
    said = done.stderr.splitlines()[-1]
    assert done.returncode == {ObjectState.MISSING: 3, ObjectState.CORRUPTED: 2}[how] and said.startswith(
        "ctmr: dataset pairs"
    )
    assert re.search(r"(test|train)/pictures-000.zip is (not what revision|missing in the remote)", said)
    assert not {"raw", "inventory.parquet", "validate", "train"} & {p.name for p in (folder / "out").rglob("*")}


def test_a_corrupted_object_of_the_cache_is_fetched_again(copy, said):
    folder, _ = copy
    overwrite(objects(folder / "repo/.dvc/cache")[0][0], b"damaged")
    pull("pairs", folder / "repo", said)
    assert verify("pairs", folder / "repo", said)[2] == []


TRANSFER = (
    "import sys; from pathlib import Path; from ctmr.datasets import operations\n"
    "print('here', flush=True)\n"
    "getattr(operations, sys.argv[1])('big', Path(sys.argv[2]), lambda m, f=None: None)\n"
)


@pytest.fixture(scope="module")
def big(tmp_path_factory, said):
    """A dataset of 40 volumes of 1.5 MB, which takes a moment to send."""
    import nibabel

    root = tmp_path_factory.mktemp("big")
    rng = np.random.default_rng(0)
    for k in range(40):
        (root / "source" / f"p{k}").mkdir(parents=True)
        image = nibabel.Nifti1Image(rng.integers(0, 2**15, (90, 90, 90), dtype=np.int16), np.eye(4))
        image.to_filename(root / "source" / f"p{k}" / "ct.nii")
    add("big", root / "source", root / "repo", AddOptions(identity_file=root / "ids"), said)
    return root


@pytest.mark.parametrize("fraction", [0.2, 0.6])
def test_a_push_and_a_pull_that_were_killed_go_on(big, tmp_path, said, fraction):
    for name in ("repo",):
        shutil.copytree(big / name, tmp_path / name, symlinks=True)
    (tmp_path / "repo-remote").mkdir()

    def killed(verb, repo, target):
        process = subprocess.Popen([sys.executable, "-c", TRANSFER, verb, str(repo)], stdout=subprocess.PIPE)
        process.stdout.readline()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            there = sum(p.is_file() and not p.name.endswith(".tmp") for p in target.rglob("*"))
            if there >= fraction * 40:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        time.sleep(0.5)
        count = sum(p.is_file() for p in target.rglob("*"))
        time.sleep(0.5)
        # What it had started ended with it.
        assert count == sum(p.is_file() for p in target.rglob("*"))

    killed("push", tmp_path / "repo", tmp_path / "repo-remote")
    push("big", tmp_path / "repo", said)
    assert verify("big", tmp_path / "repo", said)[2] == []
    clone = clone_of(tmp_path)
    killed("pull", clone, clone / ".dvc" / "cache")
    pull("big", clone, said)
    assert verify("big", clone, said)[2] == []
