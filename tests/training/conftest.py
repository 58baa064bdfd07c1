"""Toy training data: bright discs that are dark discs in the other modality."""

from __future__ import annotations

import pytest
import torch
from few_pixels import preprocessed, tiny
from torch import Tensor

from ctmr.data.domain import Domain
from ctmr.data.sampling import TrainingData
from ctmr.recipe.training import Discriminator, Generator, Loss, Network, Precision, Train, Warmup

__all__ = ["preprocessed", "tiny"]

# Tiny tensors on a shared machine: a second thread only waits for the first.
torch.set_num_threads(1)


def _discs(count: int, inside: float, rng: torch.Generator) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    radius = torch.rand(count, 1, 1, 1, generator=rng) * 0.4 + 0.4
    images = torch.where(y.square() + x.square() < radius.square(), inside, -1.0)
    return images + 0.05 * torch.rand(count, 1, 16, 16, generator=rng)


@pytest.fixture
def data() -> TrainingData:
    rng = torch.Generator().manual_seed(1)

    def domain(inside: float, subjects: tuple[str, ...]) -> Domain:
        return Domain(
            images=_discs(12, inside, rng),
            depth=_discs(12, 1.0, rng),
            levels=torch.arange(12).remainder(6).float() - 2.5,
            volume=torch.arange(12) // 6,
            subjects=subjects,
            uids=tuple(f"uid-{s}" for s in subjects),
        )

    return TrainingData(mr=domain(0.7, ("a", "b")), ct=domain(0.1, ("c", "d")))


@pytest.fixture
def network() -> Network:
    return Network(
        generator=Generator(width=4, blocks=1),
        discriminator=Discriminator(width=4, layers=1, position=True),
    )


@pytest.fixture
def loss() -> Loss:
    return Loss(cycle=5.0, identity=0.5, warmup=Warmup(weight=5.0, fraction=0.5))


@pytest.fixture
def train() -> Train:
    return Train(
        steps=6, threads=1, pool=2, ema=0.9, shift=1, precision=Precision.FP32, sample_every=4, checkpoint_every=3
    )
