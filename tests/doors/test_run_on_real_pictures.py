"""The recipe `demo` on real unpaired 8-bit pictures: accepted as it is; cut short, to a served model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctmr.serving.server import EmbeddedTriton
from ctmr.system.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.shared_data]

PICTURES = Path(__file__).resolve().parents[3] / "shared" / "data" / "kaggle_ct_mr"
SHORT = [
    "train.steps=40",
    "tune.steps=10",
    "tune.reports=1",
    "data.max_images=40",
    "evaluate.max_unpaired_images=24",
    "evaluate.kid_subset_size=20",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One home, so that the pictures are fetched once."""
    if not PICTURES.is_dir():
        pytest.skip(f"the real images are not here ({PICTURES})")
    made = Home(tmp_path_factory.mktemp("real_pictures"))
    yield made
    EmbeddedTriton(made.triton).stop()


def ctmr(home: Home, *words: str) -> Any:
    """Run a command with the recipe `demo`; return the document that it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"CTMR_HOME": str(home.root)}
    command = [sys.executable, "-m", "ctmr.cli", *words, "--recipe", "demo", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_demo_recipe_as_it_is_does_not_refuse_the_real_pictures(home: Home) -> None:
    ctmr(home, "fetch", "--dataset", str(PICTURES))
    assert ctmr(home, "validate")["summary"]["outcome"] == "pass_with_drops"


def test_real_pictures_end_in_a_served_model_that_claims_no_fidelity(home: Home, needs_triton: None) -> None:
    stages = ctmr(home, "run", "--dataset", str(PICTURES), *(word for s in SHORT for word in ("--set", s)))
    assert stages["validate"]["summary"]["images"] == 2082
    assert max(stages["validate"]["summary"]["counts"].values()) <= 40
    verdict = stages["evaluate"]["summary"]
    assert verdict["verdict"] == "pass" and not verdict["fidelity_measured"]
    assert "Fidelity was not measured" in verdict["statement"]
    assert stages["deploy"]["summary"]["version"] == "1"
    assert stages["deploy"]["summary"]["golden_difference"] <= 1.0
