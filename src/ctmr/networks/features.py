"""Features of networks trained on ImageNet, on named layers, for the cycle-perceptual loss; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ctmr.errors import InputError
from ctmr.metrics.extractors import EFFICIENTNET_LITE0, efficientnet_lite0
from ctmr.networks.weights import read_weights, require_fit
from ctmr.recipe.training import FeatureExtractor, Perceptual
from ctmr.system.digest import file_digest

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1], as torchvision's weights expect them normalised."""
EFFICIENTNET_LITE_MEAN, EFFICIENTNET_LITE_SD = (127 / 255,) * 3, (128 / 255,) * 3
VGG19_STAGES = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
"""Convolutions and channels between two poolings (Simonyan & Zisserman 2015, table 1, column E)."""


class Features(nn.Module):
    """Outputs of named layers of a frozen chain of layers.

    Parameters
    ----------
    chain
        Name and layer, in order.
    layers
        Names whose outputs are wanted; what comes after the last is left out.
    mean, sd
        Of red, green and blue in [0, 1], which the network expects subtracted and divided by.
    source
        Network and weights in words.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        chain: Iterable[tuple[str, nn.Module]],
        layers: Sequence[str],
        mean: Sequence[float],
        sd: Sequence[float],
        source: str,
    ) -> None:
        super().__init__()
        named = list(chain)
        names = [name for name, _ in named]
        for name in layers:
            if name not in names:
                raise InputError(
                    f"loss.perceptual.layers: {source} has no layer {name!r}; its layers are {', '.join(names)}"
                )
        last = max(names.index(name) for name in layers)
        self.names = names[: last + 1]
        self.wanted = frozenset(layers)
        self.body = nn.ModuleList(module for _, module in named[: last + 1])
        self.source = source
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("sd", torch.tensor(sd).view(1, -1, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[N, C, H, W]`` in [-1, 1], each channel a grey image → features ``[N C, F, h, w]``, first layer first."""
        y = (x.flatten(0, 1)[:, None] + 1.0) / 2.0
        y = (y - self.mean) / self.sd
        found = []
        for name, module in zip(self.names, self.body, strict=True):
            y = module(y)
            if name in self.wanted:
                found.append(y)
        return found

    def train(self, mode: bool = True) -> Features:
        """Stay in evaluation mode: these features are a yardstick and never learn."""
        return super().train(False)


def build_features(config: Perceptual) -> Features:
    """Return the extractor that a recipe names, with its trained weights.

    Raises
    ------
    InputError
        Unknown layer, or a file of weights that is missing or another network's.
    EnvironmentFault
        When the packages of EfficientNet-Lite0 are not installed.
    """
    return _BUILDERS[config.extractor](config)


def vgg19_layers() -> list[tuple[str, nn.Module]]:
    """Return VGG19 without its classifier: ``conv1_1``, ``relu1_1``, … ``pool5``."""
    chain: list[tuple[str, nn.Module]] = []
    taken = 3
    for stage, (convolutions, given) in enumerate(VGG19_STAGES, start=1):
        for k in range(1, convolutions + 1):
            chain.append((f"conv{stage}_{k}", nn.Conv2d(taken, given, 3, padding=1)))
            # Not in place: a wanted layer's output must survive the next.
            chain.append((f"relu{stage}_{k}", nn.ReLU()))
            taken = given
        chain.append((f"pool{stage}", nn.MaxPool2d(2)))
    return chain


def _vgg19(config: Perceptual) -> Features:
    if config.weights is None:
        raise InputError(
            "loss.perceptual.extractor vgg19 needs its ImageNet weights; give a file in loss.perceptual.weights, "
            "or use efficientnet_lite0, which brings its own"
        )
    chain = vgg19_layers()
    given = read_weights(config.weights)
    # torchvision numbers all layers of the chain.
    wanted = {f"features.{i}.{k}": v for i, (_, m) in enumerate(chain) for k, v in m.state_dict().items()}
    require_fit("VGG19", config.weights, wanted, given)
    for i, (_, module) in enumerate(chain):
        module.load_state_dict({k: given[f"features.{i}.{k}"] for k in module.state_dict()})
    source = f"VGG19 with the weights {config.weights} (sha256 {file_digest(Path(config.weights))[:16]})"
    return Features(chain, config.layers, IMAGENET_MEAN, IMAGENET_SD, source)


def _efficientnet_lite0(config: Perceptual) -> Features:
    if config.weights is not None:
        raise InputError(
            "loss.perceptual.weights is for vgg19, and efficientnet_lite0 brings its own; set weights to null"
        )
    network, digest = efficientnet_lite0("loss.perceptual")
    stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
    chain = [("stem", stem), *((f"block_{i}", block) for i, block in enumerate(network._blocks))]
    source = f"{EFFICIENTNET_LITE0} with its ImageNet weights (sha256 {digest[:16]})"
    return Features(chain, config.layers, EFFICIENTNET_LITE_MEAN, EFFICIENTNET_LITE_SD, source)


_BUILDERS = {FeatureExtractor.VGG19: _vgg19, FeatureExtractor.EFFICIENTNET_LITE0: _efficientnet_lite0}
