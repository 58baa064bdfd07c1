"""Discriminators: published receptive fields and parameter counts, position channels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from ctmr.networks import build_discriminator, receptive_field
from ctmr.networks.discriminators import PatchGan, PositionAware
from ctmr.recipe import Discriminator, DiscriminatorKind


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


@pytest.mark.parametrize("kind", list(DiscriminatorKind))
@pytest.mark.parametrize("position", [False, True])
def test_every_kind_scores_patches(kind: DiscriminatorKind, position: bool) -> None:
    module = build_discriminator(Discriminator(kind=kind, width=4, layers=2, position=position), 2)
    scores = module(torch.zeros(2, 2, 32, 24), torch.zeros(2, 1, 32, 24))
    assert scores.shape == (2, 1, 6, 4)
    assert scores.abs().max() < 10


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
