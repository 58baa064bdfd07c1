"""Discriminators: PatchGAN, and a wrapper that also shows it where it is in the head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctmr.networks.blocks import convolutions, initialise, norm
from ctmr.recipe import Discriminator, DiscriminatorKind

POSITION_CHANNELS = 3
"""Row, |column| and depth under the skin."""

_WIDEST = 8
_LEAK = 0.2


class PatchGan(nn.Module):
    """Fully convolutional classifier of overlapping patches.

    Source: Isola et al. 2017 (arXiv:1611.07004), appendix 6.1.2, with instance norm as in CycleGAN.

    Parameters
    ----------
    in_channels
        Channels of the image, position channels included.
    width
        Channels of the first layer (ndf).
    layers
        Strided layers; receptive fields are 16, 34, 70, 142 and 286 pixels for 1 to 5.
    """

    def __init__(self, in_channels: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        body: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(_LEAK, inplace=True),
        ]
        channels = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, _WIDEST)
            stride = 2 if layer < layers else 1
            body += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1),
                norm(wider),
                nn.LeakyReLU(_LEAK, inplace=True),
            ]
            channels = wider
        body.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor, depth: Tensor | None = None) -> Tensor:
        """``[N, in_channels, H, W]`` → ``[N, 1, h, w]`` scores without a sigmoid; `depth` is not looked at."""
        out: Tensor = self.body(x)
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
            ``[N, 1, H, W]`` in [-1, 1], from `ctmr.data.sampling.depth_channel`.

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


_BUILDERS: dict[DiscriminatorKind, Callable[[int, int, int], nn.Module]] = {DiscriminatorKind.PATCHGAN: PatchGan}


def build_discriminator(config: Discriminator, in_channels: int, *, rng: torch.Generator | None = None) -> nn.Module:
    """Return the initialised discriminator that a recipe names; called as ``module(image, depth)``.

    Parameters
    ----------
    config
        Section ``network.discriminator``; `position` wraps it in `PositionAware`.
    in_channels
        Channels of the image.
    rng
        CPU source of the initial weights; ``None`` uses PyTorch's global one.
    """
    channels = in_channels + (POSITION_CHANNELS if config.position else 0)
    module = _BUILDERS[config.kind](channels, config.width, config.layers)
    if config.position:
        module = PositionAware(module)
    initialise(module, rng)
    return module


def receptive_field(module: nn.Module) -> int:
    """Return the side, in pixels, of what one output of a chain of convolutions sees.

    ``r ← (r - 1) · stride + kernel`` from the last convolution to the first (Dumoulin & Visin 2016,
    arXiv:1603.07285). Instance norm's statistics, which see the whole image, are left out as is customary.
    """
    side = 1
    for convolution in reversed(list(convolutions(module))):
        side = (side - 1) * convolution.stride[0] + convolution.kernel_size[0]
    return side
