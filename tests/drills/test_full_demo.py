"""The demo as a person runs it, in full: its model passes the recipe's gate and is better than what saw no pairs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from ctmr.serving.server import EmbeddedTriton
from tests.doors.demo import PROTOCOL, Demo, run_demo

pytestmark = [
    pytest.mark.drill,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.environ.get("CTMR_DRILL") != "full", reason="the full demo trains for minutes: make drill"),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    if importlib.util.find_spec("pytriton") is None:
        pytest.skip("the nvidia-pytriton wheel, which carries tritonserver, is not installed")
    made = run_demo(tmp_path_factory.mktemp("demo"))
    yield made
    EmbeddedTriton(made.home.triton).stop()


def means(demo: Demo, who: str | None = None) -> dict[str, float]:
    summary = demo.summary("evaluate")
    found: dict[str, float] = (summary["metrics"] if who is None else summary["baselines"][who])[PROTOCOL]
    return found


def test_the_model_beats_every_baseline_translator_that_saw_no_pairs(demo: Demo) -> None:
    own = means(demo)
    rivals = [means(demo, who) for who in demo.summary("evaluate")["baselines"]]
    assert own["psnr"] >= max(r["psnr"] for r in rivals) + 1.0
    assert own["ssim"] >= max(r["ssim"] for r in rivals) + 0.05
    assert own["mae"] < min(r["mae"] for r in rivals)


def test_bone_and_fat_are_not_swapped_and_air_is_dark(demo: Demo) -> None:
    tissue = {k: v["prediction"] for k, v in demo.summary("evaluate")["tissues"].items()}
    assert tissue["air outside"] < -900 < tissue["fat"] < tissue["brain"] < 150 < 600 < tissue["bone"]


def test_the_recipe_as_it_is_ends_in_a_served_version(demo: Demo) -> None:
    assert demo.summary("evaluate")["verdict"] == "pass"
    assert demo.summary("tune")["trials"] >= 4
    assert demo.summary("deploy")["version"] == demo.summary("register")["version"] == "1"
    assert demo.summary("deploy")["golden_difference"] <= 1.0
