"""Blocks that generators and discriminators share: convolution with norm, residual block, initialisation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ctmr.errors import InputError

INITIAL_SD = 0.02
"""Standard deviation of initial weights (Radford et al. 2016, kept by pix2pix and CycleGAN)."""


def norm(channels: int) -> nn.Module:
    """Return the instance normalisation of CycleGAN: no affine parameters, no running statistics.

    Tensors stay in the default memory format everywhere: on CPU the backward pass of this layer is wrong for
    batch 1 and a channels_last gradient (PyTorch 2.13).
    """
    return nn.InstanceNorm2d(channels)


class ResidualBlock(nn.Module):
    """Two reflection-padded 3×3 convolutions with instance norm, added to their input (Johnson et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` → the same shape."""
        out: Tensor = x + self.body(x)
        return out


def convolutions(module: nn.Module) -> Iterable[nn.Conv2d | nn.ConvTranspose2d]:
    """Yield every convolution, transposed ones too, in order of registration."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            yield child


def initialise(module: nn.Module, rng: torch.Generator | None = None) -> None:
    """Draw every convolution's weights from N(0, 0.02²) and set biases to 0.

    Parameters
    ----------
    module
        Changed in place.
    rng
        Source of randomness on the parameters' device; ``None`` uses PyTorch's global one.
    """
    for convolution in convolutions(module):
        nn.init.normal_(convolution.weight, 0.0, INITIAL_SD, generator=rng)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)


def require_divisible(size: tuple[int, int], divisor: int, what: str) -> None:
    """Raise InputError when a slice of this size (H, W) cannot be halved as often as a network needs."""
    if size[0] % divisor or size[1] % divisor:
        raise InputError(
            f"{what} needs slices whose height and width are divisible by {divisor}, found {size[0]}×{size[1]}; "
            "change preprocess.size or network.generator.blocks"
        )
