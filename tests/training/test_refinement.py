"""Demons, and the refinement of atlases during a training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from ctmr.data.atlases import Atlases, AtlasPlacement
from ctmr.data.domain import Domain, depth_channel
from ctmr.data.sampling import TrainingData
from ctmr.data.shards import pack_head
from ctmr.imaging.volume import Direction
from ctmr.recipe.training import Discriminator, Generator, Loss, Network, Train, Warmup
from ctmr.training.demons import demons
from ctmr.training.events import NoticeEvent
from ctmr.training.refinement import refine
from ctmr.training.trainer import Trainer

SHAPE = (16, 24, 24)


def blobs(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, 2.5)
    return (smooth / np.abs(smooth).max()).astype(np.float32)


def bent(image: np.ndarray, seed: int, most: float) -> np.ndarray:
    """Return an image after a smooth displacement, by SciPy."""
    noise = np.random.default_rng(seed).normal(size=(3, *SHAPE))
    smooth = np.stack([ndimage.gaussian_filter(n, 4.0) for n in noise])
    at = np.indices(SHAPE) + smooth / np.abs(smooth).max() * most
    return ndimage.map_coordinates(image, at, order=1, mode="nearest").astype(np.float32)


def shown(image: np.ndarray, displacement: torch.Tensor) -> np.ndarray:
    return ndimage.map_coordinates(image, np.indices(SHAPE) + displacement.numpy(), order=1, mode="nearest")


@pytest.mark.parametrize("seed", range(3))
def test_demons_undo_a_smooth_displacement(seed: int) -> None:
    fixed = blobs(seed)
    moving = np.stack([bent(fixed, seed + 10, 2.5), bent(fixed, seed + 20, 2.5)])
    found = demons(torch.from_numpy(fixed)[None, None], torch.from_numpy(moving)[:, None])
    for image, displacement in zip(moving, found, strict=True):
        before, after = np.abs(image - fixed).mean(), np.abs(shown(image, displacement) - fixed).mean()
        assert after < 0.6 * before


def test_demons_leave_equal_images_where_they_are() -> None:
    image = torch.from_numpy(blobs(0))[None, None]
    assert float(demons(image, image).abs().max()) < 1e-5


def domain(images: np.ndarray, subject: str) -> Domain:
    head = np.ones(SHAPE, dtype=bool)
    head[:, :3] = head[:, -3:] = False
    return Domain(
        images=torch.from_numpy(images)[:, None],
        depth=depth_channel(head),
        levels=torch.arange(float(SHAPE[0])),
        volume=torch.zeros(SHAPE[0], dtype=torch.int64),
        subjects=(subject,),
        uids=(subject,),
        head=torch.from_numpy(pack_head(head)),
    )


@pytest.fixture
def data() -> Iterator[TrainingData]:
    """An MR volume whose CT would be itself, and a bent CT of another."""
    mr = blobs(1)
    identity = torch.eye(3, 4)[None, None]
    placement = AtlasPlacement(torch.zeros((1, 1), dtype=torch.int64), identity, torch.ones(1, 1))
    yield TrainingData(domain(mr, "a"), domain(bent(mr, 5, 2.5), "b"), placement)


def test_atlases_follow_the_translation(data: TrainingData) -> None:
    assert data.placement is not None
    atlases = Atlases(data.mr, data.ct, data.placement)
    refined = refine(atlases, nn.Identity())
    zero = torch.zeros(SHAPE[0], dtype=torch.int64)
    assert data.mr.levels is not None

    def error(of: Atlases) -> float:
        return float((of.take(zero, data.mr.levels, zero)[:, :1] - data.mr.images)[3:-3, :, 4:-4, 4:-4].abs().mean())

    assert error(refined) < 0.6 * error(atlases)


def test_a_training_that_is_resumed_refines_to_the_same_bits(data: TrainingData, tmp_path: Path) -> None:
    network = Network(
        generator=Generator(kind="subpixel", width=4, blocks=1), discriminator=Discriminator(width=4, layers=1)
    )
    loss = Loss(identity=0.0, warmup=Warmup(weight=5.0, refine=(0.25, 0.5)))
    train = Train(steps=8, threads=1, pool=2, checkpoint_every=1)

    def trainer(folder: str) -> Trainer:
        return Trainer(network, loss, train, data, samples=0, checkpoints=tmp_path / folder)

    whole = trainer("whole")
    notices = [e for e in whole.run() if isinstance(e, NoticeEvent) and "follow the translations" in e.message]
    assert [n.step for n in notices] == [2, 4]
    for stop in (2, 3, 4, 6):
        list(trainer("parts").run(until_step=stop)) if stop == 2 else None
        part = trainer("parts")
        assert part.resume()
        list(part.run(until_step=stop))
    last = trainer("parts")
    assert last.resume() and last.step == 6
    list(last.run())
    for a, b in zip(
        whole.generator(Direction.MR2CT).parameters(), last.generator(Direction.MR2CT).parameters(), strict=True
    ):
        assert torch.equal(a, b)
