"""git and DVC as subprocesses: each with a time limit, never asking a question, one sentence when they fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ctmr.errors import EnvironmentFault
from ctmr.system.home import quiet_libraries
from ctmr.system.processes import start

GIT_LIMIT_S = 120
DVC_LIMIT_S = 300
TRANSFER_LIMIT_S = 12 * 3600
"""For what moves a whole dataset; a transfer that was stopped goes on where it was when it is run again."""

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
    return _run(folder, ["git", *words], environment or {}, limit_s)


def dvc(folder: Path, *words: str, environment: Mapping[str, str] | None = None, limit_s: float = DVC_LIMIT_S) -> str:
    """Run DVC in a folder, as `git` does."""
    return _run(folder, [sys.executable, "-m", "dvc", *words], environment or {}, limit_s)


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
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


def _run(folder: Path, command: list[str], extra: Mapping[str, str], limit_s: float) -> str:
    quiet_libraries()
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8", **extra}
    # A hook or an outer git command may have set these; they would send our calls to another repository.
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        environment.pop(name, None)
    name = "dvc" if command[0] == sys.executable else Path(command[0]).name
    verb = command[3] if name == "dvc" else command[1]
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
