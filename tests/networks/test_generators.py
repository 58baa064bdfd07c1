"""Generators: sizes, published parameter counts, initial weights, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch

from ctmr.errors import InputError
from ctmr.networks import build_generator
from ctmr.networks.blocks import convolutions, mixes_images
from ctmr.networks.generators import EncoderDecoder, ResNetGenerator, UNetGenerator, UNetResNet18
from ctmr.recipe.training import GENERATORS, Generator, LayerNorm, Upsampling

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


def test_resnet_6_has_the_layers_of_the_cyclegan_paper() -> None:
    # c7s1-64, d128, d256, R256 × 6, u128, u64, c7s1-3 of Zhu et al. 2017, appendix 7.2.
    by_hand = (
        convolution(7, 3, 64)
        + convolution(3, 64, 128)
        + convolution(3, 128, 256)
        + 12 * convolution(3, 256, 256)
        + convolution(3, 256, 128)
        + convolution(3, 128, 64)
        + convolution(7, 64, 3)
    )
    module = ResNetGenerator(3, 3, width=64, blocks=6)
    assert count(module) == by_hand == 7_837_699
    assert module.layers[:10](torch.zeros(1, 3, 256, 256)).shape == (1, 256, 64, 64)


def test_resize_convolutions_have_as_many_weights_as_transposed_ones_of_their_kernel() -> None:
    resized = ResNetGenerator(1, 1, 8, 1, LayerNorm.INSTANCE, Upsampling.RESIZE)
    assert count(resized) == count(ResNetGenerator(1, 1, 8, 1))
    assert not any(isinstance(m, torch.nn.ConvTranspose2d) for m in resized.modules())
    assert sum(isinstance(m, torch.nn.Upsample) for m in resized.modules()) == 2


def test_the_encoder_decoder_has_dcgans_channels_at_64_pixels() -> None:
    down = [3, 64, 128, 256, 512]
    convolutions_by_hand = sum(2 * convolution(4, a, b) - b + a for a, b in itertools.pairwise(down))
    norms = 2 * (128 + 256 + 512) + 2 * (256 + 128 + 64)
    module = EncoderDecoder(3, 3)
    assert count(module) == convolutions_by_hand + norms
    assert module.layers[:11](torch.zeros(1, 3, 64, 64)).shape == (1, 512, 4, 4)


def test_the_encoder_decoder_equals_its_layers_written_out() -> None:
    module = EncoderDecoder(1, 2, width=3, levels=2).double().eval()
    layers = [m for m in module.layers if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    x = torch.randn(2, 1, 16, 8, generator=DRAW).double()
    c = torch.nn.functional
    scale = (1 + 1e-5) ** -0.5  # batch norm at its initial statistics
    y = c.conv2d(x, layers[0].weight, layers[0].bias, 2, 1).clamp(min=0)
    y = (c.conv2d(y, layers[1].weight, layers[1].bias, 2, 1) * scale).clamp(min=0)
    y = (c.conv_transpose2d(y, layers[2].weight, layers[2].bias, 2, 1) * scale).clamp(min=0)
    y = c.conv_transpose2d(y, layers[3].weight, layers[3].bias, 2, 1).tanh()
    torch.testing.assert_close(module(x), y)


def test_the_unet_with_a_resnet18_encoder_has_that_encoders_parameters_and_a_decoder() -> None:
    encoder = 11_689_512 - (512 * 1000 + 1000)
    decoder, taken = 0, 512
    for given in (256, 128, 64, 64):
        decoder += convolution(4, taken, given) + 2 * given + convolution(3, 2 * given, given) + 2 * given
        taken = given
    assert count(UNetResNet18(3, 1)) == encoder + decoder + convolution(4, 64, 1)


@pytest.mark.parametrize("kind", list(GENERATORS))
@pytest.mark.parametrize("norm", list(LayerNorm))
@pytest.mark.parametrize("upsampling", list(Upsampling))
@pytest.mark.parametrize(("batch", "rgb"), [(1, False), (2, True)])
def test_every_kind_keeps_the_size_and_stays_in_range(
    kind: str, norm: LayerNorm, upsampling: Upsampling, batch: int, rgb: bool
) -> None:
    config = Generator(kind=kind, width=4, blocks=2, norm=norm, upsampling=upsampling, rgb=rgb)
    module = build_generator(config, 2, 1, size=(24, 40))
    out = module(torch.randn(batch, 2, 24, 40, generator=DRAW))
    assert out.shape == (batch, 1, 24, 40)
    assert out.abs().max() <= 1
    assert mixes_images(module) is (norm is LayerNorm.BATCH)


def test_rgb_shows_each_channel_thrice_and_averages_the_three_it_paints() -> None:
    module = build_generator(Generator(width=4, blocks=1, rgb=True), 2, 2)
    x = torch.randn(1, 2, 16, 16, generator=DRAW)
    a, b = x[:, :1], x[:, 1:]
    painted = module.inner(torch.cat([a, a, a, b, b, b], 1))
    torch.testing.assert_close(module(x), torch.stack([painted[:, :3].mean(1), painted[:, 3:].mean(1)], 1))


@pytest.mark.parametrize("kind", list(GENERATORS))
def test_images_of_a_batch_do_not_touch_each_other(kind: str) -> None:
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
        build_generator(Generator(kind=kind, blocks=blocks), 1, 1, size=size)


@pytest.mark.parametrize("kind", list(GENERATORS))
def test_a_size_that_cannot_be_halved_is_refused_in_forward(kind: str) -> None:
    with pytest.raises(InputError, match="divisible"):
        build_generator(Generator(kind=kind, width=2, blocks=2), 1, 1)(torch.zeros(1, 1, 18, 18))


@pytest.mark.parametrize(("kind", "blocks"), [("unet_resnet18", 3), ("encoder_decoder", 4)])
def test_a_network_that_normalises_one_pixel_is_refused_at_construction(kind: str, blocks: int) -> None:
    with pytest.raises(InputError, match=r"more than 16 pixels, found 16×16; .* lower network\.generator\.blocks"):
        build_generator(Generator(kind=kind, width=2, blocks=blocks), 1, 1, size=(16, 16))


def test_a_unet_may_shrink_to_one_pixel() -> None:
    out = build_generator(Generator(kind="unet", width=2, blocks=4), 1, 1)(torch.randn(1, 1, 16, 16))
    assert out.isfinite().all()
