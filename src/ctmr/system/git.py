"""git's command and environment for every caller, so that nothing that lies in a repository is executed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ctmr.errors import InputError

_SETTINGS = {
    "protocol.ext.allow": "never",
    "protocol.fd.allow": "never",
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.pager": "cat",
    "log.showSignature": "false",
    "commit.gpgSign": "false",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "safe.bareRepository": "explicit",
}
"""What a repository's own configuration may set to a program. git's refusal of other people's repositories stays."""
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
"""A hook or an outer git command may have set these; they would send our calls to another repository."""
_FILTER = r"^filter\..*\.(clean|smudge|process)$"
_LIMIT_S = 20


def git_command(folder: Path, *words: str) -> list[str]:
    """Return the command that runs git in a folder.

    Parameters
    ----------
    words
        Command, options and, after ``--end-of-options`` or ``--``, what others gave (`refuse_option`).
    """
    return ["git", *_without_filters(folder), *words]


def git_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for git, and for what runs git itself, such as DVC.

    It holds for all below: no question, no hook, no monitor, no signature, no address that names a program.
    """
    made = {k: v for k, v in environment.items() if k not in ELSEWHERE}
    made |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}
    count = made.get("GIT_CONFIG_COUNT", "0")
    first = int(count) if count.isdecimal() else 0
    given = {made.get(f"GIT_CONFIG_KEY_{k}"): made.get(f"GIT_CONFIG_VALUE_{k}") for k in range(first)}
    missing = {key: value for key, value in _SETTINGS.items() if given.get(key) != value}
    for k, (key, value) in enumerate(missing.items(), start=first):
        made |= {f"GIT_CONFIG_KEY_{k}": key, f"GIT_CONFIG_VALUE_{k}": value}
    return made | {"GIT_CONFIG_COUNT": str(first + len(missing))}


def refuse_option(what: str, text: str) -> None:
    """Raise InputError when an address, revision, path or name begins as an option of a program does.

    Examples
    --------
    >>> refuse_option("the revision", "v1.2")
    """
    # git@-oProxyCommand=… and ssh://-oProxyCommand=… reach ssh, past the beginning of the address.
    parts = (text, text.partition("://")[2], text.partition("://")[2].partition("@")[2], text.partition("@")[2])
    if any(part.startswith("-") for part in parts):
        raise InputError(f"{what} {text[:80]!r} begins with -, as an option of a program does; give another")


def _without_filters(folder: Path) -> list[str]:
    """Return settings that switch off filters which a repository itself defines; a user's own (git-lfs) stay."""
    command = ["git", "config", "--null", "--show-scope", "--name-only", "--get-regexp", _FILTER]
    try:
        listed = subprocess.run(
            command,
            cwd=folder,
            env=git_environment(os.environ),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_LIMIT_S,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        # git itself is about to say why.
        return []
    fields = listed.split("\0")
    found = {
        n.rpartition(".")[0] for s, n in zip(fields[::2], fields[1::2], strict=False) if s in ("local", "worktree")
    }
    if odd := next((name for name in sorted(found) if "=" in name), ""):
        raise InputError(
            f"{folder} defines {odd[:80]!r}, which cannot be switched off; remove it from its configuration"
        )
    return [
        word for name in sorted(found) for key in ("process=", "required=false") for word in ("-c", f"{name}.{key}")
    ]
