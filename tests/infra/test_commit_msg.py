"""The form of commit messages, and the git hook that `make install` sets up for it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "commit_msg.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("commit_msg", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty git repository with the script, and no configuration of a person."""
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for key in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{key}_NAME", "t")
        monkeypatch.setenv(f"{key}_EMAIL", "t@localhost")
    root = tmp_path / "a repository"
    (root / "infra").mkdir(parents=True)
    (root / "infra" / "commit_msg.py").write_text(SCRIPT.read_text())
    git(root, "init", "--quiet")
    return root


def git(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)


def commit(root: Path, message: str) -> subprocess.CompletedProcess[str]:
    return git(root, "commit", "--quiet", "--allow-empty", "--message", message)


@pytest.mark.parametrize(
    "message",
    [
        "A" * 72,
        "Refuse sheared DICOM series\n\nThe grid has no axis for them.\n",
        "\n# a remark of git\nSubject\n# On branch main\n",
        "Subject\n# ------------------------ >8 ------------------------\ndiff --git a/x b/x\n",
        "Merge branch 'a-name-that-is-long' of https://example.org/a/very/long/address/of/a/repository into main",
        "fixup! " + "A" * 72,
        "",
    ],
)
def test_a_message_of_the_right_form_passes(script: ModuleType, message: str) -> None:
    assert script.faults(message) == []


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("A" * 73, "the subject has 73 characters, 72 are allowed"),
        ("Refuse sheared series.", "ends with a full stop"),
        ("Subject\nbody", "the second line is 'body'"),
        ("# a remark\n" + "A" * 80, "80 characters"),
    ],
)
def test_a_message_of_a_wrong_form_is_refused_with_the_reason(script: ModuleType, message: str, said: str) -> None:
    (found,) = script.faults(message)
    assert said in found


def test_the_hook_keeps_a_wrong_message_out_of_the_repository(script: ModuleType, repository: Path) -> None:
    assert script.install(repository) == ""
    refused = commit(repository, "Subject with a full stop.")
    assert refused.returncode != 0 and "commit-msg: the subject ends with a full stop" in refused.stderr
    assert commit(repository, "Subject without").returncode == 0
    assert git(repository, "log", "--format=%s").stdout == "Subject without\n"


def test_the_hook_works_in_a_worktree_and_from_there(script: ModuleType, repository: Path) -> None:
    git(repository, "add", "--all")
    commit(repository, "First")
    other = repository.parent / "other"
    git(repository, "worktree", "add", "--quiet", str(other))
    assert script.install(other) == ""
    assert commit(other, "Second.").returncode != 0 and commit(repository, "Third.").returncode != 0


def test_a_checkout_without_the_script_commits_as_ever(script: ModuleType, repository: Path) -> None:
    script.install(repository)
    (repository / "infra" / "commit_msg.py").unlink()
    assert commit(repository, "A subject.").returncode == 0


def test_another_hook_is_left_alone_and_named(script: ModuleType, repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "commit-msg"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 0\n")
    assert f"{hook} is another hook" in script.install(repository)
    assert hook.read_text() == "#!/bin/sh\nexit 0\n"


def test_a_folder_of_hooks_that_a_person_names_is_left_alone(script: ModuleType, repository: Path) -> None:
    hooks = repository.parent / "hooks of all repositories"
    hooks.mkdir()
    git(repository, "config", "core.hooksPath", str(hooks))
    assert "core.hooksPath is set" in script.install(repository)
    assert list(hooks.iterdir()) == [] and not (repository / ".git" / "hooks" / "commit-msg").exists()


def test_an_older_hook_of_ours_is_replaced(script: ModuleType, repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "commit-msg"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{script.MARK}\nexit 1\n")
    assert script.install(repository) == ""
    assert hook.read_text() == script.HOOK and os.access(hook, os.X_OK)


def test_without_a_repository_or_without_git_nothing_happens(
    script: ModuleType, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    assert script.install(unpacked) == "" and list(unpacked.iterdir()) == []
    # An archive that is unpacked inside another project's repository is not that repository.
    inside = repository / "vendored"
    inside.mkdir()
    assert script.install(inside) == ""
    assert not (repository / ".git" / "hooks" / "commit-msg").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.install(repository) == ""


def test_the_command_exits_1_on_a_wrong_message(tmp_path: Path) -> None:
    for message, code in (("A subject.", 1), ("A subject", 0)):
        (tmp_path / "message").write_text(message)
        done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "message")], capture_output=True, text=True)
        assert (done.returncode, bool(done.stderr)) == (code, bool(code))
