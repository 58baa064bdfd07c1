"""A model that sees neighbouring slices is exported, put together by the server, and equal wherever a volume is cut."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from ctmr.errors import InputError
from ctmr.evaluation.inference import translate_array
from ctmr.networks.normaliser import Normaliser
from ctmr.networks.translator import Translator
from ctmr.recipe.recipe import Percentile, Window
from ctmr.serving import model_repository as repo
from ctmr.serving import rollout
from ctmr.serving.export import ServedSpec, export_translator
from ctmr.serving.model_repository import Release
from ctmr.tracking.names import Part

SIZE, CHANNELS = (24, 32), 2


def translator(neighbours: int) -> Translator:
    """Every slice of a stack counts, each by another weight."""
    torch.manual_seed(neighbours)
    stack = 2 * neighbours + 1
    body = nn.Sequential(
        nn.Conv2d(CHANNELS * stack, 6, 3, padding=1), nn.InstanceNorm2d(6), nn.ReLU(), nn.Conv2d(6, stack, 1), nn.Tanh()
    )
    return Translator(
        Normaliser(Percentile()), body, Normaliser(Window(low=-1024, high=2000)), (-1024.0, 2000.0), neighbours
    ).eval()


@pytest.fixture(scope="module", params=[1, 2])
def released(request, tmp_path_factory, exported) -> tuple[Translator, Release]:
    made = translator(request.param)
    files = export_translator(made, CHANNELS, SIZE, tmp_path_factory.mktemp("export"))
    spec = exported[0].spec.model_copy(
        update={
            "neighbours": request.param,
            "chunk": 3,
            "generator_sha256": files.generator_sha256,
            "range_sha256": files.range_sha256,
        }
    )
    return made, Release(f"stacks{request.param}", "1", files.generator, files.range, spec)


def by_hand(model: Translator, array: np.ndarray) -> np.ndarray:
    """Translate [C, D, H, W] a slice at a time, its stack cut out of the edge-padded volume by numpy."""
    k = model.neighbours
    padded = np.pad(array.astype(np.float32), ((0, 0), (k, k), (0, 0), (0, 0)), mode="edge")
    limits = model.source.measure(torch.from_numpy(array.astype(np.float32)))[None]
    out = []
    with torch.no_grad():
        for d in range(array.shape[1]):
            stack = np.concatenate([padded[:, d + s] for s in range(2 * k + 1)])[None]
            out.append(model(torch.from_numpy(stack), limits)[0, 0].numpy())
    return np.stack(out)


def test_the_path_that_evaluate_measures_cuts_the_same_stacks(released, array):
    model, _ = released
    wanted = by_hand(model, array)
    assert np.abs(translate_array(model, array) - wanted).max() < 0.01
    assert np.abs(translate_array(model, array, [9, 0, 4]) - wanted[[9, 0, 4]]).max() < 0.01


def test_the_graph_takes_stacks_in_physical_units_and_gives_one_slice(released, array, tmp_path):
    model, release = released
    session = onnxruntime.InferenceSession(str(release.generator), providers=["CPUExecutionProvider"])
    stack = CHANNELS * (2 * model.neighbours + 1)
    assert [i.shape[1:] for i in session.get_inputs()] == [[stack, *SIZE], [CHANNELS, 2]]
    assert session.get_outputs()[0].shape[1:] == [1, *SIZE]
    repo.write_version(tmp_path, release)
    config, volume = (
        (tmp_path / f"{release.model}{part}" / "config.pbtxt").read_text() for part in (Part.GENERATOR, Part.VOLUME)
    )
    assert f"dims: [ {stack}, 24, 32 ]" in config and f"dims: [ {CHANNELS}, 2 ]" in config
    assert f"dims: [ {CHANNELS}, -1, 24, 32 ]" in volume


@pytest.mark.slow
@pytest.mark.parametrize("released", [1, 2], indirect=True)
def test_the_server_gives_the_same_whatever_it_cuts(released, server, array: np.ndarray):
    """Chunks of one slice, of some and of all: bit for bit the same, and PyTorch's slice-by-slice answer."""
    model, release = released
    wanted = np.clip(np.rint(by_hand(model, array)), -32768, 32767)
    answers = []
    with server.client() as client:
        for chunk in (1, 3, 64):
            spec = release.spec.model_copy(update={"chunk": chunk})
            changed = dataclasses.replace(release, model=f"{release.model}c{chunk}", spec=spec)
            repo.write_version(server.repository, changed)
            client.load(*(f"{changed.model}{part}" for part in Part))
            answers.append(client.translate_array(changed.model, array, "1"))
            # One slice alone is its own neighbour on both sides; the canary's two slices work too.
            alone = client.translate_array(changed.model, array[:, 4:5], "1")
            assert np.abs(alone - by_hand(model, array[:, 4:5])).max() <= 0.51
            assert rollout.canary(client, changed.model) == "1"
    assert all(np.array_equal(answers[0], other) for other in answers[1:])
    assert np.abs(answers[0] - wanted).max() <= 1


def test_specs_of_single_slices_stay_as_they_were(exported):
    text = exported[0].spec.to_json()
    assert "neighbours" not in text and ServedSpec.from_json(text).neighbours == 0
    two = exported[0].spec.model_copy(update={"neighbours": 2})
    assert ServedSpec.from_json(two.to_json()) == two and two.stacked_channels == 10
    wrong = {**json.loads(text), "neighbours": -1}
    with pytest.raises(InputError, match="neighbours"):
        ServedSpec.from_json(json.dumps(wrong))


def test_a_served_name_keeps_its_number_of_neighbours(released, exported: list, tmp_path, make_translator: Callable):
    _, release = released
    repo.write_version(tmp_path, exported[0].release(release.model, 1))
    with pytest.raises(InputError, match="served with other channels, size or units"):
        repo.check_version(tmp_path, dataclasses.replace(release, version="2"))
