"""Sample sheets show validation slices, the same for the whole training, and say so; only the middle of a stack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctmr.data.manifest import Split
from ctmr.errors import InputError
from ctmr.networks.model_folder import Description
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe
from ctmr.reports import samples as sheets
from ctmr.training.events import SampleEvent
from ctmr.training.samples import Samples
from ctmr.training.setup import describe


def with_neighbours(recipe: Recipe) -> Recipe:
    return override(recipe, [("network.neighbours", 1), ("preprocess.slice_spacing_mm", 2.0)])


def choose(preprocessed: Path, recipe: Recipe) -> Samples:
    return Samples.choose(preprocessed / "shards", recipe, describe(preprocessed, recipe))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """Groups and titles of every sheet."""
    seen: list[tuple[Any, str]] = []
    monkeypatch.setattr(sheets, "sample_sheet", lambda groups, title, phantom: seen.append((groups, title)) or b"")
    return seen


def event(samples: Samples, step: int = 7) -> SampleEvent:
    """Fakes that are the other modality, and reconstructions that are air."""
    batch = samples.examples.batch
    return SampleEvent(
        step, batch.mr, batch.ct, torch.full_like(batch.mr, -1), batch.ct, batch.mr, torch.full_like(batch.ct, -1)
    )


def test_sheets_show_validation_pairs_in_their_units(preprocessed, tiny, drawn):
    samples = choose(preprocessed, tiny)
    assert samples.split is Split.VAL and samples.examples.paired and not samples.phantom
    samples.draw(event(samples))
    ((mr, ct), title) = drawn[0]
    assert title == "step 7 · validation slices · one subject a row"
    assert all("val0\nslice" in name for name in (*mr.names, *ct.names))
    assert (ct.unit, ct.window, mr.unit, mr.window) == ("HU", (-1024, 2000), "share of the volume's range", (0, 1))
    # The shard's discs are of 40 HU in air of -1000; truth, synthetic and again share one scale.
    assert np.median(ct.images[0][:, 7:9, 7:9]) == pytest.approx(40, abs=5)
    assert np.median(ct.images[0][:, 0]) == pytest.approx(-1000, abs=5)
    assert np.allclose(ct.images[1], ct.images[0], atol=0.5) and np.allclose(ct.images[2], -1024)
    assert 0.6 < np.median(mr.images[0][:, 7:9, 7:9]) < 0.9


def test_without_validation_images_of_both_modalities_they_show_training_slices_and_say_so(
    preprocessed, tiny, drawn, tmp_path
):
    shutil.copytree(preprocessed, tmp_path / "p")
    (tmp_path / "p" / "shards" / "val" / "MR.json").unlink()
    samples = choose(tmp_path / "p", tiny)
    samples.draw(event(samples))
    assert samples.split is Split.TRAIN
    assert drawn[0][1] == "step 7 · training slices, validation lacks a modality · MR and CT of a row are unpaired"


def test_of_a_stack_the_middle_is_shown(preprocessed, tiny, drawn):
    for recipe in (tiny, with_neighbours(tiny)):
        samples = choose(preprocessed, recipe)
        samples.draw(event(samples))
    assert samples.examples.batch.ct.shape[1] == 3
    for k in range(2):
        alone, middle = drawn[0][0][k], drawn[1][0][k]
        assert alone.names == middle.names
        assert all(np.array_equal(a, b) for a, b in zip(alone.images, middle.images, strict=True))


def test_pictures_with_neighbours_are_refused_before_anything_is_tuned_or_trained(preprocessed, tiny, tmp_path):
    shutil.copytree(preprocessed, tmp_path / "p")
    for path in (tmp_path / "p" / "shards").glob("*/*.json"):
        tree = json.loads(path.read_text())
        for volume in tree["volumes"]:
            volume["affine"] = None
        path.write_text(json.dumps(tree))
    describe(tmp_path / "p", tiny)
    with pytest.raises(InputError, match=r"pictures, which have no neighbouring slices, .* set it to 0"):
        describe(tmp_path / "p", with_neighbours(tiny))


def test_a_model_folder_without_the_key_is_one_of_single_slices(preprocessed, tiny, tmp_path):
    for recipe, wanted in ((tiny, 0), (with_neighbours(tiny), 1)):
        text = describe(preprocessed, recipe).to_json()
        (tmp_path / "model.json").write_text(text)
        assert ("neighbours" in text) == bool(wanted)
        assert Description.read(tmp_path) == describe(preprocessed, recipe)
        assert Description.read(tmp_path).neighbours == wanted
