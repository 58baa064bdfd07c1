"""Made once for all doors: the pictures, and a run of all stages on them in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctmr.datasets.dvc import resolve
from ctmr.pipeline.inline import run_pipeline
from ctmr.serving.server import EmbeddedTriton
from ctmr.system.home import Home, quiet_libraries
from tests.doors.pictures import World, digests, recipe, write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small unpaired 8-bit pictures."""
    folder = tmp_path_factory.mktemp("data") / "small pictures"
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def needs_triton() -> None:
    """The wheel that carries tritonserver; a platform may lack it."""
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the nvidia-pytriton wheel, which carries tritonserver, is not installed")


@pytest.fixture(scope="session")
def first_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory, needs_triton: None) -> Iterator[World]:
    """The first run on the pictures, all eight stages in this process."""
    root = tmp_path_factory.mktemp("inline")
    home = Home(root / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTMR_HOME", str(home.root))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "CTMR_PARENT_RUN"):
            patch.delenv(name, raising=False)
        quiet_libraries()
        first = run_pipeline(resolve(str(pictures)), recipe(), folder=root / "run", home=home)
    yield World(home, pictures, root / "run", first, digests(root / "run"))
    EmbeddedTriton(home.triton).stop()


@pytest.fixture(scope="session")
def inline(first_run: World) -> dict[str, str]:
    """Content digests of the stages without side effects, run in this process; every door must give the same."""
    return first_run.digests
