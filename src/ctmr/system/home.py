"""Home of ctmr's state: one folder, ``.ctmr`` of the working directory unless CTMR_HOME says otherwise."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from ctmr.errors import EnvironmentFault
from ctmr.system import environment
from ctmr.system.git import git_command, git_environment

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Home:
    """Paths of everything that outlives a command.

    Attributes
    ----------
    root
        The folder itself, absolute.
    """

    root: Path

    @staticmethod
    def current() -> Home:
        """Return the home of this process."""
        return Home(Path(os.environ.get(environment.HOME) or ".ctmr").absolute())

    @property
    def runs(self) -> Path:
        """Outputs of stages, a folder a run name."""
        return self.root / "runs"

    @property
    def work(self) -> Path:
        """Checkpoints and studies, by stage and digest; outside the outputs so that a rerun can resume."""
        return self.root / "work"

    @property
    def demo(self) -> Path:
        """The demo's own git + DVC repository and what it produced."""
        return self.root / "demo"

    @property
    def triton(self) -> Path:
        """State of the embedded tritonserver."""
        return self.root / "triton"

    @property
    def model_repository(self) -> Path:
        """Triton's model repository."""
        return self.root / "triton" / "models"

    @property
    def ledger(self) -> Path:
        """One JSON line for each synthetic series that was written."""
        return self.root / "synthetic.jsonl"

    @property
    def registry_lock(self) -> Path:
        """Lock in which versions are registered, rolled out, promoted, and started again."""
        return self.root / "registry.lock"

    @property
    def promotions(self) -> Path:
        """One JSON line for each model that became champion."""
        return self.root / "promotions.jsonl"

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking address: MLFLOW_TRACKING_URI, or SQLite here."""
        return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_address(self.root / "mlflow.db")

    @property
    def speeds(self) -> Path:
        """Times of the ways to compute a training's step, by machine and shapes."""
        return self.root / "speeds.json"

    def study_storage(self, work: Path) -> str:
        """Address of the tuning study's database: CTMR_STUDY_STORAGE, or SQLite in the stage's work folder."""
        return os.environ.get(environment.STUDY_STORAGE) or sqlite_address(work / "study.db")

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts when tracking is local."""
        return self.root / "mlartifacts"


def sqlite_address(path: Path) -> str:
    """Return a database file's address; what has a meaning in an address (``%``, ``?``, ``#``) is quoted.

    A build server's workspaces hold ``%2F``; unquoted, another folder would get the database.
    """
    return f"sqlite:///{quote(str(path))}"


@dataclass(frozen=True)
class Code:
    """The code that runs."""

    folder: Path = Path(__file__).resolve().parents[1]

    @cached_property
    def revision(self) -> str:
        """Git revision with ``+changes`` when files differ from it; the installed version outside a checkout."""
        try:
            head = self._git("rev-parse", "--short=12", "HEAD")
            changed = self._git("status", "--porcelain", "--untracked-files=no")
        except (OSError, subprocess.SubprocessError):
            from ctmr import __version__

            return f"ctmr-{__version__}"
        return head + ("+changes" if changed else "")

    def _git(self, *words: str) -> str:
        done = subprocess.run(
            git_command(self.folder, *words),
            cwd=self.folder,
            env=git_environment(os.environ),
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout.strip()


def quiet_libraries() -> None:
    """Turn off what libraries send home, before any is imported, and keep calls to this machine from a proxy."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "DVC_NO_ANALYTICS": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # Its links would stand before the one JSON document that `--json` promises.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)
    _reach_loopback()


def _reach_loopback() -> None:
    """Name loopback in ``no_proxy``: MLflow, S3 and pipeline servers of this machine are behind no proxy."""
    given = [os.environ[name] for name in ("no_proxy", "NO_PROXY") if os.environ.get(name)]
    hosts = [host.strip() for text in given for host in text.split(",") if host.strip()]
    # Libraries differ in which of the two they read.
    named = "*" if "*" in hosts else ",".join(dict.fromkeys([*hosts, *LOOPBACK_HOSTS]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = named


def fault_of(error: OSError) -> EnvironmentFault:
    """Return the sentence for what the system refused and no code of ours expected: a home that is no folder, say."""
    at, why = error.filename or "the system", error.strerror or type(error).__name__
    return EnvironmentFault(f"{at}: {why}; make it usable, or name another folder ({environment.HOME}, --out)")
