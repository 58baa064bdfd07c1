"""No code by data: what addresses, revisions and repositories say is never an option, a program or a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctmr.datasets.dvc import DatasetSource, resolve
from ctmr.datasets.dvc.commands import AWS_FILES, CommandFailed, git, guarded
from ctmr.datasets.dvc.objects import Objects, ObjectState, Pinned, Where, read_pinned
from ctmr.datasets.dvc.remotes import refuse_programs
from ctmr.datasets.repository import DataRepository
from ctmr.errors import EnvironmentFault, InputError
from ctmr.system.git import git_environment, refuse_option
from ctmr.system.home import Code


@pytest.fixture
def mark(tmp_path):
    """A file that hostile programs make."""
    return tmp_path / "executed"


@pytest.fixture
def hostile(tmp_path, mark):
    """A repository as somebody may hand it over, whose every setting is a program."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    program = folder / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    author = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    (folder / ".git" / "info" / "attributes").write_text("* filter=evil diff=evil\n")
    hooks = folder / ".git" / "hooks"
    for name in ("pre-commit", "post-checkout", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(program.read_text())
        (hooks / name).chmod(0o755)
    programs = (
        "filter.evil.clean filter.evil.smudge filter.evil.process diff.evil.textconv diff.evil.command diff.external"
    )
    for key in (*programs.split(), "core.fsmonitor", "gpg.program", "core.sshCommand"):
        subprocess.run(["git", "config", key, str(program)], cwd=folder, check=True)
    for key in ("filter.evil.required", "log.showSignature", "commit.gpgSign"):
        subprocess.run(["git", "config", key, "true"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "--upload-pack=touch x; false ://",
        "-o",
        "ssh://-oProxyCommand=touch x/repository",
        "ssh://git@-oProxyCommand=touch/repository",
        "git@-oProxyCommand=touch:repository",
    ],
)
def test_what_begins_as_an_option_is_no_address_revision_or_path(text, tmp_path):
    for given in ({"address": text}, {"path": text}, {"revision": text}):
        with pytest.raises(InputError, match=r"begins with -, as an option of a program does"):
            resolve(**{"address": str(tmp_path)} | given)
    with pytest.raises(InputError, match=r"begins with -"):
        read_pinned(tmp_path, "brain", text)
    option = json.dumps({"address": "/a", "path": "p", "revision": text, "name": "n", "kind": "dvc", "md5": ""})
    with pytest.raises(InputError, match=r"begins with -"):
        DatasetSource.from_option(option)


@pytest.mark.parametrize("text", ["", "/data/-x", "a-b", "https://host/a-b.git", "git@host:a/-b", "v1.2-rc1"])
def test_a_dash_elsewhere_is_none(text):
    refuse_option("it", text)


def test_an_address_that_names_a_program_runs_none(mark, home):
    with pytest.raises(InputError, match=r"transport 'ext' not allowed"):
        resolve(f"ext::sh -c touch% {mark}% ://")
    assert not mark.exists()


def test_nothing_that_a_repository_sets_is_executed(hostile, mark):
    repository = DataRepository(hostile, {})
    (hostile / "brain.json").write_text("{}")
    author = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    git(hostile, "status", "--porcelain")
    git(hostile, "add", "--", "brain.json")
    git(hostile, "diff", "--cached", "--no-ext-diff", "--name-only", "--", "brain.json")
    git(hostile, "commit", "--quiet", "--message", "two", environment=author)
    (hostile / "brain.json").unlink()
    git(hostile, "checkout", "--quiet", "HEAD", "--", "brain.json")
    assert repository.index("brain") == {} and repository.names() == [] and repository.revisions("brain")
    assert Code(hostile).revision
    assert (hostile / "brain.json").read_text() == "{}" and not mark.exists()


def test_a_filter_that_cannot_be_switched_off_is_refused(hostile):
    subprocess.run(["git", "config", "filter.a=b.clean", "touch x"], cwd=hostile, check=True)
    with pytest.raises(InputError, match=r"defines 'filter.a=b', which cannot be switched off"):
        git(hostile, "status")


def test_the_same_commands_would_run_them_otherwise(hostile, mark):
    subprocess.run(["git", "status", "--porcelain"], cwd=hostile, check=False, capture_output=True)
    assert mark.exists()


def test_a_failed_command_still_says_why(tmp_path):
    with pytest.raises(CommandFailed, match="not a git repository"):
        git(tmp_path, "status")


def test_settings_of_a_caller_stay_and_ours_are_given_once():
    before = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "t", "GIT_DIR": "/x"}
    once = git_environment(before)
    assert once["GIT_CONFIG_KEY_0"] == "user.name" and "GIT_DIR" not in once
    assert git_environment(once) == once


@pytest.mark.parametrize("key", AWS_FILES)
@pytest.mark.parametrize("place", ["../aws", "/proc/self/cwd/aws", "~/aws"])
def test_aws_configuration_that_a_repository_names_is_refused_unless_the_user_names_his_own(
    tmp_path, monkeypatch, key, place
):
    variable, _ = AWS_FILES[key]
    monkeypatch.delenv(variable, raising=False)
    (tmp_path / "data" / ".dvc").mkdir(parents=True)
    config = tmp_path / "data" / ".dvc" / "config"
    config.write_text(f"['remote \"s\"']\n    url = s3://bucket\n    {key} = {place}\n")
    with pytest.raises(InputError, match=f"takes {key} from .*can start programs.* or set {variable}"):
        refuse_programs(tmp_path / "data")
    monkeypatch.setenv(variable, "mine")
    refuse_programs(tmp_path / "data")


@pytest.mark.parametrize("given", [None, "mine"])
def test_dvc_takes_aws_configuration_from_the_user_whatever_a_revision_or_an_import_names(home, monkeypatch, given):
    from dvc_s3 import S3FileSystem

    for variable, _ in AWS_FILES.values():
        monkeypatch.delenv(variable, raising=False)
        if given:
            monkeypatch.setenv(variable, given)
    with guarded():
        S3FileSystem(url="s3://bucket", **{key: f"/theirs/{key}" for key in AWS_FILES})
        found = [os.environ[variable] for variable, _ in AWS_FILES.values()]
    assert found == [given or str(Path(usual).expanduser()) for _, usual in AWS_FILES.values()]
    assert [os.environ.get(variable) for variable, _ in AWS_FILES.values()] == [given, given]


def test_dvc_keeps_its_pickles_where_no_repository_can_put_any(home, tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(f"[core]\n    site_cache_dir = {tmp_path}/theirs\n    no_scm = true\n")
    monkeypatch.setenv("GIT_DIR", "/x")
    program = "from dvc.repo import Repo; print(Repo('.').site_cache_dir)"
    with guarded():
        assert "GIT_DIR" not in os.environ
        found = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True
        )
    assert found.stdout.startswith(str(home.root / "dvc"))
    assert (home.root / "dvc").stat().st_mode & 0o777 == 0o700
    assert os.environ["GIT_DIR"] == "/x" and "DVC_SITE_CACHE_DIR" not in os.environ


def test_a_kind_of_remote_whose_package_is_not_installed_is_one_sentence(tmp_path):
    for words in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(words, cwd=tmp_path, check=True)
    (tmp_path / ".dvc" / "config").write_text("[core]\n  remote = r\n['remote \"r\"']\n  url = ssh://host/folder\n")
    with pytest.raises(EnvironmentFault, match="ssh is supported, but requires 'dvc-ssh'"):
        Objects(tmp_path, Pinned("0" * 32 + ".dir", 1, 1)).check(Where.REMOTE, lambda message, fraction=None: None)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b"7", b"[7]", b'[{"relpath": "a"}]', b"{"])
def test_a_list_of_files_that_is_none_is_a_damaged_object(tmp_path, raw):
    for words in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(words, cwd=tmp_path, check=True)
    digest = hashlib.md5(raw, usedforsecurity=False).hexdigest() + ".dir"
    place = tmp_path / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    place.parent.mkdir(parents=True)
    place.write_bytes(raw)
    (fault,) = Objects(tmp_path, Pinned(digest, 1, 1)).check(Where.CACHE, lambda message, fraction=None: None)
    assert (fault.state, fault.path) == (ObjectState.CORRUPTED, ".")
