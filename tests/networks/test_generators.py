"""Generators: sizes, published parameter counts, initial weights, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch

from ctmr.errors import InputError
from ctmr.networks import build_generator
from ctmr.networks.blocks import convolutions
from ctmr.networks.generators import ResNetGenerator, UNetGenerator
from ctmr.recipe import Generator, GeneratorKind

DRAW = torch.Generator().manual_seed(0)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def convolution(kernel: int, inputs: int, outputs: int) -> int:
    return kernel * kernel * inputs * outputs + outputs


def test_resnet_9_has_the_published_11_378_million_parameters() -> None:
    by_hand = (
        convolution(7, 3, 64)
        + convolution(3, 64, 128)
        + convolution(3, 128, 256)
        + 18 * convolution(3, 256, 256)
        + convolution(3, 256, 128)
        + convolution(3, 128, 64)
        + convolution(7, 64, 3)
    )
    assert round(by_hand / 1e6, 3) == 11.378
    assert count(ResNetGenerator(3, 3, width=64, blocks=9)) == by_hand


def test_unet_of_8_levels_has_the_channels_of_pix2pix() -> None:
    down = [3, 64, 128, 256, 512, 512, 512, 512, 512]
    by_hand = sum(convolution(4, a, b) for a, b in itertools.pairwise(down))
    by_hand += convolution(4, 512, 512) + 3 * convolution(4, 1024, 512)
    by_hand += convolution(4, 1024, 256) + convolution(4, 512, 128) + convolution(4, 256, 64)
    by_hand += convolution(4, 128, 3)
    assert count(UNetGenerator(3, 3, width=64, levels=8)) == by_hand


@pytest.mark.parametrize("kind", list(GeneratorKind))
@pytest.mark.parametrize("batch", [1, 2])
def test_every_kind_keeps_the_size_and_stays_in_range(kind: GeneratorKind, batch: int) -> None:
    module = build_generator(Generator(kind=kind, width=4, blocks=2), 2, 1, size=(24, 40))
    out = module(torch.randn(batch, 2, 24, 40, generator=DRAW))
    assert out.shape == (batch, 1, 24, 40)
    assert out.abs().max() <= 1


@pytest.mark.parametrize("kind", list(GeneratorKind))
def test_images_of_a_batch_do_not_touch_each_other(kind: GeneratorKind) -> None:
    module = build_generator(Generator(kind=kind, width=4, blocks=2), 1, 1)
    x = torch.randn(2, 1, 16, 16, generator=DRAW)
    torch.testing.assert_close(module(x), torch.cat([module(x[:1]), module(x[1:])]), rtol=1e-4, atol=1e-5)


def test_weights_start_from_a_normal_of_sd_0_02_and_biases_from_zero() -> None:
    module = build_generator(Generator(width=32, blocks=2), 1, 1, rng=torch.Generator().manual_seed(1))
    for c in convolutions(module):
        assert c.bias is not None and not c.bias.any()
        if c.weight.numel() > 5000:
            assert c.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(c.weight.mean().item()) < 0.001


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    config = Generator(width=4, blocks=1)
    one, two = (build_generator(config, 1, 1, rng=torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    torch.manual_seed(3)
    other = build_generator(config, 1, 1, rng=torch.Generator().manual_seed(6))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    torch.set_rng_state(before)


@pytest.mark.parametrize(("kind", "blocks", "size"), [("unet", 4, (112, 90)), ("resnet", 4, (112, 94))])
def test_a_size_that_cannot_be_halved_is_refused_at_construction(kind: str, blocks: int, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"divisible by {16 if kind == 'unet' else 4}, found 112×{size[1]}"):
        build_generator(Generator(kind=GeneratorKind(kind), blocks=blocks), 1, 1, size=size)


@pytest.mark.parametrize("kind", list(GeneratorKind))
def test_a_size_that_cannot_be_halved_is_refused_in_forward(kind: GeneratorKind) -> None:
    with pytest.raises(InputError, match="divisible"):
        build_generator(Generator(kind=kind, width=2, blocks=2), 1, 1)(torch.zeros(1, 1, 18, 18))


def test_a_unet_may_shrink_to_one_pixel() -> None:
    out = build_generator(Generator(kind=GeneratorKind.UNET, width=2, blocks=4), 1, 1)(torch.randn(1, 1, 16, 16))
    assert out.isfinite().all()
