"""A copy of this project in a git repository of its own, where its doors are tried."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ctmr.pipeline import stages

STAGE_NAMES = stages.names()

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = ("MLFLOW_", "CTMR_", "DVC_", "GIT_")


@dataclass(frozen=True)
class Project:
    """The copy.

    Attributes
    ----------
    environment
        Without a person's settings, and with no environment active: ``ctmr`` is not on the PATH.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command of the environment that `make install` made; return what it says."""
        done = subprocess.run(
            [str(self.folder / ".venv" / "bin" / words[0]), *words[1:]],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said[-4000:]
        return said

    def git(self, *words: str) -> str:
        """Run git; return its standard output."""
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def commit(self) -> None:
        """Commit everything that is not ignored."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")


def copy_project(folder: Path) -> Project:
    """Copy what git tracks or would track, and commit it there."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    here = str(Path(sys.executable).parent)
    path = [p for p in os.environ["PATH"].split(os.pathsep) if p != here and not (Path(p) / "ctmr").exists()]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(NOT_OURS)} | {
        "PATH": os.pathsep.join(path),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "dvc_global"),
        "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc_site"),
        "DVC_NO_ANALYTICS": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": "sqlite:///.ctmr/mlflow.db",
        "MLFLOW_EXPERIMENT_NAME": "ctmr",
    }
    project = Project(folder, environment)
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    project.git("init", "--quiet", "--initial-branch=main")
    with (folder / ".git" / "info" / "exclude").open("a") as stream:
        # The pattern of .gitignore is for a folder, this is a link.
        stream.write(".venv\n")
    project.commit()
    return project
