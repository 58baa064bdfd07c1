"""An MLflow store that is made once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ctmr.system.home import Home
from ctmr.tracking.mlflow import GIVEN, PARENT_RUN, Tracking


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it; making one takes seconds, a copy does not."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", GIVEN, PARENT_RUN):
            patch.delenv(name, raising=False)
        root = tmp_path_factory.mktemp("store")
        Tracking(Home(root))
    return root / "mlflow.db"


@pytest.fixture
def tracking(home: Home, empty_store: Path) -> Tracking:
    """A store of its own, made before any run is given."""
    home.root.mkdir()
    shutil.copyfile(empty_store, home.root / "mlflow.db")
    return Tracking(home)
