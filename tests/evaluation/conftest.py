"""A test set of tiny phantoms, and models that are as good or as bad as a test wants them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from ctmr.evaluation.candidates import Model
from ctmr.evaluation.testset import TestSet
from ctmr.imaging.grid import Grid
from ctmr.imaging.inference_path import prepare
from ctmr.imaging.volume import Direction, Modality, Unit, Volume
from ctmr.networks import model_folder
from ctmr.networks.generators import build_generator
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of
from ctmr.phantom.twins import make_twins
from ctmr.pipeline.stage import Result, run_stage
from ctmr.pipeline.stages import preprocess
from ctmr.pipeline.stages.evaluate import STAGE
from ctmr.recipe.loading import load
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home
from ctmr.training.setup import describe

SHAPE, SPACING_MM = (24, 28, 24), 8.0
RADII_MM = (12.0, 16.0)
SUBJECTS = {
    "train": ((40, "MR"), (41, "MR"), (42, "CT"), (43, "CT")),
    "test": ((44, "MR"), (44, "CT"), (45, "MR"), (45, "CT")),
}
SETTINGS = [
    "name=tiny",
    "direction=mr2ct",
    "preprocess={plane: axial, spacing_mm: [8, 8], size: [28, 24], picture_size: [32, 32]}",
    "network.generator={kind: resnet, width: 4, blocks: 1}",
    "evaluate.bootstrap=50",
    "evaluate.kid_subsets=2",
    f"evaluate.lesions.radii_mm={list(RADII_MM)}",
    "evaluate.robustness={cases: 1, slices: 2, strengths: [1.0]}",
    "evaluate.uncertainty={cases: 2, slices: 3}",
]
ALONE = ["evaluate.other_direction=0", "evaluate.robustness.cases=0", "evaluate.uncertainty.cases=0"]
QUICK = [*ALONE, "evaluate.lesions.cases=0"]


def recipe(*settings: str) -> Recipe:
    return load("default", [*SETTINGS, *settings])


@dataclass
class World:
    """Inputs of evaluate, and the true pairs behind them."""

    root: Path
    inputs: dict[str, Path]
    truths: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    back: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @property
    def grid(self) -> Grid:
        return Grid.model_validate_json((self.inputs["preprocessed"] / "grid.json").read_text())

    def test_set(self, direction: Direction = Direction.MR2CT) -> TestSet:
        return TestSet.open(self.inputs, self.grid, direction)

    def evaluate(self, home: Home, out: Path, *settings: str) -> tuple[Result, dict]:
        result = run_stage(STAGE, inputs=self.inputs, recipe=recipe(*settings), out=out, home=home)
        return result, json.loads((out / "verdict.json").read_text())


def volume(array: np.ndarray, modality: str, subject: int) -> Volume:
    unit = Unit.HU if modality == "CT" else Unit.ARBITRARY
    return Volume(array, affine_of(SHAPE, SPACING_MM), Modality(modality), unit, f"phantom-{subject}", "T1")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("evaluation")
    raw, rows = root / "raw", []
    for split, members in SUBJECTS.items():
        for seed, modality in members:
            head = make_head(seed, shape=SHAPE, spacing_mm=SPACING_MM)
            path = Path(split) / modality / f"{seed}.nii.gz"
            (raw / path).parent.mkdir(parents=True, exist_ok=True)
            array = head.ct if modality == "CT" else head.t1
            nibabel.save(nibabel.Nifti1Image(array, affine_of(SHAPE, SPACING_MM)), raw / path)
            rows.append(
                {
                    "image": str(path),
                    "subject": f"phantom-{seed}",
                    "modality": modality,
                    "path": str(path),
                    "sequence": "T1" if modality == "MR" else "",
                    "format": "nifti",
                    "split": split,
                    "mask": "",
                }
            )
    validation = root / "validate"
    validation.mkdir()
    pd.DataFrame(rows).to_parquet(validation / "manifest.parquet")
    (validation / "validation.json").write_text(json.dumps({"outcome": "pass"}))
    preprocessed = root / "preprocess"
    run_stage(
        preprocess.STAGE,
        inputs={"raw": raw, "validation": validation},
        recipe=recipe(),
        out=preprocessed,
        home=Home(root / "home"),
    )
    description = describe(preprocessed, recipe())
    generators = {d: build_generator(description.generator, 1, 1) for d in Direction}
    model_folder.save(root / "train", description, generators)
    inputs = {
        "model": root / "train",
        "preprocessed": preprocessed,
        "raw": raw,
        "manifest": validation / "manifest.parquet",
    }
    made = World(root, inputs)
    for seed in (44, 45):
        twins = make_twins(seed, shape=SHAPE, spacing_mm=SPACING_MM, radii_mm=RADII_MM)
        own = make_head(seed, shape=SHAPE, spacing_mm=SPACING_MM)
        # Each direction lies about the head as its own source shows it.
        for source, known in ((volume(own.t1, "MR", seed), made.truths), (volume(own.ct, "CT", seed), made.back)):
            _, place = prepare([source], made.grid)
            for head in (own, twins.healthy, twins.ill):
                both = (head.t1, "MR"), (head.ct, "CT")
                known.append(tuple(prepare([volume(a, m, seed)], made.grid, place)[0] for a, m in both))
    return made


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, no page, no MLflow: for tests of what is measured and judged."""
    from ctmr.pipeline.stages import evaluate

    monkeypatch.setattr(evaluate, "_report", lambda *arguments: "")


Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(input [C, D, H, W], its true counterpart [D, H, W]) → translation [D, H, W]."""


def pretend(monkeypatch: pytest.MonkeyPatch, world: World, answer: Answer) -> None:
    """Let the model of direction mr2ct, or its way back, answer as told; it knows the truth of every input."""

    class Pretender(Model):
        def translate(self, array: np.ndarray, slices: Sequence[int] | None = None) -> np.ndarray:
            made = self.whole(array)
            return made if slices is None else made[list(slices)]

        def whole(self, array: np.ndarray) -> np.ndarray:
            known = world.truths if self.direction is Direction.MR2CT else [p[::-1] for p in world.truths + world.back]
            mirrored = [(a[..., ::-1], b[..., ::-1]) for a, b in known]
            nearest = min(known + mirrored, key=lambda p: float(np.abs(p[0].astype(float) - array).mean()))
            if self.direction is Direction.CT2MR:
                return nearest[1][0].astype(np.float32)
            return answer(array, nearest[1][0].astype(np.float32)).astype(np.float32)

    def load_pretender(folder: Path, direction: Direction) -> Pretender:
        real = genuine(folder, direction)
        return Pretender(real.folder, real.description, real.direction, real.forward, real.backward)

    genuine = Model.load
    monkeypatch.setattr(Model, "load", staticmethod(load_pretender))


def oracle(array: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return truth
