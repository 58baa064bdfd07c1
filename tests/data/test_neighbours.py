"""Training data with neighbours: each slice between its own volume's, held once, drawn and moved together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.data.augment import Augmentation
from ctmr.data.sampling import SliceSampler, TrainingData
from ctmr.data.shards import Shard, ShardVolume
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit
from ctmr.recipe.recipe import Normalise

EYE = tuple(tuple(float(x) for x in row) for row in np.eye(4))


def shard(modality: Modality, counts: list[int], heads: list[bool], *, channels: int = 1, picture=False) -> Shard:
    ct = modality is Modality.CT
    total = sum(counts)
    rng = np.random.default_rng(total)
    low, high = (-1024, 2000) if ct else (0, 3000)
    slices = rng.integers(low, high, (total, channels, 8, 12)).astype(np.int16 if ct else np.uint16)
    head = np.zeros((total, 8, 12), bool)
    head[np.array(heads), 2:6, 3:9] = True
    firsts = np.cumsum([0, *counts])
    volumes = tuple(
        ShardVolume(
            image=f"{modality}{i}",
            subject=f"{modality}{i}",
            uid="",
            first=int(firsts[i]),
            count=count,
            paths=("p",) * channels,
            affine=None if picture else EYE,
            level=-(count - 1) / 2,
        )
        for i, count in enumerate(counts)
    )
    return Shard(slices, head, volumes, Unit.HU if ct else Unit.ARBITRARY, modality)


def build(ct: Shard, mr: Shard, neighbours: int, *, depth: bool = False) -> TrainingData:
    return TrainingData.from_shards(ct, mr, Normalise(), min_head_fraction=0.02, depth=depth, neighbours=neighbours)


def hounsfield(slices: np.ndarray) -> np.ndarray:
    return (np.clip(slices, -1024, 2000).astype(np.float64) + 1024) / 3024 * 2 - 1


cases = st.lists(st.integers(1, 6), min_size=1, max_size=3).flatmap(
    lambda counts: st.tuples(
        st.just(counts), st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts)).filter(any)
    )
)


@settings(max_examples=60)
@given(cases, st.integers(0, 2))
def test_every_slice_that_is_trained_on_lies_between_its_own_volumes_slices(case, neighbours):
    counts, heads = case
    ct = shard(Modality.CT, counts, heads)
    data = build(ct, shard(Modality.MR, [3], [True] * 3), neighbours).ct
    wanted, levels = [], []
    for volume in ct.volumes:
        own = ct.slices[volume.first : volume.first + volume.count, 0]
        for k in range(volume.count):
            if heads[volume.first + k]:
                around = [min(max(k + o, 0), volume.count - 1) for o in range(-neighbours, neighbours + 1)]
                wanted.append(hounsfield(own[around]))
                levels.append(k + volume.level)
    stacks = data.take(torch.arange(len(wanted)))
    np.testing.assert_allclose(stacks.numpy(), wanted, atol=1e-6)
    assert data.levels.tolist() == levels and len(data.images) == len(wanted)
    assert data.channels == 2 * neighbours + 1 == stacks.shape[1]


def test_no_slice_is_held_twice_and_none_that_nobody_needs():
    heads = [False, False, False, True, True, True, False, False, False]
    data = build(shard(Modality.CT, [9], heads), shard(Modality.MR, [3], [True] * 3), 1).ct
    assert len(data.images) == 3 and len(data.around) == 5
    assert data.images.data_ptr() == data.around.data_ptr()


def test_channels_of_several_sequences_keep_their_order_and_ranges():
    mr = shard(Modality.MR, [4], [True] * 4, channels=2)
    mr.slices[:, 1] *= 3
    one, three = (build(shard(Modality.CT, [3], [True] * 3), mr, k).mr for k in (0, 1))
    assert three.channels == 6
    stack, alone = three.take(torch.tensor([1]))[0], one.images
    assert torch.equal(stack, torch.cat([alone[0], alone[1], alone[2]]))


def test_a_subset_draws_from_the_same_stacks():
    data = build(shard(Modality.CT, [6], [True] * 6), shard(Modality.MR, [6], [True] * 6), 2).ct
    some = data.subset(3, seed=1)
    kept = [data.levels.tolist().index(level) for level in some.levels.tolist()]
    assert torch.equal(some.take(torch.arange(3)), data.take(torch.tensor(kept)))


def draw(data: TrainingData, augmentation: Augmentation, slack: int | None = None):
    rng = torch.Generator().manual_seed(0)
    return SliceSampler(data, batch=64, augmentation=augmentation, level_slack=slack, rng=rng).draw()


def test_the_depth_that_discriminators_see_is_the_middle_slices():
    ct, mr = (shard(m, [5], [True] * 5) for m in (Modality.CT, Modality.MR))
    for k in range(5):
        ct.head[k, : k + 2] = True
    data = build(ct, mr, 1, depth=True)
    batch = draw(data, Augmentation())
    assert batch.ct.shape == (64, 3, 8, 12) and batch.ct_depth.shape == (64, 1, 8, 12)
    stacks = data.ct.take(torch.arange(5))
    for stack, depth in zip(batch.ct, batch.ct_depth, strict=True):
        (k,) = (k for k in range(5) if torch.equal(stacks[k], stack))
        assert torch.equal(depth, data.ct.depth[k])


def test_the_slices_of_a_stack_move_together():
    """Slices that differ by a constant still do after flips and shifts."""
    ct, mr = (shard(m, [5], [True] * 5) for m in (Modality.CT, Modality.MR))
    ct.slices[:, 0] = np.random.default_rng(0).integers(0, 500, (8, 12)) + 100 * np.arange(5)[:, None, None]
    moved = draw(build(ct, mr, 1), Augmentation(flip=True, shift=1)).ct
    for stack in moved:
        inside = stack[1] > -1
        for gap in ((stack[1] - stack[0])[inside], (stack[2] - stack[1])[inside]):
            assert torch.allclose(gap, gap[:1].expand_as(gap), atol=1e-5)
    assert len(torch.unique((moved[:, 1] == -1).flatten(1), dim=0)) > 4


def test_warm_up_pairs_stacks_of_like_level():
    heads = [True] * 7
    ct, mr = shard(Modality.CT, [7], heads), shard(Modality.MR, [7], heads)
    for s in (ct, mr):
        s.slices[:] = (np.arange(7) * 100)[:, None, None, None].astype(s.slices.dtype)
    data = build(ct, mr, 1)
    batch = draw(data, Augmentation(), slack=0)
    level = (batch.mr[:, 1, 0, 0] - batch.mr[:, 1, 0, 0].min()) / (batch.mr[:, 1, 0, 0].max() - batch.mr.min())
    other = (batch.ct[:, 1, 0, 0] - batch.ct[:, 1, 0, 0].min()) / (batch.ct[:, 1, 0, 0].max() - batch.ct.min())
    assert torch.allclose(level, other, atol=1e-4)
    assert torch.all(batch.ct[:, 0] <= batch.ct[:, 1]) and torch.all(batch.ct[:, 1] <= batch.ct[:, 2])


def test_pictures_have_no_neighbours():
    ct, mr = (shard(m, [1, 1], [True, True], picture=True) for m in (Modality.CT, Modality.MR))
    build(ct, mr, 0)
    with pytest.raises(InputError, match=r"MR images are pictures, .* and network\.neighbours is 1; set it to 0"):
        build(ct, mr, 1)
