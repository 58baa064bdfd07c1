"""The four networks of a CycleGAN, built and started as a recipe says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctmr.imaging.volume import Direction, Modality
from ctmr.networks.blocks import mixes_images
from ctmr.networks.discriminators import build_discriminator
from ctmr.networks.generators import build_generator
from ctmr.networks.resnet18 import ResNet18, load_imagenet
from ctmr.recipe.training import Network


class CycleGan(nn.Module):
    """The four networks: `generators` by direction, `discriminators` by the modality that they tell from fakes.

    Attributes
    ----------
    notices
        What a person should know about the weights that training starts from, one sentence each.
    joined
        Whether images that do not change each other's output share a pass.
    compiled
        What is called in the place of a network.

    Parameters
    ----------
    network
        Section of the recipe.
    mr_channels, ct_channels
        Channels of the two modalities.
    size
        Slices (H, W), checked against the architecture when given.
    rng
        CPU source of the initial weights.
    """

    def __init__(
        self,
        network: Network,
        *,
        mr_channels: int,
        ct_channels: int,
        size: tuple[int, int] | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        channels = {Modality.MR: mr_channels, Modality.CT: ct_channels}
        self.channels = channels
        self.joined = True
        self.compiled: dict[nn.Module, Callable[..., Tensor]] = {}
        self.generators = nn.ModuleDict(
            {
                d.value: build_generator(network.generator, channels[d.source], channels[d.target], size=size, rng=rng)
                for d in Direction
            }
        )
        self.discriminators = nn.ModuleDict(
            {m.value: build_discriminator(network.discriminator, channels[m], size=size, rng=rng) for m in Modality}
        )
        self.notices = [
            *_imagenet(network.generator.weights, "network.generator", self.generators),
            *_imagenet(network.discriminator.weights, "network.discriminator", self.discriminators),
        ]

    def translate(self, direction: Direction, image: Tensor) -> Tensor:
        """``[N, C, H, W]`` of the source → the target modality, both in [-1, 1]."""
        return self._call(self.generators[direction.value])(image)

    def translate_each(self, direction: Direction, *images: Tensor) -> tuple[Tensor, ...]:
        """Translate several batches, as one where the generator keeps images independent of each other."""
        generator = self.generators[direction.value]
        call = self._call(generator)
        if len(images) == 1 or not self.joined or mixes_images(generator):
            return tuple(call(image) for image in images)
        return torch.split(call(torch.cat(images)), [len(image) for image in images])

    def discriminate(self, modality: Modality, image: Tensor, depth: Tensor | None) -> Tensor:
        """Score images ``[N, C, H, W]`` that should look like `modality`."""
        return self._call(self.discriminators[modality.value])(image, depth)

    def discriminate_both(
        self, modality: Modality, real: Tensor, fake: Tensor, real_depth: Tensor | None, fake_depth: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Score real and fake images, in one pass where the discriminator keeps images independent of each other."""
        if not self.joined or mixes_images(self.discriminators[modality.value]):
            return self.discriminate(modality, real, real_depth), self.discriminate(modality, fake, fake_depth)
        scores = self.discriminate(modality, torch.cat([real, fake]), _cat(real_depth, fake_depth))
        return scores[: len(real)], scores[len(real) :]

    def _call(self, network: nn.Module) -> Callable[..., Tensor]:
        return self.compiled.get(network, network)


def _imagenet(weights: str | None, key: str, networks: nn.ModuleDict) -> list[str]:
    """Give the networks that hold a ResNet-18 their ImageNet weights, and say which; also when there are none."""
    if not any(isinstance(module, ResNet18) for module in networks.modules()):
        return []
    if weights is None:
        return [f"{key}.weights is null: the ResNet-18 of {key} starts from RANDOM weights, not from ImageNet's"]
    digest = {load_imagenet(network, weights) for network in networks.values()}.pop()
    return [f"the ResNet-18 of {key} starts from the weights {weights} (sha256 {digest[:16]})"]


def _cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])
