"""Examples: the same slices of equal shards, pairs where there are any, each with a head to look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctmr.data.examples import choose_examples
from ctmr.data.shards import Shard, ShardVolume
from ctmr.imaging.volume import Modality, Unit
from ctmr.recipe.recipe import Normalise

EYE = tuple(tuple(float(x) for x in row) for row in np.eye(4))
COUNT = 8


def shard(modality: Modality, subjects: list[str], *, picture: bool = False, scale: int = 1) -> Shard:
    """Slices whose value tells volume and level; half of each volume shows a head."""
    ct = modality is Modality.CT
    count = 1 if picture else COUNT
    total = count * len(subjects)
    slices = np.zeros((total, 1, 8, 12), np.int16 if ct else np.uint16)
    slices[:, 0] = (np.arange(total) * 10 * scale)[:, None, None]
    # Something bright in every volume, so that each has the same range.
    slices[::count, 0, 0] = 2000 * scale
    head = np.zeros((total, 8, 12), bool)
    head[np.arange(total) % count >= count // 2, 2:6, 3:9] = True
    volumes = tuple(
        ShardVolume(
            image=f"{modality}{k}",
            subject=s,
            uid="",
            first=k * count,
            count=count,
            paths=("p",),
            affine=None if picture else EYE,
        )
        for k, s in enumerate(subjects)
    )
    return Shard(slices, head, volumes, Unit.HU if ct else Unit.ARBITRARY, modality)


def choose(ct: Shard, mr: Shard, neighbours: int = 0, count: int = 4):
    return choose_examples(ct, mr, Normalise(), neighbours=neighbours, count=count)


def test_pairs_are_shown_as_pairs_at_rising_levels_with_a_head():
    found = choose(shard(Modality.CT, ["b", "a"]), shard(Modality.MR, ["x", "a", "b"]))
    assert found.paired and found.mr_names == found.ct_names
    assert [n.split("\n") for n in found.mr_names] == [
        ["a", "slice 5 of 8"],
        ["a", "slice 6 of 8"],
        ["b", "slice 7 of 8"],
        ["b", "slice 8 of 8"],
    ]
    # Row 0 of the CT is slice 4 of the second volume.
    assert float(found.batch.ct[0, 0, 4, 4]) == pytest.approx(((8 + 4) * 10 + 1024) / 3024 * 2 - 1, abs=1e-6)


def test_without_pairs_each_modality_goes_through_its_own_images():
    found = choose(shard(Modality.CT, ["c", "d"]), shard(Modality.MR, ["a", "b", "e", "f", "g"]))
    assert not found.paired
    assert [n.split("\n")[0] for n in found.mr_names] == ["a", "b", "f", "g"]
    assert [n.split("\n")[0] for n in found.ct_names] == ["c", "c", "d", "d"]


def test_equal_shards_give_equal_examples_and_neighbours_lie_beside_them():
    ct, mr = shard(Modality.CT, ["a", "b"]), shard(Modality.MR, ["a", "b"])
    alone, stacks = choose(ct, mr), choose(ct, mr, 1)
    assert torch.equal(alone.batch.ct, choose(ct, mr).batch.ct)
    assert stacks.batch.ct.shape == (4, 3, 8, 12)
    assert torch.equal(stacks.batch.ct[:, 1:2], alone.batch.ct) and torch.equal(stacks.batch.mr[:, 1:2], alone.batch.mr)
    # Slice 8 of 8 has itself above.
    assert torch.equal(stacks.batch.ct[3, 2], stacks.batch.ct[3, 1])
    assert not torch.equal(stacks.batch.ct[0, 2], stacks.batch.ct[0, 1])


def test_a_volumes_range_is_its_own():
    ct = shard(Modality.CT, ["a"])
    one, four = (choose(ct, shard(Modality.MR, ["a"], scale=scale), count=2).batch.mr for scale in (1, 4))
    assert torch.allclose(one, four)


def test_pictures_are_named_by_their_subject():
    found = choose(*(shard(m, ["a", "b", "c", "d"], picture=True) for m in (Modality.CT, Modality.MR)))
    assert found.paired and found.mr_names == ("a", "b", "c", "d")
