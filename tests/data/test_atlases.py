"""Atlases: CT volumes of other subjects on the heads of MR volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.data.atlases import Atlases, AtlasPlacement, bring_onto
from ctmr.data.augment import Augmentation
from ctmr.data.sampling import SliceSampler, TrainingData
from ctmr.data.shards import Shard, ShardVolume
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit
from ctmr.recipe.recipe import Normalise

SHAPE, MM = (24, 40, 36), (7.0, 6.0, 6.0)
AFFINE = tuple(map(tuple, np.diag([MM[2], MM[1], MM[0], 1.0]).tolist()))


def ellipsoid(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    axes = [(np.arange(n) - c) / r for n, c, r in zip(SHAPE, centre, radii, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z**2 + y**2 + x**2


def shard(modality: Modality, heads: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]) -> Shard:
    """Heads with a bright core off their middle, so that a flip or a shift shows."""
    slices, masks, volumes = [], [], []
    for number, (subject, (centre, radii)) in enumerate(heads.items()):
        distance = ellipsoid(centre, radii)
        core = ellipsoid((centre[0], centre[1] - radii[1] / 3, centre[2]), tuple(r / 3 for r in radii))
        values = np.where(distance < 1, 100, -1000 if modality is Modality.CT else 0)
        values = np.where(core < 1, 900, values)
        slices.append(values.astype(np.int16 if modality is Modality.CT else np.uint16))
        masks.append(distance < 1)
        volumes.append(
            ShardVolume(f"{subject}", subject, "", number * SHAPE[0], SHAPE[0], ("p",), affine=AFFINE, level=-11.5)
        )
    unit = Unit.HU if modality is Modality.CT else Unit.ARBITRARY
    return Shard(np.concatenate(slices)[:, None], np.concatenate(masks), tuple(volumes), unit, modality)


HEAD = ((12.0, 20.0, 18.0), (8.0, 14.0, 11.0))
SHIFTED = ((10.0, 22.0, 16.0), (8.0, 14.0, 11.0))
SMALL = ((12.0, 20.0, 18.0), (6.5, 11.5, 9.0))
BOX = ((12.0, 20.0, 18.0), (3.0, 14.0, 5.0))


def atlases(mr: Shard, ct: Shard, count: int, **kept: bool) -> tuple[TrainingData, Atlases]:
    placement = bring_onto(mr, ct, count)
    data = TrainingData.from_shards(
        ct, mr, Normalise(), min_head_fraction=0.0, depth=kept.get("depth", False), placement=placement
    )
    return data, Atlases(data.mr, data.ct, placement)


def hu_of(taken: torch.Tensor) -> np.ndarray:
    return (taken.numpy() + 1) / 2 * 3024 - 1024


@pytest.mark.parametrize("other", [SHIFTED, SMALL, ((13.0, 18.5, 19.0), (7.0, 12.5, 12.0))])
def test_an_atlas_lies_on_the_head_and_shows_the_others_values(other: tuple[tuple[float, ...], ...]) -> None:
    mr = shard(Modality.MR, {"a": HEAD})
    data, found = atlases(mr, shard(Modality.CT, {"b": other}), 1)
    assert found.placement.overlap.item() > 0.94
    shown = hu_of(found.take(torch.zeros(24, dtype=torch.int64), data.mr.levels, torch.zeros(24, dtype=torch.int64)))[
        :, 0
    ]
    truth = shard(Modality.CT, {"a": HEAD}).slices[:, 0]
    inside = ellipsoid(*HEAD) < 0.7
    assert (
        np.abs(shown - truth)[inside].mean()
        < 0.2 * np.abs(shard(Modality.CT, {"b": other}).slices[:, 0] - truth)[inside].mean() + 25
    )


def test_the_most_alike_heads_come_first_and_no_one_meets_himself() -> None:
    mr = shard(Modality.MR, {"a": HEAD, "b": SMALL})
    ct = shard(Modality.CT, {"a": HEAD, "c": BOX, "d": SHIFTED})
    found = bring_onto(mr, ct, 2)
    assert found.chosen.tolist()[0] == [2, 1] and 0 in found.chosen.tolist()[1]
    assert bool((found.overlap.diff(dim=1) <= 0).all())


def test_fewer_heads_than_atlases_are_taken_again() -> None:
    found = bring_onto(shard(Modality.MR, {"a": HEAD}), shard(Modality.CT, {"b": SMALL, "c": SHIFTED}), 5)
    assert found.chosen.shape == (1, 5) and set(found.chosen[0].tolist()) == {0, 1}


def test_a_subject_without_any_others_ct_is_refused() -> None:
    with pytest.raises(InputError, match="needs a CT of another subject than 'a'"):
        bring_onto(shard(Modality.MR, {"a": HEAD}), shard(Modality.CT, {"a": HEAD}), 1)


def test_a_placement_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = bring_onto(shard(Modality.MR, {"a": HEAD}), shard(Modality.CT, {"b": SMALL}), 2)
    found.write(tmp_path / "atlases.json")
    again = AtlasPlacement.read(tmp_path / "atlases.json")
    for name in ("chosen", "affines", "overlap"):
        assert torch.equal(getattr(found, name), getattr(again, name))
    assert again.chosen.dtype == torch.int64


def test_depth_and_neighbours_come_from_the_same_places() -> None:
    mr, ct = shard(Modality.MR, {"a": HEAD}), shard(Modality.CT, {"b": SHIFTED})
    placement = bring_onto(mr, ct, 1)
    both = TrainingData.from_shards(ct, mr, Normalise(), min_head_fraction=0.0, depth=True, neighbours=1)
    plain = TrainingData.from_shards(ct, mr, Normalise(), min_head_fraction=0.0, depth=False)
    rows = torch.tensor([0, 5, 12, 23])
    zero = torch.zeros(4, dtype=torch.int64)

    def taken(data: TrainingData, levels: torch.Tensor) -> torch.Tensor:
        return Atlases(data.mr, data.ct, placement).take(zero, levels, zero)

    levels = plain.mr.levels
    assert levels is not None
    stacks = taken(both, levels[rows])
    assert stacks.shape == (4, 4, *SHAPE[1:])
    for channel, offset in enumerate((-1, 0, 1)):
        beside = levels[(rows + offset).clamp(0, 23)]
        assert torch.equal(stacks[:, channel], taken(plain, beside)[:, 0])
    inside = stacks[2, 3][(ellipsoid(*HEAD) < 0.5)[12]]
    assert float(inside.min()) > -0.5 and float(stacks[2, 3, 0, 0]) == -1.0


def test_fields_move_what_is_shown_by_so_many_voxels() -> None:
    data, found = atlases(shard(Modality.MR, {"a": HEAD}), shard(Modality.CT, {"b": HEAD}), 1)
    field = torch.zeros(1, 3, 4, 4, 4, dtype=torch.float16)
    field[:, 2] = 3.0
    moved = replace(found, fields=[field])
    one = torch.zeros(1, dtype=torch.int64)
    level = data.mr.levels[12:13]  # type: ignore[index]
    at, before = moved.take(one, level, one)[0, 0], found.take(one, level, one)[0, 0]
    assert torch.allclose(at[:, :-4], before[:, 3:-1], atol=0.05)


def test_slices_that_are_missing_are_refused() -> None:
    mr, ct = shard(Modality.MR, {"a": HEAD}), shard(Modality.CT, {"b": HEAD})
    placement = bring_onto(mr, ct, 1)
    hollow = ct.head.copy()
    hollow[12] = False
    data = TrainingData.from_shards(replace(ct, head=hollow), mr, Normalise(), min_head_fraction=0.01, depth=False)
    with pytest.raises(InputError, match=r"whole volumes; set preprocess\.min_head_fraction to 0"):
        Atlases(data.mr, data.ct, placement)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 4))
def test_what_is_drawn_is_the_mr_slice_and_an_atlas_in_its_plane(seed: int, batch: int) -> None:
    mr = shard(Modality.MR, {"a": HEAD, "b": SHIFTED})
    ct = shard(Modality.CT, {"c": HEAD, "d": SHIFTED})
    data, found = atlases(mr, ct, 1)
    rng = torch.Generator().manual_seed(seed)
    drawn = SliceSampler(
        data, batch=batch, augmentation=Augmentation(flip=True, shift=2), level_slack=3, atlases=found, rng=rng
    ).draw()
    # Both heads are one form: where the CT shows its core, the MR is as bright.
    core = hu_of(drawn.ct) > 600
    if core.sum() > 20:
        assert float(drawn.mr.numpy()[core].mean()) > 0.6
    again = torch.Generator().manual_seed(seed)
    repeated = SliceSampler(
        data, batch=batch, augmentation=Augmentation(flip=True, shift=2), level_slack=3, atlases=found, rng=again
    ).draw()
    assert torch.equal(drawn.mr, repeated.mr) and torch.equal(drawn.ct, repeated.ct)
