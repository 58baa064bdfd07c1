"""ResNet-18: published size, a forward pass written out by hand, ImageNet weights from a file, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ctmr.errors import InputError
from ctmr.networks import build_discriminator, build_generator
from ctmr.networks.resnet18 import ResNet18, load_imagenet
from ctmr.recipe.training import Discriminator, Generator, LayerNorm, Network
from ctmr.training.cyclegan.networks import CycleGan

torch.set_num_threads(1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_state(module: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights and statistics that are all different from their defaults."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        if value.dtype == torch.int64:
            state[name] = value
        elif name.endswith("running_var"):
            state[name] = torch.rand(value.shape, generator=rng) + 0.5
        else:
            state[name] = 0.1 * torch.randn(value.shape, generator=rng)
    return state


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """He et al. 2016, table 1, column 18-layer, on named tensors."""

    def bn(x: Tensor, name: str) -> Tensor:
        mean, var, gain, bias = (
            state[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * gain + bias

    x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = bn(x, "bn1").clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            y = bn(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").clamp(min=0)
            y = bn(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                x = bn(F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            x = (x + y).clamp(min=0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_it_has_the_published_11_689_512_parameters_under_torchvisions_names() -> None:
    network = ResNet18(3)
    assert sum(p.numel() for p in network.parameters()) == 11_689_512
    names = set(network.state_dict())
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.bn2.bias",
        "layer2.0.downsample.0.weight",
        "layer4.0.downsample.1.num_batches_tracked",
        "layer4.1.conv2.weight",
        "fc.bias",
    } <= names
    assert len(names) == 122


def test_it_equals_its_table_written_out_by_hand() -> None:
    network = ResNet18(3, width=8, classes=5).double().eval()
    state = {k: v.double() if v.is_floating_point() else v for k, v in random_state(network, 1).items()}
    network.load_state_dict(state)
    x = draw(2, 3, 64, 96).double()
    torch.testing.assert_close(network(x), by_hand(state, x), rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_state(ResNet18(3), 2)


@pytest.fixture(scope="module", params=["safetensors", "pth"])
def file(request: pytest.FixtureRequest, weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / f"resnet18.{request.param}"
    if request.param == "pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    return path


def test_both_networks_take_imagenet_weights_from_either_format(file: Path, weights: dict[str, Tensor]) -> None:
    generator = build_generator(Generator(kind="unet_resnet18", blocks=4, norm=LayerNorm.BATCH, rgb=True), 1, 1)
    discriminator = build_discriminator(Discriminator(kind="resnet18", layers=4, norm=LayerNorm.BATCH, rgb=True), 1)
    x = draw(1, 1, 64, 64)
    for network in (generator, discriminator):
        assert len(load_imagenet(network, file)) == 64
        resnet = next(m for m in network.modules() if isinstance(m, ResNet18)).eval()
        for name, value in resnet.state_dict().items():
            assert name.startswith("fc.") or torch.equal(value, weights[name])
    full = ResNet18(3).eval()
    full.load_state_dict(weights)
    inner = next(m for m in discriminator.modules() if isinstance(m, ResNet18))
    torch.testing.assert_close(inner.features(x.expand(-1, 3, -1, -1))[-1], full.features(x.expand(-1, 3, -1, -1))[-1])


def test_one_grey_channel_gives_what_rgb_gives(file: Path) -> None:
    grey, colour = ResNet18(1, classes=None).eval(), ResNet18(3, classes=None).eval()
    load_imagenet(grey, file)
    load_imagenet(colour, file)
    x = draw(1, 1, 64, 64)
    for a, b in zip(grey.features(x), colour.features(x.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_files_that_are_not_its_weights_are_refused_in_one_sentence(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    network = ResNet18(3)
    with pytest.raises(InputError, match="there is no file of weights"):
        load_imagenet(network, tmp_path / "none.pth")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(InputError, match="cannot be read"):
        load_imagenet(network, tmp_path / "text.safetensors")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(InputError, match="cannot be read"):
        load_imagenet(network, tmp_path / "text.pth")
    torch.save(Path("an object"), tmp_path / "object.pth")
    with pytest.raises(InputError, match="cannot be read"):
        load_imagenet(network, tmp_path / "object.pth")
    torch.save({"state": weights}, tmp_path / "nested.pth")
    with pytest.raises(InputError, match="more than named tensors"):
        load_imagenet(network, tmp_path / "nested.pth")
    save_file({k: v for k, v in weights.items() if "layer4" not in k}, tmp_path / "short.safetensors")
    with pytest.raises(InputError, match="missing, first 'layer4"):
        load_imagenet(network, tmp_path / "short.safetensors")
    save_file(weights | {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, tmp_path / "shape.safetensors")
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight has shape \(64, 64, 1, 1\)"):
        load_imagenet(network, tmp_path / "shape.safetensors")


def network_of(weights: str | None) -> Network:
    norm = LayerNorm.BATCH
    return Network(
        generator=Generator(kind="unet_resnet18", blocks=4, norm=norm, weights=weights),
        discriminator=Discriminator(kind="resnet18", layers=4, norm=norm, width=4),
    )


def test_random_weights_are_told_loudly_and_a_files_digest_too(file: Path, weights: dict[str, Tensor]) -> None:
    loaded = CycleGan(network_of(str(file)), mr_channels=1, ct_channels=1, size=(64, 64))
    assert "starts from the weights" in loaded.notices[0] and "sha256" in loaded.notices[0]
    assert "network.discriminator.weights is null" in loaded.notices[1] and "RANDOM" in loaded.notices[1]
    assert torch.equal(loaded.generators["mr2ct"].encoder.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        (Generator, {"weights": "w"}, "the generator is resnet; set weights to null"),
        (Generator, {"kind": "unet_resnet18"}, "1 to 4 stages, found 9; set blocks to 4"),
        (Generator, {"kind": "unet_resnet18", "blocks": 4, "weights": "w"}, "found 64 and instance"),
        (Discriminator, {"kind": "resnet18", "layers": 5}, "set layers to 4"),
        (Discriminator, {"kind": "resnet18", "weights": "w", "norm": "batch", "width": 32}, "found 32 and batch"),
    ],
)
def test_settings_that_cannot_be_a_resnet18_are_refused(section: type, fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        section.model_validate(fields)
