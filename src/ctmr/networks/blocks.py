"""Blocks that generators and discriminators share: norms, up-sampling, residual block, initialisation, size checks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ctmr.errors import InputError
from ctmr.recipe.training import LayerNorm, Upsampling

LEAK = 0.2
"""Slope of leaky rectifiers below zero (Radford et al. 2016)."""
WIDEST = 8
"""Channels grow up to so many times the first layer's (pix2pix)."""
INITIAL_SD = 0.02
"""Standard deviation of initial weights (Radford et al. 2016, kept by pix2pix and CycleGAN)."""


def norm(channels: int, kind: LayerNorm) -> nn.Module:
    """Return a normalisation layer.

    Parameters
    ----------
    channels
        Of its input.
    kind
        Instance norm has no affine parameters and no running statistics, as in CycleGAN; batch norm has both.

    Notes
    -----
    Tensors stay in the default memory format: on CPU the backward pass of PyTorch's instance norm is wrong for batch 1
    and a channels_last gradient (PyTorch 2.13). `ctmr.training.hardware.speed` puts a norm that is right
    there in its place.
    """
    return nn.BatchNorm2d(channels) if kind is LayerNorm.BATCH else nn.InstanceNorm2d(channels)


def mixes_images(module: nn.Module) -> bool:
    """True when the images of a batch change each other's outputs in training, so that batches cannot be joined."""
    return any(isinstance(child, nn.BatchNorm2d) for child in module.modules())


def upsampling(kind: Upsampling, taken: int, given: int, kernel: int = 3) -> list[nn.Module]:
    """Return the layers that double height and width.

    Parameters
    ----------
    kind
        Transposed convolution, or nearest neighbour and a 3×3 convolution, which makes no checkerboard (Odena et al.
        2016, Deconvolution and checkerboard artifacts).
    taken, given
        Channels.
    kernel
        Of the transposed convolution, 3 or 4.
    """
    if kind is Upsampling.RESIZE:
        return [nn.Upsample(scale_factor=2, mode="nearest"), nn.ReflectionPad2d(1), nn.Conv2d(taken, given, 3)]
    return [nn.ConvTranspose2d(taken, given, kernel, stride=2, padding=1, output_padding=kernel % 2)]


def triple(x: Tensor) -> Tensor:
    """``[N, C, H, W]`` → ``[N, 3 C, H, W]``: each grey channel as three equal ones."""
    return x[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2)


class ResidualBlock(nn.Module):
    """Two reflection-padded 3×3 convolutions with norm, added to their input (Johnson et al. 2016)."""

    def __init__(self, channels: int, kind: LayerNorm = LayerNorm.INSTANCE) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm(channels, kind),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            norm(channels, kind),
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
    """Draw every convolution's and linear layer's weights from N(0, 0.02²) and set biases to 0.

    Parameters
    ----------
    module
        Changed in place.
    rng
        Source of randomness on the parameters' device; ``None`` uses PyTorch's global one.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, INITIAL_SD, generator=rng)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ImageNetwork(nn.Module):
    """A network that may not take slices of every size.

    Attributes
    ----------
    divisor
        Height and width must be divisible by it.
    what
        The network in words, for who gave it other slices.
    """

    divisor = 1
    what = "the network"

    def require_size(self, size: tuple[int, int]) -> None:
        """Raise InputError when it cannot be trained on slices of this size (H, W)."""
        self.require_divisible(size)

    def require_divisible(self, size: tuple[int, int]) -> None:
        """Raise InputError when slices of this size (H, W) cannot be halved as often as the network needs."""
        if size[0] % self.divisor or size[1] % self.divisor:
            raise InputError(
                f"{self.what} needs slices whose height and width are divisible by {self.divisor}, found "
                f"{size[0]}×{size[1]}; change preprocess.size or network.generator.blocks"
            )


def require_room(size: tuple[int, int], divisor: int, what: str, key: str) -> None:
    """Raise InputError when a slice (H, W) shrinks to one pixel, which has no variance to normalise by."""
    if max(size) <= divisor:
        raise InputError(
            f"{what} needs slices of more than {divisor} pixels, found {size[0]}×{size[1]}; "
            f"enlarge preprocess.size or lower {key}"
        )
