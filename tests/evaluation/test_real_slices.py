"""The hallucination test on real, unpaired slices: inserted lesions are kept, lost or invented as the model deals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from ctmr.evaluation.candidates import Model
from ctmr.evaluation.lesions import lesion_tests
from ctmr.evaluation.testset import TestSet
from ctmr.imaging.grid import Grid
from ctmr.imaging.volume import Direction, Unit
from ctmr.networks import model_folder
from ctmr.networks.generators import build_generator
from ctmr.pipeline.stage import run_stage
from ctmr.pipeline.stages import preprocess
from ctmr.system.home import Home
from ctmr.training.setup import describe

from .conftest import recipe

pytestmark = [pytest.mark.slow, pytest.mark.shared_data]

EACH = 4
SETTINGS = ("preprocess.picture_size=[128, 128]", "evaluate.lesions={cases: 4, radii_mm: [8.0, 14.0], contrast: 0.4}")


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    from tests.conftest import REAL_IMAGES

    if not REAL_IMAGES.is_dir():
        pytest.skip("real images not found at ../shared/data")
    root, rows = tmp_path_factory.mktemp("slices"), []
    for split in ("train", "test"):
        for folder, modality in (("CT", "CT"), ("MRI", "MR")):
            for path in sorted((REAL_IMAGES / "kaggle_ct_mr" / split / folder).iterdir())[:EACH]:
                relative = f"{split}/{modality}/{path.name}"
                (root / "raw" / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / "raw" / relative)
                rows.append(
                    {
                        "image": relative,
                        "subject": relative,
                        "modality": modality,
                        "path": relative,
                        "sequence": "",
                        "format": "raster",
                        "split": split,
                        "mask": "",
                    }
                )
    (root / "validate").mkdir()
    pd.DataFrame(rows).to_parquet(root / "validate" / "manifest.parquet")
    (root / "validate" / "validation.json").write_text(json.dumps({"outcome": "pass"}))
    inputs = {"raw": root / "raw", "validation": root / "validate"}
    out = root / "preprocess"
    run_stage(preprocess.STAGE, inputs=inputs, recipe=recipe(*SETTINGS), out=out, home=Home(root / "home"))
    description = describe(out, recipe(*SETTINGS))
    model_folder.save(root / "train", description, {d: build_generator(description.generator, 1, 1) for d in Direction})
    manifest = root / "validate" / "manifest.parquet"
    return {"preprocessed": out, "raw": root / "raw", "manifest": manifest}, root / "train"


def run_test(slices, direction):
    inputs, folder = slices
    grid = Grid.model_validate_json((inputs["preprocessed"] / "grid.json").read_text())
    test_set = TestSet.open(inputs, grid, direction)
    [test] = lesion_tests([(test_set, Model.load(folder, direction))], recipe(*SETTINGS))
    assert test.how == "inserted, contrast 0.4" and test.unit is Unit.GREY8 and len(test.cases) == EACH
    return test


@pytest.mark.parametrize("direction", list(Direction))
def test_a_model_that_shows_what_it_sees_keeps_inserted_lesions_and_invents_none(slices, direction, monkeypatch):
    monkeypatch.setattr(Model, "translate", lambda self, array, slices=None: 200.0 - array[0].astype(np.float32) / 2)
    test = run_test(slices, direction)
    assert test.kept / len(test.responses) > 0.9 and len(test.responses) >= 3 * EACH
    assert all(c.findings.invented == 0 for c in test.cases)
    assert f"{direction}, lesions inserted" in test.sentence() and "lesions kept (" in test.sentence()


@pytest.mark.parametrize("direction", list(Direction))
def test_a_model_that_paints_over_what_is_unusual_loses_them(slices, direction, monkeypatch):
    def smooth(self, array, slices=None):
        return ndimage.gaussian_filter(array[0].astype(np.float32), (0, 40, 40))

    monkeypatch.setattr(Model, "translate", smooth)
    test = run_test(slices, direction)
    assert test.kept / len(test.responses) < 0.3


def test_a_model_that_answers_a_lesion_with_another_one_elsewhere_invents_it(slices, monkeypatch):
    means: list[float] = []

    def answer(self, array, slices=None):
        made = array[0].astype(np.float32)
        means.append(float(made.mean()))
        if len(means) % 2 == 0:  # the translation with lesions comes second
            _, h, w = np.indices(made.shape)
            head = made > 20
            centre = [int(c) for c in ndimage.center_of_mass(head)]
            for away in (-20, 20):
                made = made + 90.0 * ((h - centre[1] - away) ** 2 + (w - centre[2] - away) ** 2 < 6**2)
        return made

    monkeypatch.setattr(Model, "translate", answer)
    test = run_test(slices, Direction.MR2CT)
    assert sum(c.findings.invented > 0 for c in test.cases) >= EACH - 1
