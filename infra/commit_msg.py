"""Check of a commit's message, and the git hook that runs it; standard library only.

`make install` sets the hook up. Git calls it with the file that holds the message, and a message that breaks the form
is not committed: the reason is printed, and git keeps what was written in .git/COMMIT_EDITMSG.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUBJECT_CHARACTERS = 72
MADE_BY_GIT = ("Merge ", "fixup! ", "squash! ", "amend! ")
"""Subjects that git writes itself, and those that a rebase takes away again."""
MARK = "# Checks the message's form: infra/commit_msg.py"
HOOK = f"""#!/bin/sh
{MARK}
check="$(git rev-parse --show-toplevel)/infra/commit_msg.py"
test ! -f "$check" || exec python3 "$check" "$1"
"""


def faults(message: str) -> list[str]:
    """Return one sentence for everything that is wrong with the form of a message; lines of comment do not count."""
    lines = [line.rstrip() for line in message.partition("# ------------------------ >8 ")[0].splitlines()]
    lines = [line for line in lines if not line.startswith("#")]
    while lines and not lines[0]:
        lines.pop(0)
    if not lines or lines[0].startswith(MADE_BY_GIT):
        return []
    subject, found = lines[0], []
    if len(subject) > SUBJECT_CHARACTERS:
        found.append(f"the subject has {len(subject)} characters, {SUBJECT_CHARACTERS} are allowed: {subject}")
    if subject.endswith("."):
        found.append(f"the subject ends with a full stop, leave it out: {subject}")
    if len(lines) > 1 and lines[1]:
        found.append(f"the second line is {lines[1]!r}, it must be blank between subject and body")
    return found


def install(root: Path) -> str:
    """Set the hook up in the repository at `root`; return a sentence where that was not done and a person may care.

    Nothing happens outside a git repository. A hook that is there already is left alone, and so is a folder of hooks
    that a person's configuration names: it may serve other repositories too.
    """
    if _git(root, "rev-parse", "--show-toplevel") != str(root.resolve()):
        return ""
    if _git(root, "config", "--get", "core.hooksPath"):
        return "core.hooksPath is set, so infra/commit_msg.py was not installed; call it from the hook commit-msg there"
    hook = root / _git(root, "rev-parse", "--git-path", "hooks") / "commit-msg"
    try:
        if hook.exists() and MARK not in hook.read_text(errors="replace"):
            return f"{hook} is another hook and was left alone; call infra/commit_msg.py from it"
        if not hook.exists() or hook.read_text() != HOOK:
            hook.parent.mkdir(parents=True, exist_ok=True)
            hook.write_text(HOOK)
            hook.chmod(0o755)
    except OSError as error:
        return f"the hook commit-msg was not installed: {error}"
    return ""


def main(path: str) -> int:
    """Check the message in a file; 1 when its form is wrong."""
    found = faults(Path(path).read_text(errors="replace"))
    for sentence in found:
        print(f"commit-msg: {sentence}", file=sys.stderr)
    return int(bool(found))


def _git(root: Path, *words: str) -> str:
    """Return what git says; nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
