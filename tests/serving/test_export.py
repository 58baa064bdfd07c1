"""The exported graphs equal PyTorch, byte for byte the same for the same weights, and give away no path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from ctmr.errors import CtmrError, InputError
from ctmr.networks.normaliser import Normaliser
from ctmr.recipe.recipe import Window
from ctmr.serving.export import MAX_BATCH, OPSET, ServedSpec, export_translator


def run(path: Path, **feed: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_the_graphs_say_what_they_take_and_give(exported):
    def tensors(values):
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    generator, meter = (onnx.load(p) for p in (exported[0].files.generator, exported[0].files.range))
    batch = tensors(generator.graph.input)["slices"][0]
    assert isinstance(batch, str)
    assert tensors(generator.graph.input) == {"slices": [batch, 2, 24, 32], "range": [batch, 2, 2]}
    assert tensors(generator.graph.output) == {"translation": [batch, 1, 24, 32]}
    assert tensors(meter.graph.input) == {"volume": [2, "depth", "height", "width"]}
    assert tensors(meter.graph.output) == {"range": [2, 2]}
    assert {o.version for o in generator.opset_import if o.domain == ""} == {OPSET}


@pytest.mark.parametrize("count", [1, 3, MAX_BATCH])
def test_the_generator_equals_pytorch_at_any_batch(exported, count):
    rng = np.random.default_rng(count)
    slices = rng.uniform(0, 3000, (count, 2, 24, 32)).astype(np.float32)
    limits = np.tile(np.array([0, 2500], np.float32), (count, 2, 1))
    with torch.no_grad():
        wanted = exported[0].translator(torch.from_numpy(slices), torch.from_numpy(limits)).numpy()
    assert np.abs(run(exported[0].files.generator, slices=slices, range=limits) - wanted).max() < 0.05


@pytest.mark.parametrize("shape", [(1, 8, 9), (12, 24, 32)])
def test_the_range_equals_numpys_percentile_at_any_shape(exported, shape):
    volume = np.random.default_rng(0).integers(0, 60000, (2, *shape)).astype(np.float32)
    wanted = [[0, np.percentile(c[c > c.astype(np.float64).mean()].astype(np.float64), 99.0) * 1.2] for c in volume]
    assert run(exported[0].files.range, volume=volume) == pytest.approx(np.array(wanted), rel=1e-6)


def test_a_fixed_window_has_a_range_graph_too(make_translator, tmp_path):
    translator = make_translator(0)
    translator.source = Normaliser(Window(low=-100, high=300))
    files = export_translator(translator, 2, (24, 32), tmp_path)
    assert run(files.range, volume=np.ones((2, 3, 24, 32), np.float32)).tolist() == [[-100, 300]] * 2


def test_equal_weights_give_equal_bytes_and_other_weights_others(exported, make_translator, tmp_path):
    again = export_translator(make_translator(0).train(), 2, (24, 32), tmp_path)
    assert (again.generator_sha256, again.range_sha256) == (
        exported[0].files.generator_sha256,
        exported[0].files.range_sha256,
    )
    assert exported[1].files.generator_sha256 != again.generator_sha256


def test_no_path_of_this_machine_stands_in_the_files(exported):
    for path in (exported[0].files.generator, exported[0].files.range):
        content = path.read_bytes()
        for part in (str(Path(__file__).parents[2]).encode(), b".py", str(Path.home()).encode(), b"stack_trace"):
            assert part not in content


def test_a_graph_that_differs_from_pytorch_is_refused(make_translator, tmp_path, monkeypatch):
    import ctmr.serving.export as export

    right = export._run
    monkeypatch.setattr(export, "_run", lambda content, feed: right(content, feed) * 1.01)
    with pytest.raises(CtmrError, match=r"generator\.onnx differs from PyTorch by .* at most 0\.3024"):
        export_translator(make_translator(0), 2, (24, 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_generator_that_makes_nan_is_refused(make_translator, tmp_path):
    translator = make_translator(0)
    nn.init.constant_(translator.generator[0].weight, float("nan"))
    with pytest.raises(CtmrError, match="nan"):
        export_translator(translator, 2, (24, 32), tmp_path)


def test_a_spec_survives_json_and_names_what_is_wrong(exported):
    spec = exported[0].spec
    assert ServedSpec.from_json(spec.to_json()) == spec
    for change, named in (({"chunk": 65}, "chunk"), ({"colour": 1}, "colour"), ({"channels": 3}, "sequences")):
        with pytest.raises(InputError, match=named):
            ServedSpec.from_json(json.dumps({**json.loads(spec.to_json()), **change}))
    wrong_side = {**json.loads(spec.to_json()), "target": {"modality": "MR", "unit": "arbitrary"}}
    with pytest.raises(InputError, match="mr2ct has CT there, not MR"):
        ServedSpec.from_json(json.dumps(wrong_side))
