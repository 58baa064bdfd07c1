"""A calibration on its way: measured by evaluate, registered in the spec, with deploy's limits beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctmr.evaluation import uncertainty as measured
from ctmr.evaluation.candidates import Model
from ctmr.evaluation.uncertainty import CalibrationResult, calibrate_series
from ctmr.imaging.calibration import Calibration
from ctmr.imaging.volume import Direction, Modality, Unit
from ctmr.pipeline.stage import run_stage
from ctmr.pipeline.stages import deploy, register
from ctmr.serving.export import ServedModality, ServedSpec
from ctmr.system.home import Home

from .conftest import QUICK, World, recipe

KNOWN = Calibration(
    unit=Unit.HU, cases=6, images=4, rank_correlation=0.8, left_out_error=9, figures=(10, 20), errors=(50, 80)
)


def test_figure_and_error_of_each_image_are_those_of_a_count_by_hand(world: World, monkeypatch: Any) -> None:
    truths = {a.tobytes(): b[0].astype(np.float32) for a, b in world.truths}

    def translate(self: Model, array: np.ndarray, slices: list[int]) -> np.ndarray:
        """Right but for 200 HU too much on one side."""
        plain = truths.get(np.ascontiguousarray(array).tobytes())
        if plain is None:
            # A mirrored input, or a disturbed one, which is not known and becomes air.
            plain = truths.get(np.ascontiguousarray(array[..., ::-1]).tobytes())
            plain = np.full(array.shape[1:], -1000, np.float32) if plain is None else plain[..., ::-1]
        made = plain
        made = made.copy()
        made[..., :12] += 200.0
        return made[slices]

    monkeypatch.setattr(Model, "translate", translate)
    model = Model.load(world.inputs["model"], Direction.MR2CT)
    found = calibrate_series(world.test_set(), model, recipe())
    rows = {(name, kind): (figure, error) for name, kind, figure, error in found.cases}
    assert {kind for _, kind in rows} == {"", "noise", "bias field", "intensity", "spacing"} and len(rows) == 10
    intact = [value for (_, kind), value in rows.items() if not kind]
    assert [figure for figure, _ in intact] == pytest.approx([100, 100], abs=0.1)
    assert all(60 < error < 140 for _, error in intact)
    assert found.calibration is None and "2 held-out images with truth are there, 10 with" in found.words
    assert json.loads(json.dumps(found.to_dict()))["calibration"] is None
    none = calibrate_series(world.test_set(), model, recipe("evaluate.uncertainty.calibration_cases=0"))
    assert none.cases == () and "0 held-out images" in none.reason


def test_without_comparable_truth_nothing_is_calibrated(world: World) -> None:
    model = Model.load(world.inputs["model"], Direction.CT2MR)
    found = calibrate_series(world.test_set(Direction.CT2MR), model, recipe())
    assert found.calibration is None and found.reason == "no held-out image has a truth that compares"


def test_a_calibration_says_how_far_it_is_to_be_trusted() -> None:
    words = CalibrationResult(Unit.HU, (("a", "", 1.0, 2.0),), KNOWN).words
    assert "rank correlation 0.80 over 6 held-out images and disturbed copies" in words and "off by 9 HU" in words


class Registry:
    """An MLflow that holds nothing and takes everything."""

    uri = "sqlite:///nowhere"

    def __init__(self, home: Home) -> None:
        self.home = home

    def champion(self, name: str, alias: str) -> None:
        return None

    def versions(self, name: str) -> list[Any]:
        return []

    def run_of(self, digest: str) -> str:
        return "run-1"

    def register(self, *given: Any) -> str:
        return "1"

    def tag(self, *given: Any) -> None:
        pass

    def reopen(self, *given: Any) -> None:
        pass

    def is_open(self, *given: Any) -> bool:
        return True

    def end(self, *given: Any) -> None:
        pass


@pytest.mark.slow
def test_evaluates_calibration_reaches_the_served_spec_and_deploys_limits_stand_beside_it(
    world: World, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(measured, "calibrate", lambda *given: KNOWN)
    home = Home(tmp_path / "home")
    _, verdict = world.evaluate(home, tmp_path / "evaluate", *QUICK)
    assert verdict["calibration"]["calibration"]["figures"] == [10, 20] and len(verdict["calibration"]["cases"]) == 10
    decision = json.loads((tmp_path / "evaluate" / "decision.json").read_text())
    assert Calibration.model_validate(decision["calibration"]) == KNOWN

    model = tmp_path / "model"
    shutil.copytree(world.inputs["model"], model)
    grid = world.grid
    for direction in Direction:
        folder = model / "onnx" / direction.value
        folder.mkdir(parents=True, exist_ok=True)
        sides = {Modality.CT: Unit.HU, Modality.MR: Unit.ARBITRARY}
        source, target = (ServedModality(modality=m, unit=sides[m]) for m in (direction.source, direction.target))
        spec = ServedSpec(
            direction=direction,
            source=source,
            target=target,
            grid=grid,
            generator_sha256="ab" * 32,
            range_sha256="cd" * 32,
        )
        (folder / "spec.json").write_text(spec.to_json())
        for name in ("generator.onnx", "range.onnx"):
            (folder / name).write_bytes(b"graph")
    given = {"decision.json": {**decision, "passed": True}, "dataset.json": {"name": "d", "revision": "r", "md5": "m"}}
    given["validation.json"] = {"outcome": "pass", "used": 1, "images": 1, "expectations": "1"}
    for name, tree in given.items():
        (tmp_path / name).write_text(json.dumps(tree))
    monkeypatch.setattr("ctmr.tracking.mlflow.Tracking", Registry)
    inputs = {name.removesuffix(".json"): tmp_path / name for name in given} | {"model": model}
    run_stage(register.STAGE, inputs=inputs, recipe=recipe(), out=tmp_path / "register", home=home)
    specs = {
        d: ServedSpec.from_json((tmp_path / "register" / "release" / d.value / "spec.json").read_text())
        for d in Direction
        if (tmp_path / "register" / "release" / d.value).exists()
    }
    assert specs[Direction.MR2CT].uncertainty.calibration == KNOWN and not specs[Direction.MR2CT].uncertainty.limited
    limits = recipe("deploy.uncertainty.flag_above_hu=100", "deploy.uncertainty.refuse_above_hu=200").deploy
    served = deploy.as_deployed(specs[Direction.MR2CT], limits)
    assert served.uncertainty.limited and served.content == specs[Direction.MR2CT].content
    assert (served.uncertainty.flag_above, served.uncertainty.refuse_above) == (100, 200)
