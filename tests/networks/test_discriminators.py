"""Discriminators: published receptive fields and parameter counts, position channels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from ctmr.errors import InputError
from ctmr.networks import build_discriminator
from ctmr.networks.blocks import convolutions
from ctmr.networks.discriminators import Convolutional, PatchGan, PositionAware, ResNet18Classifier
from ctmr.recipe.training import DISCRIMINATORS, Discriminator, LayerNorm


def receptive_field(module: nn.Module) -> int:
    """``r ← (r - 1) · stride + kernel`` from the last convolution to the first (Dumoulin & Visin 2016)."""
    side = 1
    for convolution in reversed(list(convolutions(module))):
        side = (side - 1) * convolution.stride[0] + convolution.kernel_size[0]
    return side


def test_the_patchgan_of_three_layers_has_the_published_2_765_million_parameters() -> None:
    channels = [3, 64, 128, 256, 512, 1]
    by_hand = sum(16 * a * b + b for a, b in itertools.pairwise(channels))
    assert round(by_hand / 1e6, 3) == 2.765
    assert sum(p.numel() for p in PatchGan(3).parameters()) == by_hand


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (3, 70), (5, 286)])
def test_receptive_fields_are_those_of_the_pix2pix_paper(layers: int, side: int) -> None:
    assert receptive_field(PatchGan(1, width=1, layers=layers)) == side


def test_the_receptive_field_is_what_a_gradient_reaches() -> None:
    module = PatchGan(1, width=2, layers=3)
    for name, child in list(module.body.named_children()):
        if isinstance(child, nn.InstanceNorm2d):
            setattr(module.body, name, nn.Identity())
    for p in module.parameters():
        nn.init.constant_(p, 0.01)
    x = torch.ones(1, 1, 160, 160, requires_grad=True)
    out = module(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    assert x.grad is not None
    assert int((x.grad[0, 0].abs().sum(1) > 0).sum()) == 70


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_depth_of_the_patchgan_sees_what_a_gradient_reaches(layers: int) -> None:
    module = PatchGan(1, width=2, layers=layers)
    for name, child in list(module.body.named_children()):
        if isinstance(child, nn.InstanceNorm2d):
            setattr(module.body, name, nn.Identity())
    for p in module.parameters():
        nn.init.constant_(p, 0.01)
    x = torch.ones(1, 1, 320, 320, requires_grad=True)
    out = module(x)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    assert x.grad is not None
    assert int((x.grad[0, 0].abs().sum(1) > 0).sum()) == receptive_field(module)


def test_the_convolutional_discriminator_is_dcgans_and_sees_all_of_64_pixels() -> None:
    channels = [3, 64, 128, 256, 512, 1]
    by_hand = sum(16 * a * b + b for a, b in itertools.pairwise(channels)) + 2 * (128 + 256 + 512)
    module = Convolutional(3)
    assert sum(p.numel() for p in module.parameters()) == by_hand
    assert receptive_field(module) == 94
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    module.eval()(x).sum().backward()
    assert x.grad is not None and bool((x.grad.abs().sum(1) > 0).all())


def test_the_convolutional_discriminator_gives_the_mean_score_of_a_larger_image() -> None:
    module = Convolutional(1, width=2, layers=2).eval()
    x = torch.randn(1, 1, 16, 32)
    scores = module.body(x)
    assert scores.shape == (1, 1, 1, 5)
    torch.testing.assert_close(module(x).item(), scores.mean().item())


def test_the_resnet18_classifier_has_resnet18s_parameters_and_one_output() -> None:
    module = ResNet18Classifier(3)
    assert sum(p.numel() for p in module.parameters()) == 11_689_512 - 513_000 + 513
    torch.testing.assert_close(module.eval()(torch.zeros(1, 3, 64, 64)).shape, torch.Size([1, 1, 1, 1]))


@pytest.mark.parametrize("kind", list(DISCRIMINATORS))
@pytest.mark.parametrize("norm", list(LayerNorm))
@pytest.mark.parametrize(("position", "rgb"), [(False, False), (True, False), (True, True)])
def test_every_kind_scores_patches_or_the_whole_image(kind: str, norm: LayerNorm, position: bool, rgb: bool) -> None:
    config = Discriminator(kind=kind, width=4, layers=2, norm=norm, position=position, rgb=rgb)
    module = build_discriminator(config, 2, size=(32, 24))
    scores = module(torch.randn(2, 2, 32, 24), torch.zeros(2, 1, 32, 24))
    assert scores.shape == ((2, 1, 6, 4) if kind == "patchgan" else (2, 1, 1, 1))
    assert scores.abs().max() < 10


def test_rgb_shows_each_grey_channel_thrice_and_position_once() -> None:
    module = build_discriminator(Discriminator(width=2, layers=1, position=True, rgb=True), 1)
    assert module.inner.inner.body[0].in_channels == 6
    plain = build_discriminator(Discriminator(width=2, layers=1, rgb=True), 1)
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(plain(x), plain.inner(x.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("kind", "layers", "size", "words"),
    [("convolutional", 3, (64, 24), "at least 32 pixels, found 64×24"), ("resnet18", 4, (32, 32), "more than 32")],
)
def test_images_too_small_to_judge_are_refused_at_construction(
    kind: str, layers: int, size: tuple[int, int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        build_discriminator(Discriminator(kind=kind, layers=layers), 1, size=size)


class Recorder(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return x


def test_position_is_row_then_distance_from_the_middle_column_then_depth() -> None:
    recorder = Recorder()
    image, depth = torch.full((2, 1, 5, 3), 7.0), torch.rand(2, 1, 5, 3)
    PositionAware(recorder)(image, depth)
    seen = recorder.seen
    assert seen.shape == (2, 4, 5, 3)
    assert torch.equal(seen[:, :1], image)
    assert seen[1, 1, :, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert seen[0, 2, 4].tolist() == [1, 0, 1]
    assert torch.equal(seen[:, 3:], depth)


def test_a_position_aware_discriminator_needs_a_depth_map() -> None:
    with pytest.raises(ValueError, match="depth map"):
        build_discriminator(Discriminator(width=2, position=True), 1)(torch.zeros(1, 1, 64, 64))
