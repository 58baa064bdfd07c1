"""Made once for all doors: the pictures, and the content that the stages leave when they run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctmr.datasets.dvc import resolve
from ctmr.pipeline.inline import run_pipeline
from ctmr.pipeline.stage import Result
from ctmr.recipe.loading import load
from ctmr.system.home import Home, quiet_libraries
from tests.doors.project import SETTINGS, digests
from tests.doors.test_run_on_pictures import write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small unpaired 8-bit pictures."""
    folder = tmp_path_factory.mktemp("data") / "small pictures"
    write_pictures(folder)
    return folder


class _Enough(Exception):
    """Raised where only the stages up to evaluate are wanted."""


@pytest.fixture(scope="session")
def inline(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Content digests of the stages without side effects, run in this process; every door must give the same."""
    root = tmp_path_factory.mktemp("inline")

    def stop(result: Result) -> None:
        if result.name == "evaluate":
            raise _Enough

    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "CTMR_PARENT_RUN"):
            patch.delenv(name, raising=False)
        quiet_libraries()
        with pytest.raises(_Enough):
            run_pipeline(
                resolve(str(pictures)),
                load("default", SETTINGS),
                folder=root / "run",
                home=Home(root / "home"),
                on_result=stop,
            )
    return digests(root / "run")
