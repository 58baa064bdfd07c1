"""The demo's own git + DVC repository: never a commit in the user's clone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from ctmr.datasets.dvc.commands import TRANSFER_LIMIT_S, dvc
from ctmr.datasets.repository import DataRepository
from ctmr.errors import InputError
from ctmr.phantom.cohort import CohortPlan, write_cohort
from ctmr.system.files import scratch_folder
from ctmr.system.home import Home
from ctmr.system.progress import Progress

_AUTHOR = {
    "GIT_AUTHOR_NAME": "ctmr demo",
    "GIT_AUTHOR_EMAIL": "demo@ctmr.invalid",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00+0000",
    "GIT_COMMITTER_NAME": "ctmr demo",
    "GIT_COMMITTER_EMAIL": "demo@ctmr.invalid",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00+0000",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}
"""A fixed author and date: equal data gives an equal revision on every machine."""

DATASET = "phantom"
"""Name of the tracked folder, and so of the dataset."""


def demo_repository(home: Home) -> Path:
    """Return the demo's data repository; InputError when `ctmr demo` has not made it yet."""
    folder = home.demo / "repository"
    if not (folder / f"{DATASET}.dvc").is_file():
        raise InputError("the demo dataset is not there yet; `ctmr demo` makes it")
    return folder


def make_demo_dataset(home: Home, plan: CohortPlan, report: Progress) -> bool:
    """Make the phantom cohort and its repository, unless the same plan is there already; True when it was made."""
    mark = home.demo / "plan.json"
    wanted = json.dumps(asdict(plan), sort_keys=True)
    folder = home.demo / "repository"
    if mark.is_file() and mark.read_text() == wanted and (folder / f"{DATASET}.dvc").is_file():
        return False
    mark.unlink(missing_ok=True)
    with scratch_folder(home.demo / "cohort") as scratch:
        write_cohort(scratch / DATASET, plan, report=report)
        report("git + DVC repository", 1.0)
        track(scratch / DATASET, folder, home.demo / "remote", name=DATASET, message="Phantom cohort of the ctmr demo")
    mark.write_text(wanted)
    return True


def track(data: Path, repository: Path, remote: Path, *, name: str, message: str) -> None:
    """Make a git + DVC repository that tracks a folder, and push its data to a local remote.

    Parameters
    ----------
    data
        Folder to track; moved into the repository as `name`.
    repository, remote
        Made here; an existing repository is replaced, the remote is kept.

    Raises
    ------
    EnvironmentFault
        git or DVC fail.
    """
    shutil.rmtree(repository, ignore_errors=True)
    remote.mkdir(parents=True, exist_ok=True)
    made = DataRepository.make(repository, str(remote), author=_AUTHOR)
    with made.locked():
        made.commit(name, data, {}, message)
    dvc(repository, "push", "--quiet", f"{name}.dvc", limit_s=TRANSFER_LIMIT_S)
