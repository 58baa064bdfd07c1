"""Readers under odd headers and damaged bytes: read as a second reader reads it, or refused in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctmr.system.environment import DRILL

FULL = os.environ.get(DRILL) == "full"
SCRIPT = Path(__file__).parents[1] / "support" / "fuzzed_readers.py"
BYTES_SCRIPT = SCRIPT.with_name("fuzzed_bytes.py")
COUNTS = {"dicom": (80, 8000), "nifti": (80, 6000), "pictures": (60, 3000), "archives": (60, 3000)}
"""Kind → how many files in short and in full: 20,000 in all."""
BYTES = {"dicom": 4000, "nifti": 6000, "nifti.gz": 2000, "pictures": 5000, "archives": 3000} if FULL else {"all": 300}
"""Kind → how many inputs atheris makes: one process for all kinds in short, 20,000 in full."""
LIMIT_S = 3600 if FULL else 300

pytestmark = [pytest.mark.drill, pytest.mark.slow]


@pytest.mark.parametrize("kind", COUNTS)
def test_files_are_read_as_a_second_reader_reads_them_or_refused(kind: str, tmp_path: Path) -> None:
    # A process of its own, whose memory is measured, and which may hang or crash.
    command = [sys.executable, "-W", "ignore", str(SCRIPT), kind, str(COUNTS[kind][FULL]), "1", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    tally = json.loads(done.stdout.splitlines()[-1])
    print(kind, tally)
    assert tally["tried"] >= 0.9 * COUNTS[kind][FULL]
    assert tally["read"] + tally["refused"] == tally["tried"]
    # Else the second reader would prove nothing.
    assert tally["compared"] > 0.05 * tally["tried"] and tally["refused"] > 0.05 * tally["tried"]


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_that_reach_new_branches_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(BYTES_SCRIPT), kind, str(BYTES[kind]), "1", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    # libFuzzer's own codes: 70 a hang, 71 memory, 77 what the input raised.
    assert done.returncode == 0, (done.stderr[-3000:], [p.name for p in tmp_path.glob("*-*")])
    tally = json.loads((tmp_path / "tally.json").read_text())
    print(kind, tally)
    assert tally["tried"] >= BYTES[kind] and tally["read"] + tally["refused"] == tally["tried"]
    assert tally["compared"] and tally["refused"]
