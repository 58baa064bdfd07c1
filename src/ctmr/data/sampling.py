"""Sampling: both training shards normalised once, held on the device, and drawn from in unpaired batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctmr.data.augment import Augmentation, augment, scale_intensity
from ctmr.data.shards import Shard
from ctmr.errors import InputError
from ctmr.normaliser import Normaliser, normaliser_for
from ctmr.recipe import Normalise
from ctmr.volume import Modality, Unit

_SAME_LEVEL = 0.5

DEPTH_MIDDLE_PX = 6.0
"""Depth under the skin that becomes 0; the skin is -1, twice this depth and deeper is 1."""


@dataclass(frozen=True)
class Batch:
    """Unpaired slices of both modalities.

    Attributes
    ----------
    mr, ct
        ``[N, C, H, W]`` float32 in [-1, 1].
    mr_depth, ct_depth
        ``[N, 1, H, W]`` float32 in [-1, 1], or ``None`` when no discriminator asks for position.
    """

    mr: Tensor
    ct: Tensor
    mr_depth: Tensor | None = None
    ct_depth: Tensor | None = None


@dataclass(frozen=True)
class Domain:
    """All usable slices of one modality.

    Attributes
    ----------
    images
        ``[N, C, H, W]`` float32 in [-1, 1], on the device.
    depth
        ``[N, 1, H, W]`` float32 in [-1, 1], on the device, or ``None``.
    levels
        ``[N]`` float32 on the CPU: slices from the volume's centre; ``None`` for pictures.
    volume
        ``[N]`` int64 on the CPU: index into `subjects`.
    subjects, uids
        Of each volume.
    outlines
        ``[N, P]`` float32 on the CPU: head mask at a quarter of the resolution, divided by its norm; ``None``: unknown.
    absolute
        Whether values mean something by themselves (HU), so that intensity is not augmented.
    """

    images: Tensor
    depth: Tensor | None
    levels: Tensor | None
    volume: Tensor
    subjects: tuple[str, ...]
    uids: tuple[str, ...]
    outlines: Tensor | None = None
    absolute: bool = False

    def subset(self, count: int, seed: int) -> Domain:
        """Return `count` slices (all, where there are no more), drawn by seed alone, in their order."""
        rng = torch.Generator().manual_seed(seed)
        kept = torch.randperm(len(self.images), generator=rng)[:count].sort().values
        place = kept.to(self.images.device)
        return replace(
            self,
            images=self.images[place],
            depth=None if self.depth is None else self.depth[place],
            levels=None if self.levels is None else self.levels[kept],
            volume=self.volume[kept],
            outlines=None if self.outlines is None else self.outlines[kept],
        )


@dataclass(frozen=True)
class TrainingData:
    """Both modalities, ready for training."""

    mr: Domain
    ct: Domain

    @classmethod
    def from_shards(
        cls,
        ct: Shard,
        mr: Shard,
        normalise: Normalise,
        *,
        min_head_fraction: float,
        depth: bool,
        device: torch.device | str = "cpu",
    ) -> TrainingData:
        """Normalise each volume once and keep the slices with enough head.

        Parameters
        ----------
        ct, mr
            Training shards.
        normalise
            How units become [-1, 1].
        min_head_fraction
            Share of a slice's pixels inside the head, below which it is not trained on.
        depth
            Also compute depth maps, which position-aware discriminators need.
        device
            Where the images are held.

        Raises
        ------
        InputError
            When a modality has no usable slice, or the two differ in size.
        """
        if ct.modality is not Modality.CT or mr.modality is not Modality.MR:
            raise ValueError(f"shards of CT and MR are needed, found {ct.modality} and {mr.modality}")
        if ct.slices.shape[-2:] != mr.slices.shape[-2:]:
            raise InputError(
                f"CT slices are {ct.slices.shape[-2:]} and MR slices {mr.slices.shape[-2:]} pixels; "
                "both must be on one grid, run `ctmr preprocess` again"
            )
        place = torch.device(device)
        return cls(*(_domain(shard, normalise, min_head_fraction, depth=depth, device=place) for shard in (mr, ct)))

    @property
    def size(self) -> tuple[int, int]:
        """Slices' (H, W)."""
        height, width = self.mr.images.shape[-2:]
        return int(height), int(width)

    @property
    def has_levels(self) -> bool:
        """True when both modalities are volumes, so that slices can be matched by level."""
        return self.mr.levels is not None and self.ct.levels is not None

    def subset(self, count: int, seed: int) -> TrainingData:
        """Return `count` slices of each modality, drawn by seed alone."""
        return TrainingData(self.mr.subset(count, seed), self.ct.subset(count, seed))

    def examples(self, count: int) -> Batch:
        """Return `count` fixed slices of each modality, spread evenly over all."""
        mr, ct = (torch.linspace(0, len(d.images) - 1, count + 2)[1:-1].round().long() for d in (self.mr, self.ct))
        return Batch(self.mr.images[mr], self.ct.images[ct])


class Sampler:
    """Draws unpaired, augmented batches for ever.

    Parameters
    ----------
    data
        Both modalities.
    batch
        Slices of each modality a batch.
    augmentation
        Drawn independently for the two modalities.
    level_slack
        When given, each CT slice is drawn from another subject than the MR slice, at most this many slices away in
        level (the nearest level there is, where none is as close), and both are moved alike. ``None`` draws it freely.
    matches
        With `level_slack`: the CT is drawn among this many slices whose head outline is most like the MR's.
    paired
        Draws the CT and MR slice of one subject at one level, and moves both alike.
    rng
        CPU source of all randomness.

    Raises
    ------
    InputError
        When levels are asked for and some MR subject has no other subject's CT, or pairs and there are none.
    """

    def __init__(
        self,
        data: TrainingData,
        *,
        batch: int,
        augmentation: Augmentation,
        level_slack: int | None,
        matches: int = 1_000_000,
        paired: bool = False,
        rng: torch.Generator,
    ) -> None:
        self._data = data
        self._matches = matches
        self._batch = batch
        self._augmentation = augmentation
        self._slack = level_slack
        self._rng = rng
        self._pairs = _pairs(data) if paired else None
        if level_slack is not None:
            if not data.has_levels:
                raise ValueError("pictures have no levels to match")
            self._mr_subject, self._ct_subject = _subject_codes(data.mr, data.ct)
            for code in torch.unique(self._mr_subject):
                if not bool((self._ct_subject != code).any()):
                    subject = data.mr.subjects[int(data.mr.volume[self._mr_subject == code][0])]
                    raise InputError(
                        f"the warm-up needs a CT of another subject than {subject!r}, and training has none; "
                        "add subjects or set loss.warmup.weight to 0"
                    )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.draw()

    def draw(self) -> Batch:
        """Return the next batch."""
        if self._pairs is not None:
            drawn = self._pairs[torch.randint(len(self._pairs), (self._batch,), generator=self._rng)]
            return self._taken(drawn[:, 0], drawn[:, 1])
        mr = torch.randint(len(self._data.mr.images), (self._batch,), generator=self._rng)
        if self._slack is None:
            ct = torch.randint(len(self._data.ct.images), (self._batch,), generator=self._rng)
        else:
            ct = self._same_level(mr, self._slack)
        return self._taken(mr, ct)

    def _same_level(self, mr: Tensor, slack: int) -> Tensor:
        assert self._data.mr.levels is not None and self._data.ct.levels is not None
        distance = (self._data.mr.levels[mr][:, None] - self._data.ct.levels[None, :]).abs()
        mine, theirs = self._mr_subject[mr][:, None], self._ct_subject[None, :]
        distance = distance.masked_fill(mine == theirs, torch.inf)
        nearest = distance.amin(dim=1, keepdim=True).clamp(min=float(slack))
        likeness = torch.zeros_like(distance)
        if self._data.mr.outlines is not None and self._data.ct.outlines is not None:
            # Cosine of two masks: 1 for equal outlines, and as fast as one matrix product.
            likeness = self._data.mr.outlines[mr] @ self._data.ct.outlines.T
        likeness = likeness.masked_fill(distance > nearest, -1.0)
        least = likeness.topk(min(self._matches, likeness.shape[1]), dim=1).values[:, -1:].clamp(min=0.0)
        return torch.multinomial((likeness >= least).float(), 1, generator=self._rng)[:, 0]

    def _taken(self, mr: Tensor, ct: Tensor) -> Batch:
        """Augment both modalities: alike where the slices were matched, independently where they were not."""
        mr_stack, ct_stack = self._stack(self._data.mr, mr), self._stack(self._data.ct, ct)
        split = mr_stack.shape[1]
        if self._slack is None and self._pairs is None:
            mr_stack, ct_stack = self._augment(mr_stack), self._augment(ct_stack)
        else:
            both = self._augment(torch.cat([mr_stack, ct_stack], dim=1))
            mr_stack, ct_stack = both[:, :split], both[:, split:]
        mr, mr_depth = self._parted(self._data.mr, mr_stack)
        ct, ct_depth = self._parted(self._data.ct, ct_stack)
        return Batch(mr, ct, mr_depth, ct_depth)

    def _augment(self, images: Tensor) -> Tensor:
        return augment(images, self._augmentation, self._rng)

    def _parted(self, domain: Domain, stack: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images, their intensity augmented where it has no meaning of its own, and depth maps."""
        images, depth = (stack, None) if domain.depth is None else (stack[:, :-1], stack[:, -1:])
        if self._augmentation.intensity and not domain.absolute:
            images = scale_intensity(images, self._augmentation.intensity, self._rng)
        return images, depth

    @staticmethod
    def _stack(domain: Domain, index: Tensor) -> Tensor:
        index = index.to(domain.images.device)
        images = domain.images[index]
        return images if domain.depth is None else torch.cat([images, domain.depth[index]], dim=1)


def depth_channel(head: NDArray[np.bool_]) -> Tensor:
    """Return the depth under the skin as a discriminator's channel.

    Parameters
    ----------
    head
        ``[N, H, W]`` bool.

    Returns
    -------
    Tensor
        ``[N, 1, H, W]`` float32: ``clip(depth / 6 px - 1, -1, 1)``, so the skin is -1 and 12 px or more is 1.
    """
    from ctmr.imaging.mask import head_depth

    pixels = torch.from_numpy(np.ascontiguousarray(head_depth(head), dtype=np.float32))
    return (pixels / DEPTH_MIDDLE_PX - 1.0).clamp_(-1.0, 1.0)[:, None]


def target_ranges(shard: Shard, normalise: Normalise) -> tuple[float, float]:
    """Return the median range (low, high) over a shard's volumes: `Translator`'s `target_range`.

    Raises
    ------
    InputError
        When the shard has several channels of different ranges: a translator writes one channel.
    """
    normaliser = normaliser_for(shard.unit, normalise)
    ranges = torch.stack([normaliser.measure(_tensor(shard.volume(i))) for i in range(len(shard.volumes))])
    if not bool((ranges == ranges[:, :1]).all()):
        raise InputError(
            f"the {shard.modality} shard has {ranges.shape[1]} channels of different ranges and a translator writes "
            "one; choose one sequence in data.sequences, or a window in normalise.arbitrary"
        )
    low, high = np.median(ranges[:, 0].numpy(), axis=0)
    return float(low), float(high)


def _domain(
    shard: Shard, normalise: Normalise, min_head_fraction: float, *, depth: bool, device: torch.device
) -> Domain:
    normaliser = normaliser_for(shard.unit, normalise)
    usable = torch.from_numpy(shard.head.mean(axis=(1, 2)) >= min_head_fraction)
    if not bool(usable.any()):
        raise InputError(
            f"no {shard.modality} slice has at least preprocess.min_head_fraction = {min_head_fraction:g} of head; "
            "lower it or check the head masks in the preview of `ctmr preprocess`"
        )
    images = torch.empty((int(usable.sum()), *shard.slices.shape[1:]), dtype=torch.float32)
    written = 0
    for index, volume in enumerate(shard.volumes):
        kept = usable[volume.first : volume.first + volume.count]
        normalised = _normalise(normaliser, _tensor(shard.volume(index)))[kept]
        images[written : written + len(normalised)] = normalised
        written += len(normalised)
    levels = torch.cat([v.level + torch.arange(v.count, dtype=torch.float32) for v in shard.volumes])
    owner = torch.cat([torch.full((v.count,), i, dtype=torch.int64) for i, v in enumerate(shard.volumes)])
    return Domain(
        images=images.to(device),
        depth=depth_channel(shard.head[usable.numpy()]).to(device) if depth else None,
        levels=None if any(v.affine is None for v in shard.volumes) else levels[usable],
        volume=owner[usable],
        outlines=_outlines(shard.head[usable.numpy()]),
        absolute=shard.unit is Unit.HU,
        subjects=tuple(v.subject for v in shard.volumes),
        uids=tuple(v.uid or v.image for v in shard.volumes),
    )


def _outlines(head: NDArray[np.bool_]) -> Tensor:
    coarse = torch.nn.functional.avg_pool2d(torch.from_numpy(head).float()[:, None], 4, ceil_mode=True)
    return torch.nn.functional.normalize(coarse.flatten(1), dim=1)


@torch.no_grad()
def _normalise(normaliser: Normaliser, volume: Tensor) -> Tensor:
    out: Tensor = normaliser(volume.movedim(1, 0), normaliser.measure(volume)[None])
    return out


def _tensor(volume: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))


def _pairs(data: TrainingData) -> Tensor:
    """Return ``[P, 2]`` int64: MR and CT slices of one subject at one level; of pictures, of one subject."""
    mr_subject, ct_subject = _subject_codes(data.mr, data.ct)
    same = mr_subject[:, None] == ct_subject[None, :]
    if data.mr.levels is not None and data.ct.levels is not None:
        same &= (data.mr.levels[:, None] - data.ct.levels[None, :]).abs() < _SAME_LEVEL
    found = same.nonzero()
    if not len(found):
        raise InputError(
            "loss.supervised needs CT and MR slices of one subject at one level, and training has none; set "
            "data.disjoint_training to false, or loss.supervised.pairs to random"
        )
    return found


def _subject_codes(*domains: Domain) -> list[Tensor]:
    """Number the subjects over all domains; a volume without one is nobody's and never equals another."""
    codes: dict[object, int] = {}
    per_slice = []
    for domain in domains:
        names = [s or (id(domain), i) for i, s in enumerate(domain.subjects)]
        numbers = torch.tensor([codes.setdefault(name, len(codes)) for name in names], dtype=torch.int64)
        per_slice.append(numbers[domain.volume])
    return per_slice
