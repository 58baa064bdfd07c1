"""Generators: ResNet, sub-pixel network, two U-Nets, encoder-decoder without skips, from [-1, 1] to [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ctmr.networks.blocks import (
    LEAK,
    WIDEST,
    ImageNetwork,
    ResidualBlock,
    initialise,
    norm,
    require_room,
    triple,
    upsampling,
)
from ctmr.networks.resnet18 import ResNet18
from ctmr.recipe.training import GENERATORS, Generator, LayerNorm, Upsampling


class ResNetGenerator(ImageNetwork):
    """Two strided convolutions, residual blocks, two up-sampling layers.

    Source: Zhu et al. 2017 (arXiv:1703.10593), appendix 7.2, after Johnson et al. 2016 (arXiv:1603.08155).

    Parameters
    ----------
    in_channels, out_channels
        Channels of the two modalities.
    width
        Channels of the first layer (ngf).
    blocks
        Residual blocks; 9 is the paper's for 256 pixels, 6 for 128.
    kind, up
        Norm, and how the size is doubled; the paper's are instance norm and transposed convolutions.
    """

    divisor = 4
    what = "the ResNet generator"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        blocks: int = 9,
        kind: LayerNorm = LayerNorm.INSTANCE,
        up: Upsampling = Upsampling.TRANSPOSED,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, width, 7),
            norm(width, kind),
            nn.ReLU(inplace=True),
        ]
        for channels in (width, 2 * width):
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
                norm(2 * channels, kind),
                nn.ReLU(inplace=True),
            ]
        layers += [ResidualBlock(4 * width, kind) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += [
                *upsampling(up, channels, channels // 2),
                norm(channels // 2, kind),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, out_channels, H, W]``; H and W divisible by 4, else InputError."""
        self.require_divisible((x.shape[-2], x.shape[-1]))
        out: Tensor = self.layers(x)
        return out


class SubPixelGenerator(ImageNetwork):
    """Residual blocks at a quarter of the resolution; pixels become channels on the way down and again pixels up.

    No layer works at full resolution, where a small network spends most of its time: 2×2 pixels become channels before
    the first convolution and after the last (Shi et al. 2016, arXiv:1609.05158), and at half resolution one skip
    connection keeps edges.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the two modalities.
    width
        Channels at half resolution; the residual blocks have twice as many.
    blocks
        Residual blocks.
    kind
        Norm.
    """

    divisor = 4
    what = "the sub-pixel generator"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 32,
        blocks: int = 4,
        kind: LayerNorm = LayerNorm.INSTANCE,
        _up: Upsampling = Upsampling.TRANSPOSED,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.ReflectionPad2d(1),
            nn.Conv2d(4 * in_channels, width, 3),
            norm(width, kind),
            nn.ReLU(inplace=True),
        )
        self.quarter = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * width, 2 * width, 1),
            norm(2 * width, kind),
            nn.ReLU(inplace=True),
            *(ResidualBlock(2 * width, kind) for _ in range(blocks)),
            nn.Conv2d(2 * width, 4 * width, 1),
            nn.PixelShuffle(2),
        )
        self.head = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(2 * width, width, 3),
            norm(width, kind),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, 4 * out_channels, 3),
            nn.PixelShuffle(2),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, out_channels, H, W]``; H and W divisible by 4, else InputError."""
        self.require_divisible((x.shape[-2], x.shape[-1]))
        half = self.stem(x)
        out: Tensor = self.head(torch.cat([half, self.quarter(half)], dim=1))
        return out


class UNetGenerator(ImageNetwork):
    """Encoder and decoder of 4×4 convolutions with stride 2 and skip connections between equal sizes.

    Source: Isola et al. 2017 (arXiv:1611.07004), appendix 6.1.1, with instance norm and without dropout as in CycleGAN.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the two modalities.
    width
        Channels of the first layer; deeper levels have up to 8 times as many.
    levels
        How often the slice is halved; 8 is the paper's for 256 pixels, 6 fits 64.
    kind, up
        Norm, and how the size is doubled; CycleGAN's are instance norm and transposed convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        levels: int = 8,
        kind: LayerNorm = LayerNorm.INSTANCE,
        up: Upsampling = Upsampling.TRANSPOSED,
    ) -> None:
        super().__init__()
        self.divisor = 2**levels
        self.what = f"a U-Net of {levels} levels"
        channels = [width * min(2**level, WIDEST) for level in range(levels)]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level, out in enumerate(channels):
            encoder: list[nn.Module] = []
            if level > 0:
                encoder.append(nn.LeakyReLU(LEAK))
            encoder.append(nn.Conv2d(in_channels if level == 0 else channels[level - 1], out, 4, stride=2, padding=1))
            # The innermost level may be one pixel, which has no variance to normalise by.
            if 0 < level < levels - 1:
                encoder.append(norm(out, kind))
            self.down.append(nn.Sequential(*encoder))
        for level in reversed(range(levels)):
            # Every level but the innermost also receives the encoder's output of its size.
            received = channels[level] * (1 if level == levels - 1 else 2)
            emitted = out_channels if level == 0 else channels[level - 1]
            self.up.append(
                nn.Sequential(
                    nn.ReLU(),
                    *upsampling(up, received, emitted, 4),
                    nn.Tanh() if level == 0 else norm(emitted, kind),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, out_channels, H, W]``; H, W divisible by 2**levels, else InputError."""
        self.require_divisible((x.shape[-2], x.shape[-1]))
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


class EncoderDecoder(ImageNetwork):
    """Fully convolutional: 4×4 convolutions of stride 2 down, the same up, nothing beside them.

    Mirrors the discriminator of Radford et al. 2016 (arXiv:1511.06434) in front of its generator.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the two modalities.
    width
        Channels of the first layer; deeper levels have up to 8 times as many.
    levels
        How often the slice is halved; 4 brings 64 pixels to 4, as in that paper.
    kind, up
        Norm, and how the size is doubled; the paper's are batch norm and transposed convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        levels: int = 4,
        kind: LayerNorm = LayerNorm.BATCH,
        up: Upsampling = Upsampling.TRANSPOSED,
    ) -> None:
        super().__init__()
        self.divisor = 2**levels
        self.what = f"an encoder-decoder of {levels} levels"
        channels = [in_channels, *(width * min(2**level, WIDEST) for level in range(levels))]
        layers: list[nn.Module] = []
        for level, (taken, given) in enumerate(pairwise(channels)):
            layers.append(nn.Conv2d(taken, given, 4, stride=2, padding=1))
            # The first layer has no norm, so that the image's own brightness is known (Radford et al., section 3).
            layers += [norm(given, kind)] if level else []
            layers.append(nn.ReLU(inplace=True))
        for taken, given in pairwise(reversed(channels[1:])):
            layers += [*upsampling(up, taken, given, 4), norm(given, kind), nn.ReLU(inplace=True)]
        layers += [*upsampling(up, channels[1], out_channels, 4), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, out_channels, H, W]``; H, W divisible by 2**levels, else InputError."""
        self.require_divisible((x.shape[-2], x.shape[-1]))
        out: Tensor = self.layers(x)
        return out

    def require_size(self, size: tuple[int, int]) -> None:
        """Raise InputError when it cannot be trained on slices of this size: its innermost level is normalised."""
        super().require_size(size)
        require_room(size, self.divisor, self.what, "network.generator.blocks")


class UNetResNet18(ImageNetwork):
    """U-Net whose encoder is a ResNet-18 (Ronneberger et al. 2015; He et al. 2016).

    Every decoder level doubles the size, joins the encoder's output of that size, and convolves once.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the two modalities.
    width
        Channels of the encoder's stem; 64 is ResNet-18's.
    stages
        Of the encoder, 1 to 4; 4 is ResNet-18.
    kind, up
        Norm (ImageNet weights need batch norm), and how the size is doubled.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 64,
        stages: int = 4,
        kind: LayerNorm = LayerNorm.BATCH,
        up: Upsampling = Upsampling.TRANSPOSED,
    ) -> None:
        super().__init__()
        self.divisor = 2 ** (stages + 1)
        self.what = f"a U-Net with a ResNet-18 encoder of {stages} stages"
        self.encoder = ResNet18(in_channels, width, stages, kind, classes=None)
        self.up = nn.ModuleList()
        self.join = nn.ModuleList()
        for taken, given in pairwise(reversed(self.encoder.channels)):
            self.up.append(nn.Sequential(*upsampling(up, taken, given, 4), norm(given, kind), nn.ReLU(inplace=True)))
            self.join.append(
                nn.Sequential(nn.Conv2d(2 * given, given, 3, padding=1), norm(given, kind), nn.ReLU(inplace=True))
            )
        self.last = nn.Sequential(*upsampling(up, width, out_channels, 4), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, out_channels, H, W]``; H, W divisible by 2**(stages + 1)."""
        self.require_divisible((x.shape[-2], x.shape[-1]))
        *skips, x = self.encoder.features(x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), skips.pop()], dim=1))
        out: Tensor = self.last(x)
        return out

    def require_size(self, size: tuple[int, int]) -> None:
        """Raise InputError when it cannot be trained on slices of this size: its innermost level is normalised."""
        super().require_size(size)
        require_room(size, self.divisor, self.what, "network.generator.blocks")


class GreyAsRgbGenerator(nn.Module):
    """Shows a generator each grey channel as three equal ones, and averages the three that it paints for each."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` → ``[N, out_channels, H, W]``."""
        return self.inner(triple(x)).unflatten(1, (-1, 3)).mean(dim=2)  # type: ignore[no-any-return]


GeneratorClass = Callable[[int, int, int, int, LayerNorm, Upsampling], ImageNetwork]
"""Takes channels of source and target, then the recipe's ``width``, ``blocks``, ``norm`` and ``upsampling``."""


def build_generator(
    config: Generator,
    in_channels: int,
    out_channels: int,
    *,
    size: tuple[int, int] | None = None,
    rng: torch.Generator | None = None,
) -> nn.Module:
    """Return the generator that a recipe names, with random weights.

    Parameters
    ----------
    config
        Section ``network.generator``; `weights` is not looked at, see `ctmr.networks.resnet18.load_imagenet`.
    in_channels, out_channels
        Channels of the two modalities.
    size
        Slices (H, W) it will see, checked now instead of at the first forward pass.
    rng
        CPU source of the initial weights; ``None`` uses PyTorch's global one.

    Raises
    ------
    InputError
        When the network cannot be trained on slices of `size`.
    """
    colours = 3 if config.rgb else 1
    build: GeneratorClass = GENERATORS[config.kind]
    module = build(
        colours * in_channels, colours * out_channels, config.width, config.blocks, config.norm, config.upsampling
    )
    if size is not None:
        module.require_size(size)
    initialise(module, rng)
    return GreyAsRgbGenerator(module) if config.rgb else module
