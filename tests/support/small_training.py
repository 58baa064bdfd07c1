"""A small training of discs, shared by the tests of how steps are computed."""

from __future__ import annotations

import torch
from torch import nn

from ctmr.data.domain import Domain
from ctmr.data.sampling import Batch, TrainingData
from ctmr.recipe.training import Discriminator, Generator, LayerNorm, Loss, Network, Speed, Train
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.trainer import Trainer


def networks(kind: str = "resnet") -> CycleGan:
    rng = torch.Generator().manual_seed(2)
    net = CycleGan(
        Network(
            generator=Generator(kind=kind, width=4, blocks=2, norm=LayerNorm.INSTANCE),
            discriminator=Discriminator(width=4, layers=2),
        ),
        mr_channels=1,
        ct_channels=1,
        rng=rng,
    )
    # Larger weights than at the start, and biases, so that no gradient is lost in rounding.
    for p in net.parameters():
        nn.init.normal_(p, 0.0, 0.15, generator=rng)
    return net


def batch(size: int) -> Batch:
    rng = torch.Generator().manual_seed(3)
    return Batch(*(torch.rand(size, 1, 20, 24, generator=rng) * 2 - 1 for _ in range(2)))


def heads(seed: int = 0) -> TrainingData:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(12, 1, 16, 16, generator=rng) * 0.2
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    disc = (y.square() + x.square() < 0.5).float()

    def domain(inside: float, subjects: tuple[str, ...]) -> Domain:
        return Domain(images + disc * inside - 0.9, None, None, torch.arange(12) // 6, subjects, subjects)

    return TrainingData(mr=domain(1.4, ("a", "b")), ct=domain(0.6, ("c", "d")))


TINY = Network(generator=Generator(width=4, blocks=1), discriminator=Discriminator(width=4, layers=1))


def trained(steps: int = 50, *, seed: int = 0, speed: Speed | None = None, **train: object) -> Trainer:
    settings = {"steps": steps, "threads": 1, "pool": 4, "seed": seed, "speed": speed or Speed(), **train}
    return Trainer(TINY, Loss(), Train.model_validate(settings), heads(), report_every=10, samples=0)


FAST = Speed(layout="channels_last", layers="fast")
PLAIN = Speed(layout="contiguous", layers="pytorch", joined=False, fused_adam=False, compile=False)
