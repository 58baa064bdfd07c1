"""git and DVC as subprocesses: each with a time limit, never asking a question, one sentence when they fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ctmr import errors
from ctmr.errors import EnvironmentFault
from ctmr.system.files import written
from ctmr.system.git import ELSEWHERE, git_command, git_environment
from ctmr.system.home import Home, quiet_libraries
from ctmr.system.processes import start

GIT_LIMIT_S = 120
DVC_LIMIT_S = 300
TRANSFER_LIMIT_S = 12 * 3600
"""For what moves a whole dataset; a transfer that was stopped goes on where it was when it is run again."""

AWS_FILES = {
    "configpath": ("AWS_CONFIG_FILE", "~/.aws/config"),
    "credentialpath": ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
}
"""DVC's settings for files in which ``credential_process`` is a command, and the variables that go before them."""
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_CHATTER = "Having any troubles?"
"""All that a failed `dvc get --quiet` may say."""


class CommandFailed(EnvironmentFault):
    """git or DVC ended with an error.

    Attributes
    ----------
    reason
        What it said, in one line.
    """

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def git(folder: Path, *words: str, environment: Mapping[str, str] | None = None, limit_s: float = GIT_LIMIT_S) -> str:
    """Run git in a folder and return what it printed.

    Raises
    ------
    EnvironmentFault
        git is absent, fails (`CommandFailed`) or takes longer than `limit_s`.
    """
    quiet_libraries()
    variables = git_environment({**os.environ, **(environment or {})})
    return _run(folder, "git", words[0], git_command(folder, *words), variables, limit_s)


def dvc(folder: Path, *words: str, environment: Mapping[str, str] | None = None, limit_s: float = DVC_LIMIT_S) -> str:
    """Run DVC in a folder, as `git` does."""
    with guarded():
        variables = {**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})}
        return _run(folder, "dvc", words[0], [sys.executable, "-m", "dvc", *words], variables, limit_s)


@contextmanager
def guarded() -> Iterator[None]:
    """Make DVC, inside and in processes that are started there, run git as `git` does and unpickle our own cache only.

    A repository's configuration, at any revision and of any repository that it imports from, can name the folder of
    DVC's caches, whose entries are pickles, and AWS files, which name programs. The environment goes before it.
    """
    quiet_libraries()
    caches = Home.current().root / "dvc"
    with written(caches):
        caches.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = dict(os.environ)
    os.environ.update({k: v for k, v in git_environment(before).items() if k != "LC_ALL"})
    os.environ["DVC_SITE_CACHE_DIR"] = str(caches)
    for variable, usual in AWS_FILES.values():
        os.environ.setdefault(variable, str(Path(usual).expanduser()))
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def author_environment(folder: Path) -> dict[str, str]:
    """Return nothing where git knows who commits, else a neutral author."""
    try:
        git(folder, "var", "GIT_AUTHOR_IDENT")
        if git(folder, "config", "user.email").strip():
            return {}
    except CommandFailed:
        pass
    names = {f"GIT_{who}_NAME": "ctmr" for who in ("AUTHOR", "COMMITTER")}
    return names | {f"GIT_{who}_EMAIL": "ctmr@ctmr.invalid" for who in ("AUTHOR", "COMMITTER")}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without secrets."""
    return without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])


def without_secrets(text: str) -> str:
    """Return the text without the values of credentials in the environment or in URLs."""
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    # A password may hold @ or /: the whole of it goes first.
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", errors.without_secrets(text))


def _run(folder: Path, name: str, verb: str, command: list[str], environment: Mapping[str, str], limit_s: float) -> str:
    try:
        # A transfer whose ctmr was killed must not go on alone, holding DVC's lock.
        process = start(
            command,
            session=True,
            ends_by=signal.SIGKILL,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise EnvironmentFault(f"{name} {verb} could not start in {folder}: {error.strerror}; install {name}") from None
    try:
        out, err = process.communicate(timeout=limit_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EnvironmentFault(
                f"{name} {verb} in {folder} took longer than {limit_s:g} s and was stopped; run the command again"
            ) from None
        raise
    if process.returncode:
        reason = _reason(err) or _reason(out) or f"exit code {process.returncode}"
        raise CommandFailed(f"{name} {verb} failed in {folder}: {reason}", reason)
    return str(out)


def _reason(text: str) -> str:
    """Return the line that says why: the last error, or the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(_CHATTER)]
    errors = [line for line in lines if re.match(r"(ERROR|error|fatal):", line)]
    chosen = (errors or lines or [""])[-1]
    return without_secrets(re.sub(r"^(ERROR|error|fatal):\s*(unexpected error - )?", "", chosen))
