"""Progress: one protocol for whoever tells what long work is doing."""

from __future__ import annotations

import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "ctmr"


def test_no_module_has_a_type_of_its_own_for_progress():
    pattern = re.compile(r"Callable\[\s*\[str, (float|float \| None)\]")
    assert [str(p) for p in SOURCE.rglob("*.py") if pattern.search(p.read_text())] == []
