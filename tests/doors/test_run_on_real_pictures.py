"""The recipe `demo`, cut short, on real unpaired 8-bit pictures: to a served model, without a claim of fidelity."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_real_pictures_end_in_a_served_model_that_claims_no_fidelity(tmp_path: Path) -> None:
    if not PICTURES.is_dir():
        pytest.skip(f"the real images are not here ({PICTURES})")
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the nvidia-pytriton wheel, which carries tritonserver, is not installed")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"CTMR_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "ctmr.cli", "run", "--dataset", str(PICTURES), "--recipe", "demo", "--json"]
    try:
        done = subprocess.run(
            [*command, *(word for setting in SHORT for word in ("--set", setting))],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        stages = json.loads(done.stdout)
        assert stages["validate"]["summary"]["images"] == 2082
        assert max(stages["validate"]["summary"]["counts"].values()) <= 40
        verdict = stages["evaluate"]["summary"]
        assert verdict["verdict"] == "pass" and not verdict["fidelity_measured"]
        assert "Fidelity was not measured" in verdict["statement"]
        assert stages["deploy"]["summary"]["version"] == "1"
        assert stages["deploy"]["summary"]["golden_difference"] <= 1.0
    finally:
        EmbeddedTriton(Home(tmp_path).triton).stop()


def test_the_demo_recipe_as_it_is_does_not_refuse_the_real_pictures(tmp_path: Path) -> None:
    if not PICTURES.is_dir():
        pytest.skip(f"the real images are not here ({PICTURES})")
    environment = os.environ | {"CTMR_HOME": str(tmp_path)}
    start = [sys.executable, "-m", "ctmr.cli"]
    for words in (["fetch", "--dataset", str(PICTURES)], ["validate", "--json"]):
        done = subprocess.run([*start, *words, "--recipe", "demo"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["summary"]["outcome"] == "pass_with_drops"
