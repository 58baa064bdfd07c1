"""Discriminators: PatchGAN, two that judge an image as a whole, and wrappers that show them more than the image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctmr.errors import InputError
from ctmr.networks.blocks import LEAK, WIDEST, ImageNetwork, initialise, norm, require_room, triple
from ctmr.networks.resnet18 import ResNet18
from ctmr.recipe.training import DISCRIMINATORS, Discriminator, LayerNorm

POSITION_CHANNELS = 3
"""Row, |column| and depth under the skin."""

_LAYERS = "network.discriminator.layers"
_LAST_KERNEL = 4


class PatchGan(ImageNetwork):
    """Fully convolutional classifier of overlapping patches.

    Source: Isola et al. 2017 (arXiv:1611.07004), appendix 6.1.2, who have batch norm; CycleGAN has instance norm.

    Parameters
    ----------
    in_channels
        Channels of the image, position channels included.
    width
        Channels of the first layer (ndf).
    layers
        Strided layers; receptive fields are 16, 34, 70, 142 and 286 pixels for 1 to 5.
    kind
        Norm.
    """

    def __init__(
        self, in_channels: int, width: int = 64, layers: int = 3, kind: LayerNorm = LayerNorm.INSTANCE
    ) -> None:
        super().__init__()
        body: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(LEAK, inplace=True),
        ]
        channels = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, WIDEST)
            stride = 2 if layer < layers else 1
            body += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1),
                norm(wider, kind),
                nn.LeakyReLU(LEAK, inplace=True),
            ]
            channels = wider
        body.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, 1, h, w]`` scores without a sigmoid; `depth` is not looked at."""
        out: Tensor = self.body(x)
        return out


class Convolutional(ImageNetwork):
    """Fully convolutional classifier of whole images (Radford et al. 2016, arXiv:1511.06434, section 3).

    Parameters
    ----------
    in_channels
        Channels of the image, position channels included.
    width
        Channels of the first layer; each further layer has twice as many.
    layers
        4×4 convolutions of stride 2; 4 bring 64 pixels to 4, which the last, 4×4, turns into one number.
    kind
        Norm; the paper's is batch norm.
    """

    def __init__(self, in_channels: int, width: int = 64, layers: int = 4, kind: LayerNorm = LayerNorm.BATCH) -> None:
        super().__init__()
        self.layers = layers
        body: list[nn.Module] = []
        taken = in_channels
        for layer in range(layers):
            given = width * min(2**layer, WIDEST)
            body.append(nn.Conv2d(taken, given, 4, stride=2, padding=1))
            body += [norm(given, kind)] if layer else []
            body.append(nn.LeakyReLU(LEAK, inplace=True))
            taken = given
        body.append(nn.Conv2d(taken, 1, _LAST_KERNEL))
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, 1, 1, 1]`` scores without a sigmoid; larger images get the mean score."""
        out: Tensor = self.body(x).mean(dim=(2, 3), keepdim=True)
        return out

    def require_size(self, size: tuple[int, int]) -> None:
        """Raise InputError when nothing is left of slices of this size for the last convolution."""
        least = _LAST_KERNEL * 2**self.layers
        if min(size) < least:
            raise InputError(
                f"a convolutional discriminator of {self.layers} layers needs slices of at least {least} pixels, "
                f"found {size[0]}×{size[1]}; enlarge preprocess.size or lower {_LAYERS}"
            )


class ResNet18Classifier(ImageNetwork):
    """ResNet-18 with one output.

    Parameters
    ----------
    in_channels
        Channels of the image, position channels included.
    width, stages
        Of `ctmr.networks.resnet18.ResNet18`; 64 and 4 are the paper's.
    kind
        Norm; the paper's is batch norm.
    """

    def __init__(self, in_channels: int, width: int = 64, stages: int = 4, kind: LayerNorm = LayerNorm.BATCH) -> None:
        super().__init__()
        self.resnet = ResNet18(in_channels, width, stages, kind, classes=1)

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, 1, 1, 1]`` scores without a sigmoid; `depth` is not looked at."""
        out: Tensor = self.resnet(x)[:, :, None, None]
        return out

    def require_size(self, size: tuple[int, int]) -> None:
        """Raise InputError when the last stage, which is normalised, has one pixel of slices of this size."""
        require_room(size, 2 ** (self.resnet.stages + 1), "a ResNet-18 discriminator", _LAYERS)


class GreyAsRgbDiscriminator(nn.Module):
    """Shows a discriminator each grey channel as three equal ones."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        """Score ``[N, C, H, W]`` as the inner discriminator does."""
        out: Tensor = self.inner(triple(x), depth)
        return out


class PositionAware(nn.Module):
    """Shows a discriminator row, |column| and depth under the skin beside the image.

    Without them an unpaired discriminator cannot tell bright scalp fat from bright bone in the wrong place. The
    generator and the exported graph never see these channels.

    Parameters
    ----------
    inner
        Discriminator of ``in_channels + 3`` channels.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        """Score patches.

        Parameters
        ----------
        x
            ``[N, C, H, W]`` in [-1, 1].
        depth
            ``[N, 1, H, W]`` in [-1, 1], from `ctmr.data.domain.depth_channel`.

        Returns
        -------
        Tensor
            ``[N, 1, h, w]``.
        """
        if depth is None:
            raise ValueError("a position-aware discriminator needs the depth map of the image")
        n, _, height, width = x.shape
        row = torch.linspace(-1.0, 1.0, height, dtype=x.dtype, device=x.device).view(1, 1, height, 1)
        column = torch.linspace(-1.0, 1.0, width, dtype=x.dtype, device=x.device).abs().view(1, 1, 1, width)
        shape = (n, 1, height, width)
        out: Tensor = self.inner(torch.cat([x, row.expand(shape), column.expand(shape), depth.to(x.dtype)], dim=1))
        return out


DiscriminatorClass = Callable[[int, int, int, LayerNorm], ImageNetwork]
"""Takes the channels of the image, position channels included, then the recipe's ``width``, ``layers`` and ``norm``."""


def build_discriminator(
    config: Discriminator,
    in_channels: int,
    *,
    size: tuple[int, int] | None = None,
    rng: torch.Generator | None = None,
) -> nn.Module:
    """Return the discriminator that a recipe names, with random weights; called as ``module(image, depth)``.

    Parameters
    ----------
    config
        Section ``network.discriminator``; `weights` is not looked at, see `ctmr.networks.resnet18.load_imagenet`.
    in_channels
        Channels of the image.
    size
        Slices (H, W) it will see, checked now instead of at the first forward pass.
    rng
        CPU source of the initial weights; ``None`` uses PyTorch's global one.

    Raises
    ------
    InputError
        When slices of `size` are too small for the network.
    """
    channels = in_channels * (3 if config.rgb else 1) + (POSITION_CHANNELS if config.position else 0)
    build: DiscriminatorClass = DISCRIMINATORS[config.kind]
    inner = build(channels, config.width, config.layers, config.norm)
    if size is not None:
        inner.require_size(size)
    module: nn.Module = inner
    if config.position:
        module = PositionAware(module)
    if config.rgb:
        module = GreyAsRgbDiscriminator(module)
    initialise(module, rng)
    return module
