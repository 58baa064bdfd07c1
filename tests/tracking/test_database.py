"""MLflow's database is made once and whole: killed, at once, on a full disk, on top of a half-made one."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctmr.errors import EnvironmentFault
from ctmr.system.home import Home
from ctmr.tracking import database
from ctmr.tracking.mlflow import Tracking

MAKE = """
import sys
from pathlib import Path
from ctmr.system.home import Home
from ctmr.tracking.mlflow import Tracking
print("begins", flush=True)
print(len(Tracking(Home(Path(sys.argv[1]))).experiment_id) > 0, flush=True)
"""


def started(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKE, str(root)], stdout=subprocess.PIPE, text=True)


def test_a_half_made_one_of_the_past_is_put_aside(home: Home) -> None:
    home.root.mkdir(exist_ok=True)
    path = home.root / "mlflow.db"
    with sqlite3.connect(path) as half:
        half.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    half.close()
    before = path.read_bytes()
    database.make(path)
    assert (home.root / "mlflow.db.half-made-1").read_bytes() == before
    with sqlite3.connect(path) as whole:
        assert whole.execute("SELECT version_num FROM alembic_version").fetchone()
    whole.close()
    made = path.read_bytes()
    database.make(path)
    assert path.read_bytes() == made, "what is whole is not touched"


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite:////a/b%2Fc.db", "/a/b/c.db"),
        ("sqlite:///a.db?x=1", "a.db"),
        ("postgresql://u:p@h/db", None),
        ("http://127.0.0.1:5000", None),
        ("sqlite://", None),
    ],
)
def test_the_file_of_an_address_is_found(address: str, file: str | None) -> None:
    assert database.file_of(address) == (Path(file) if file else None)


def test_a_full_disk_leaves_nothing_and_the_next_try_works(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(3 * 2**20 - 60_000))
    with pytest.raises(EnvironmentFault):
        Tracking(Home(small_disk))
    assert sorted(p.name for p in small_disk.iterdir() if p.name not in ("filler", "lost+found")) == ["mlflow.lock"]
    filler.unlink()
    assert Tracking(Home(small_disk)).experiment_id


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.05, 0.3, 0.8, 1.6])
def test_a_kill_while_it_is_made_does_not_lock_the_home(tmp_path: Path, after_s: float) -> None:
    root = tmp_path / "home"
    killed = started(root)
    assert killed.stdout is not None and killed.stdout.readline() == "begins\n"
    time.sleep(after_s)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert Tracking(Home(root)).experiment_id
    assert not [p for p in root.iterdir() if p.name.endswith(".partial")]


@pytest.mark.slow
def test_commands_that_start_at_once_in_an_empty_home_all_work(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        outs = list(pool.map(lambda _: started(tmp_path / "home").communicate(timeout=300)[0], range(3)))
    assert outs == ["begins\nTrue\n"] * 3
    assert [p.name for p in (tmp_path / "home").glob("mlflow.db*")] == ["mlflow.db"]
