"""Fixtures of the comparisons with other implementations: dcmtk from the system, installed where that is possible."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., str]


@pytest.fixture(scope="session")
def dcmtk() -> Run:
    """Return a function that runs one of dcmtk's tools and returns what it prints."""
    if shutil.which("dcmdump") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("dcmtk is not installed and only root could install it")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False, "timeout": 300}
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-y", "-qq", "dcmtk"]
        if subprocess.run(command, env=environment, **quiet).returncode != 0:
            subprocess.run(["apt-get", "update", "-qq"], env=environment, **quiet)
            subprocess.run(command, env=environment, **quiet)
        if shutil.which("dcmdump") is None:
            pytest.skip("dcmtk is not installed and apt-get could not install it")

    def run(tool: str, *arguments: str | Path) -> str:
        done = subprocess.run([tool, *map(str, arguments)], capture_output=True, check=False)
        assert done.returncode == 0, f"{tool}: {done.stderr.decode('latin-1')}"
        return done.stdout.decode("latin-1")

    return run
