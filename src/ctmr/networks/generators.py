"""Generators: ResNet (CycleGAN) and U-Net (pix2pix), from [-1, 1] to [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctmr.networks.blocks import ResidualBlock, initialise, norm, require_divisible
from ctmr.recipe import Generator, GeneratorKind

_RESNET_DIVISOR = 4
_WIDEST = 8
_LEAK = 0.2


class ResNetGenerator(nn.Module):
    """Two strided convolutions, residual blocks, two transposed convolutions.

    Source: Zhu et al. 2017 (arXiv:1703.10593), appendix 7.2, after Johnson et al. 2016 (arXiv:1603.08155).

    Parameters
    ----------
    in_channels, out_channels
        Channels of the two modalities.
    width
        Channels of the first layer (ngf).
    blocks
        Residual blocks; 9 is the paper's for 256 pixels, 6 for 128.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, width, 7),
            norm(width),
            nn.ReLU(inplace=True),
        ]
        for channels in (width, 2 * width):
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
                norm(2 * channels),
                nn.ReLU(inplace=True),
            ]
        layers += [ResidualBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1),
                norm(channels // 2),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, out_channels, H, W]``; H and W divisible by 4, else InputError."""
        require_divisible((x.shape[-2], x.shape[-1]), _RESNET_DIVISOR, "the ResNet generator")
        out: Tensor = self.layers(x)
        return out


class UNetGenerator(nn.Module):
    """Encoder and decoder of 4×4 convolutions with stride 2 and skip connections between equal sizes.

    Source: Isola et al. 2017 (arXiv:1611.07004), appendix 6.1.1, with instance norm and without dropout as in CycleGAN.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the two modalities.
    width
        Channels of the first layer; deeper levels have up to 8 times as many.
    levels
        How often the slice is halved; 8 is the paper's for 256 pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 64, levels: int = 8) -> None:
        super().__init__()
        self.levels = levels
        channels = [width * min(2**level, _WIDEST) for level in range(levels)]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level, out in enumerate(channels):
            encoder: list[nn.Module] = []
            if level > 0:
                encoder.append(nn.LeakyReLU(_LEAK))
            encoder.append(nn.Conv2d(in_channels if level == 0 else channels[level - 1], out, 4, stride=2, padding=1))
            # The innermost level may be one pixel, which has no variance to normalise by.
            if 0 < level < levels - 1:
                encoder.append(norm(out))
            self.down.append(nn.Sequential(*encoder))
        for level in reversed(range(levels)):
            # Every level but the innermost also receives the encoder's output of its size.
            received = channels[level] * (1 if level == levels - 1 else 2)
            emitted = out_channels if level == 0 else channels[level - 1]
            self.up.append(
                nn.Sequential(
                    nn.ReLU(),
                    nn.ConvTranspose2d(received, emitted, 4, stride=2, padding=1),
                    nn.Tanh() if level == 0 else norm(emitted),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, out_channels, H, W]``; H, W divisible by 2**levels, else InputError."""
        require_divisible((x.shape[-2], x.shape[-1]), 2**self.levels, f"a U-Net of {self.levels} levels")
        skips: list[Tensor] = []
        for encode in self.down:
            x = encode(x)
            skips.append(x)
        skips.pop()
        for decode in self.up:
            x = decode(x)
            if skips:
                x = torch.cat([x, skips.pop()], dim=1)
        return x


_BUILDERS: dict[GeneratorKind, Callable[[int, int, int, int], nn.Module]] = {
    GeneratorKind.RESNET: ResNetGenerator,
    GeneratorKind.UNET: UNetGenerator,
}


def build_generator(
    config: Generator,
    in_channels: int,
    out_channels: int,
    *,
    size: tuple[int, int] | None = None,
    rng: torch.Generator | None = None,
) -> nn.Module:
    """Return the initialised generator that a recipe names.

    Parameters
    ----------
    config
        Section ``network.generator``.
    in_channels, out_channels
        Channels of the two modalities.
    size
        Slices (H, W) it will see, checked now instead of at the first forward pass.
    rng
        CPU source of the initial weights; ``None`` uses PyTorch's global one.

    Raises
    ------
    InputError
        When slices of `size` cannot be halved as often as the network needs.
    """
    if size is not None and config.kind is GeneratorKind.UNET:
        require_divisible(size, 2**config.blocks, f"a U-Net of {config.blocks} levels")
    elif size is not None:
        require_divisible(size, _RESNET_DIVISOR, "the ResNet generator")
    module = _BUILDERS[config.kind](in_channels, out_channels, config.width, config.blocks)
    initialise(module, rng)
    return module
