"""The recipe `demo` on real unpaired 8-bit pictures: accepted as it is; cut short, no champion."""

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


def ctmr(home: Home, *words: str, codes: tuple[int, ...] = (0,)) -> Any:
    """Run a command with the recipe `demo`; return the document that it prints, ``None`` where it failed as it may."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"CTMR_HOME": str(home.root)}
    command = [sys.executable, "-m", "ctmr.cli", *words, "--recipe", "demo", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode in codes, done.stderr[-2000:]
    return json.loads(done.stdout) if done.returncode == 0 else None


def test_the_demo_recipe_as_it_is_does_not_refuse_the_real_pictures(home: Home) -> None:
    ctmr(home, "fetch", "--dataset", str(PICTURES))
    assert ctmr(home, "validate")["summary"]["outcome"] == "pass_with_drops"


def test_real_pictures_make_no_champion_because_no_fidelity_is_measured(home: Home, needs_triton: None) -> None:
    """Whether so short a training beats the baselines is left open; either way nothing is served."""
    folder = home.root / "run"
    short = [word for s in SHORT for word in ("--set", s)]
    ctmr(home, "run", "--dataset", str(PICTURES), "--out", str(folder), *short, codes=(0, 1))
    validated = json.loads((folder / "validate" / "validation.json").read_text())
    assert validated["images"] == 2082 and max(validated["counts"].values()) <= 40
    verdict = json.loads((folder / "evaluate" / "verdict.json").read_text())
    assert not verdict["fidelity_measured"] and "Fidelity was not measured" in verdict["statement"]
    assert not verdict["replaces_champion"]
    if verdict["passed"]:
        deployment = json.loads((folder / "deploy" / "deployment.json").read_text())
        assert deployment["version"] is None and "gate.allow_unmeasured_fidelity" in deployment["reason"]
    else:
        assert any("a baseline that saw no pairs" in reason for reason in verdict["reasons"])
