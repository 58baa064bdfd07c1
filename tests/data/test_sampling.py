"""Sampling: volumes normalised once, usable slices only, other subjects at the same level."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctmr.data.augment import Augmentation
from ctmr.data.domain import Domain, depth_channel, target_ranges
from ctmr.data.sampling import SliceSampler, TrainingData
from ctmr.data.shards import Shard, ShardVolume
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality, Unit
from ctmr.recipe.recipe import Normalise, Window

MOVES = Augmentation(flip=True, shift=2)
EYE = tuple(tuple(float(x) for x in row) for row in np.eye(4))


def shard(
    modality: Modality, subjects: list[str], *, count: int = 6, channels: int = 1, picture: bool = False, scale: int = 1
) -> Shard:
    rng = np.random.default_rng(7)
    total = count * len(subjects)
    ct = modality is Modality.CT
    low, high = (-1024, 2500) if ct else (0, 3000)
    slices = rng.integers(low, high, (total, channels, 8, 12)).astype(np.int16 if ct else np.uint16)
    slices[count:] *= scale
    head = np.zeros((total, 8, 12), dtype=bool)
    head[:, 2:6, 3:9] = True
    head[::count] = False
    volumes = tuple(
        ShardVolume(
            image=f"{modality}-{s}",
            subject=s,
            uid="",
            first=i * count,
            count=count,
            paths=("p",) * channels,
            affine=None if picture else EYE,
            level=-(count - 1) / 2,
        )
        for i, s in enumerate(subjects)
    )
    return Shard(slices, head, volumes, Unit.HU if ct else Unit.ARBITRARY, modality)


def build(ct: Shard, mr: Shard, *, depth: bool = False) -> TrainingData:
    return TrainingData.from_shards(ct, mr, Normalise(), min_head_fraction=0.02, depth=depth)


def sampler(data: TrainingData, slack: int | None, batch: int = 1, seed: int = 0) -> SliceSampler:
    rng = torch.Generator().manual_seed(seed)
    return SliceSampler(data, batch=batch, augmentation=Augmentation(), level_slack=slack, rng=rng)


def test_slices_are_normalised_with_the_range_of_their_own_volume() -> None:
    mr = shard(Modality.MR, ["a", "b"], scale=4)
    data = build(shard(Modality.CT, ["c"]), mr)
    for i in range(2):
        volume = mr.volume(i)[0].astype(np.float64)
        high = np.percentile(volume[volume > volume.mean()], 99) * 1.2
        expected = np.clip(volume / high, 0, 1) * 2 - 1
        np.testing.assert_allclose(data.mr.images[5 * i : 5 * i + 5, 0], expected[1:], atol=1e-5)


def test_hounsfield_units_are_normalised_by_the_window() -> None:
    ct = shard(Modality.CT, ["c"])
    data = build(ct, shard(Modality.MR, ["a"]))
    expected = (np.clip(ct.slices[1:], -1024, 2000).astype(np.float64) + 1024) / 3024 * 2 - 1
    np.testing.assert_allclose(data.ct.images, expected, atol=1e-6)


def test_slices_with_too_little_head_are_left_out_and_levels_stay_right() -> None:
    data = build(shard(Modality.CT, ["c", "d"]), shard(Modality.MR, ["a"]))
    assert data.ct.images.shape == (10, 1, 8, 12)
    assert data.ct.levels is not None
    assert data.ct.levels.tolist() == [-1.5, -0.5, 0.5, 1.5, 2.5] * 2
    assert data.ct.volume.tolist() == [0] * 5 + [1] * 5
    assert data.size == (8, 12)


def test_no_usable_slice_is_an_input_error() -> None:
    ct = shard(Modality.CT, ["c"])
    ct.head[:] = False
    with pytest.raises(InputError, match="no CT slice has at least"):
        build(ct, shard(Modality.MR, ["a"]))


def test_different_sizes_are_an_input_error() -> None:
    mr = shard(Modality.MR, ["a"])
    small = Shard(mr.slices[..., :8], mr.head[..., :8], mr.volumes, mr.unit, mr.modality)
    with pytest.raises(InputError, match="one grid"):
        build(shard(Modality.CT, ["c"]), small)


def indexed(levels: list[float], volume: list[int], subjects: tuple[str, ...]) -> Domain:
    """Images whose value is their own index, so that a batch tells what was drawn."""
    n = len(levels)
    images = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 1, 4, 4).clone()
    return Domain(images, None, torch.tensor(levels), torch.tensor(volume), subjects, subjects)


def draw(s: SliceSampler, times: int) -> list[tuple[int, int]]:
    pairs = []
    for _ in range(times):
        b = s.draw()
        pairs += list(zip(b.mr[:, 0, 0, 0].int().tolist(), b.ct[:, 0, 0, 0].int().tolist(), strict=True))
    return pairs


def test_level_matching_draws_another_subject_within_the_slack_evenly() -> None:
    levels, volume = [float(v) for v in range(10)] * 3, [0] * 10 + [1] * 10 + [2] * 10
    data = TrainingData(mr=indexed(levels, volume, ("a", "b", "c")), ct=indexed(levels, volume, ("b", "c", "d")))
    seen: dict[int, set[int]] = {}
    for mr, ct in draw(sampler(data, 2, batch=3), 1500):
        assert abs(levels[mr] - levels[ct]) <= 2
        assert ("a", "b", "c")[volume[mr]] != ("b", "c", "d")[volume[ct]]
        seen.setdefault(mr, set()).add(ct)
    assert set(seen) == set(range(30))
    # Slice 5 of subject b: levels 3..7 of c and of d, never of b.
    assert seen[15] == {13, 14, 15, 16, 17, 23, 24, 25, 26, 27}


def test_where_no_level_is_close_the_nearest_of_another_subject_is_drawn() -> None:
    data = TrainingData(mr=indexed([50.0], [0], ("a",)), ct=indexed([49.0, 3.0, 7.0], [0, 1, 1], ("a", "b")))
    assert {ct for _, ct in draw(sampler(data, 3), 30)} == {2}


def test_free_sampling_draws_every_pair() -> None:
    data = TrainingData(mr=indexed([0.0] * 3, [0] * 3, ("a",)), ct=indexed([0.0] * 4, [0] * 4, ("a",)))
    assert len(set(draw(sampler(data, None, batch=2), 200))) == 12


def test_volumes_without_a_subject_match_each_other() -> None:
    data = TrainingData(mr=indexed([0.0], [0], ("",)), ct=indexed([0.0], [0], ("",)))
    assert draw(sampler(data, 0), 1) == [(0, 0)]


def test_only_one_subject_is_refused_for_level_matching() -> None:
    data = TrainingData(mr=indexed([0.0, 0.0], [0, 1], ("b", "a")), ct=indexed([0.0, 1.0], [0, 0], ("a",)))
    with pytest.raises(InputError, match="another subject than 'a'"):
        sampler(data, 3)


def test_pictures_have_no_levels() -> None:
    ct, mr = (shard(m, ["a", "b"], picture=True) for m in (Modality.CT, Modality.MR))
    data = build(ct, mr)
    assert not data.has_levels
    sampler(data, None).draw()


def test_equal_generators_draw_equal_batches() -> None:
    data = build(shard(Modality.CT, ["c", "d"]), shard(Modality.MR, ["a", "b"]))
    one, two = (
        SliceSampler(data, batch=2, augmentation=MOVES, level_slack=1, rng=torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    for _, a, b in zip(range(5), one, two, strict=False):
        assert torch.equal(a.mr, b.mr) and torch.equal(a.ct, b.ct)


def test_a_depth_map_moves_with_its_image() -> None:
    images = torch.rand(3, 1, 6, 6)
    domain = Domain(images, images * 0.5 - 0.5, None, torch.zeros(3, dtype=torch.int64), ("a",), ("a",))
    rng = torch.Generator()
    draws = SliceSampler(TrainingData(domain, domain), batch=4, augmentation=MOVES, level_slack=None, rng=rng)
    for _, b in zip(range(20), draws, strict=False):
        assert b.mr_depth is not None
        assert torch.equal(b.mr_depth, torch.where(b.mr == -1, -1.0, b.mr * 0.5 - 0.5))


def test_depth_is_minus_one_on_the_skin_and_one_from_12_pixels_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("ctmr.imaging.mask")
    depths = np.array([[[0.0, 3.0, 6.0, 9.0, 12.0, 40.0]]])
    fake.head_depth = lambda mask: depths.astype(np.float32)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ctmr.imaging.mask", fake)
    out = depth_channel(np.ones((1, 1, 6), dtype=bool))
    assert out.shape == (1, 1, 1, 6) and out.dtype == torch.float32
    assert out.flatten().tolist() == [-1, -0.5, 0, 0.5, 1, 1]


def test_the_target_range_is_the_median_over_volumes() -> None:
    mr = shard(Modality.MR, ["a", "b", "c"])
    mr.slices[6:12] *= 3
    mr.slices[12:] *= 2
    highs = []
    for i in range(3):
        volume = mr.volume(i)[0].astype(np.float64)
        highs.append(np.percentile(volume[volume > volume.mean()], 99) * 1.2)
    low, high = target_ranges(mr, Normalise())
    assert low == 0.0
    assert high == pytest.approx(sorted(highs)[1], rel=1e-6)
    assert target_ranges(shard(Modality.CT, ["a"]), Normalise(hu=Window(low=-500.0, high=900.0))) == (-500.0, 900.0)


def test_channels_of_different_ranges_have_no_single_target_range() -> None:
    mr = shard(Modality.MR, ["a"], channels=2)
    mr.slices[:, 1] //= 2
    with pytest.raises(InputError, match="2 channels of different ranges"):
        target_ranges(mr, Normalise())
    data = build(shard(Modality.CT, ["c"]), mr)
    assert data.mr.images.shape[1] == 2


def test_matching_prefers_the_slices_whose_head_outline_is_most_alike() -> None:
    def domain(outlines: list[list[float]], subjects: tuple[str, ...]) -> Domain:
        n = len(outlines)
        images = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 1, 4, 4).clone()
        unit = torch.nn.functional.normalize(torch.tensor(outlines), dim=1)
        return Domain(images, None, torch.zeros(n), torch.arange(n), subjects, subjects, unit)

    mr = domain([[1.0, 0.0, 0.0]], ("m",))
    ct = domain([[0.0, 1.0, 0.0], [0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.0, 1.0]], ("a", "b", "c", "d"))
    draws = SliceSampler(
        TrainingData(mr, ct),
        batch=1,
        augmentation=Augmentation(),
        level_slack=2,
        matches=2,
        rng=torch.Generator().manual_seed(0),
    )
    assert {int(draws.draw().ct[0, 0, 0, 0]) for _ in range(60)} == {1, 2}


def test_matched_slices_are_flipped_and_shifted_alike() -> None:
    mr, ct = shard(Modality.MR, ["a"]), shard(Modality.CT, ["b"])
    data = build(ct, mr)
    same = TrainingData(data.mr, Domain(**(vars(data.ct) | {"images": data.mr.images})))
    rng = torch.Generator().manual_seed(3)
    alike = SliceSampler(same, batch=1, augmentation=Augmentation(flip=True, shift=2), level_slack=0, rng=rng)
    for _ in range(20):
        batch = alike.draw()
        assert torch.equal(batch.mr, batch.ct)
    free = SliceSampler(same, batch=1, augmentation=Augmentation(flip=True, shift=2), level_slack=None, rng=rng)
    assert not all(torch.equal(b.mr, b.ct) for b in (free.draw() for _ in range(20)))


def test_intensity_changes_mr_and_grey_pictures_and_never_hounsfield_units() -> None:
    data = build(shard(Modality.CT, ["c"]), shard(Modality.MR, ["a"]), depth=True)
    assert data.ct.absolute and not data.mr.absolute
    rng = torch.Generator().manual_seed(0)
    draws = SliceSampler(data, batch=8, augmentation=Augmentation(intensity=0.3), level_slack=None, rng=rng)
    batch = draws.draw()
    for image in batch.ct:
        assert bool((data.ct.images == image).flatten(1).all(1).any())
    assert not any(bool((data.mr.images == image).flatten(1).all(1).any()) for image in batch.mr)
    assert batch.mr_depth is not None and all(
        bool((data.mr.depth == depth).flatten(1).all(1).any()) for depth in batch.mr_depth
    )


def test_a_subset_holds_so_many_slices_of_each_modality_with_all_that_belongs_to_them() -> None:
    data = build(shard(Modality.CT, ["c", "d"]), shard(Modality.MR, ["a", "b"]), depth=True)
    some = data.subset(4, seed=3)
    assert len(some.mr.images) == len(some.ct.images) == 4
    for domain, whole in ((some.mr, data.mr), (some.ct, data.ct)):
        index = [int((whole.images == image).flatten(1).all(1).nonzero()[0]) for image in domain.images]
        assert index == sorted(set(index))
        assert torch.equal(domain.depth, whole.depth[index])
        assert torch.equal(domain.levels, whole.levels[index])
        assert torch.equal(domain.volume, whole.volume[index])
        assert torch.equal(domain.outlines, whole.outlines[index])
    assert torch.equal(data.subset(4, seed=3).mr.images, some.mr.images)
    assert not torch.equal(data.subset(4, seed=4).mr.images, some.mr.images)
    assert len(data.subset(1000, seed=0).mr.images) == len(data.mr.images)


def test_pairs_are_of_one_subject_at_one_level_and_are_moved_alike() -> None:
    levels, volume = [0.0, 1.0, 2.0] * 2, [0, 0, 0, 1, 1, 1]
    mr, ct = indexed(levels, volume, ("a", "b")), indexed([2.0, 1.0, 9.0, 0.0, 1.0, 2.0], volume, ("b", "c"))
    rng = torch.Generator().manual_seed(0)
    draws = SliceSampler(
        TrainingData(mr, ct), batch=2, augmentation=Augmentation(), level_slack=None, paired=True, rng=rng
    )
    assert set(draw(draws, 60)) == {(5, 0), (4, 1)}
    pattern = torch.rand(6, 1, 8, 8)
    same = Domain(**(vars(mr) | {"images": pattern}))
    moved = SliceSampler(TrainingData(same, same), batch=3, augmentation=MOVES, level_slack=None, paired=True, rng=rng)
    for _, batch in zip(range(5), moved, strict=False):
        assert torch.equal(batch.mr, batch.ct)


def test_pairs_that_do_not_exist_are_refused() -> None:
    data = TrainingData(mr=indexed([0.0], [0], ("",)), ct=indexed([0.0], [0], ("",)))
    with pytest.raises(InputError, match=r"training has none; set data\.disjoint_training to false"):
        SliceSampler(data, batch=1, augmentation=Augmentation(), level_slack=None, paired=True, rng=torch.Generator())


def test_slices_that_lie_a_voxel_apart_are_no_pair() -> None:
    """A second sequence of a subject lies about the head as it shows it, and the CT about the first one's."""
    here, beside = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    beside[1, 3] = 2.0
    mr = replace(indexed([0.0, 0.0], [0, 1], ("a", "a")), affines=torch.stack([here, beside]))
    ct = replace(indexed([0.0], [0], ("a",)), affines=here[None])
    rng = torch.Generator().manual_seed(0)
    sampler = SliceSampler(
        TrainingData(mr, ct), batch=1, augmentation=Augmentation(), level_slack=None, paired=True, rng=rng
    )
    assert set(draw(sampler, 20)) == {(0, 0)}


def test_pictures_are_paired_by_subject() -> None:
    ct, mr = (shard(m, ["a", "b"], count=2, picture=True) for m in (Modality.CT, Modality.MR))
    draws = SliceSampler(
        build(ct, mr), batch=1, augmentation=Augmentation(), level_slack=None, paired=True, rng=torch.Generator()
    )
    assert len(draws._pairs) == 2
