"""Shared fixtures: a home of its own for every test, the real images where they lie, skips counted by reason."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from ctmr.system.home import Home
from ctmr.system.processes import share_cores

REAL_IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data"
TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "true",
}

SHARE_A_RUN = {
    f"tests/doors/test_{name}.py" for name in ("run_on_pictures", "compiled_run", "mlproject_door", "dvc_door")
}

# Test files run two at a time, each with PyTorch's threads.
share_cores()

# A shell that starts the tests in the background has them ignore interrupts, and every program that they start, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Times on a machine that several people share say nothing about the code.
settings.register_profile("ctmr", deadline=None)
settings.load_profile("ctmr")


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """Take back what the command line does to this process."""
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """CTMR_HOME in a temporary folder, no address of a real server, telemetry off."""
    monkeypatch.setenv("CTMR_HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_RUN_ID", "CTMR_STUDY_STORAGE"):
        # Set first, so that what MLflow puts into the environment meanwhile is taken out again at the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in TELEMETRY_OFF.items():
        monkeypatch.setenv(name, value)
    return Home.current()


@pytest.fixture
def shared_data() -> Path:
    """Folder of the real images; they never enter the repository, so a machine may lack them."""
    if not REAL_IMAGES.is_dir():
        pytest.skip("real images not found at ../shared/data")
    return REAL_IMAGES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the whole runs, then what else is slow: the longest files must not be what all wait for at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not item.nodeid.startswith("tests/doors/"), item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole files, and those that share a run to one worker, so that what they share is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "the run on pictures" if file in SHARE_A_RUN else file

    return FileScheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "no reason"
        for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        listed = "; ".join(f"{count} because {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped {sum(reasons.values())}: {listed}", yellow=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user cannot mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
