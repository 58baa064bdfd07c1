"""Each idiom of the operating system has one home, `ctmr.system`: no other module does it for itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "ctmr"
STARTS = {"system/processes.py", "system/hidden_argument.py"}
HOMES = {
    "locks": (r"\bfcntl\b|\bflock\b|\blockf\b", {"system/files.py", "system/locks.py"}),
    "temporary names": (r"\bmkstemp\b|\bmkdtemp\b|NamedTemporaryFile|\.partial\b|\.tmp\b", {"system/files.py"}),
    "putting in place": (r"renameat2|\bos\.(replace|rename|link)\b|\bfsync\b", {"system/files.py"}),
    "renaming": (r"\.rename\(|\.replace\((?!\w*[\"'])[\w./]+\)", {"system/files.py"}),
    "ending with the parent": (r"\bprctl\b|PDEATHSIG|preexec_fn|\bgetppid\b", STARTS),
    "sessions": (r"start_new_session|\bsetsid\b|posix_spawn", STARTS),
    "looking at processes": (r"/proc\b(?!/self)|pid_exists", STARTS),
}
ALLOWED = {
    ("renaming", "datasets/repository.py"): "moves a dataset into git + DVC under a journal, which undoes it",
    ("renaming", "cli/compare.py"): "gives a folder inside its own scratch the name of a stage",
    ("renaming", "tracking/database.py"): "puts in place what another library wrote, and a half-made one aside",
    ("renaming", "data/splits.py"): "names a column of a table",
    ("ending with the parent", "pipeline/kfp_child.py"): "says who its parent is, to `when_parent_ends`",
    ("ending with the parent", "tuning/worker.py"): "says who its parent is, to `when_parent_ends`",
}
"""Where another module does so, and why that is no second home."""


@pytest.mark.parametrize("idiom", HOMES)
def test_an_idiom_of_the_system_is_done_in_its_home_alone(idiom):
    pattern, homes = HOMES[idiom]
    found = {
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        if re.search(pattern, re.sub(r'"""(?:.|\n)*?"""', "", file.read_text()))
    }
    assert homes <= found, "the pattern finds nothing any more"
    assert found - homes == {file for what, file in ALLOWED if what == idiom}
