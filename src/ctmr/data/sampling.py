"""Sampling: both training shards normalised once, held on the device, and drawn from in unpaired batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctmr.data.atlases import Atlases, AtlasPlacement
from ctmr.data.augment import Augmentation, augment, scale_intensity, to_device
from ctmr.data.domain import Domain, domain_of
from ctmr.data.shards import SAME_PLACE_MM, Shard, unpack_head
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.recipe.recipe import Normalise

_SAME_LEVEL = 0.5


@dataclass(frozen=True)
class Batch:
    """Slices of both modalities, unpaired unless the sampler pairs them; or the fakes that were made of them.

    Attributes
    ----------
    mr, ct
        ``[N, S * C, H, W]`` float32 in [-1, 1]: stacks of S slices (`ctmr.networks.stacks`); S is 1 without neighbours.
    mr_depth, ct_depth
        ``[N, 1, H, W]`` float32 in [-1, 1] of the middle slices, or ``None`` when no discriminator asks for position.
    """

    mr: Tensor
    ct: Tensor
    mr_depth: Tensor | None = None
    ct_depth: Tensor | None = None

    def of(self, modality: Modality) -> tuple[Tensor, Tensor | None]:
        """Return one modality's slices and depth maps."""
        return (self.mr, self.mr_depth) if modality is Modality.MR else (self.ct, self.ct_depth)


@dataclass(frozen=True)
class TrainingData:
    """Both modalities, ready for training."""

    mr: Domain
    ct: Domain
    placement: AtlasPlacement | None = None
    """CT volumes brought onto the MR volumes' heads; ``None``: none."""

    @classmethod
    def from_shards(
        cls,
        ct: Shard,
        mr: Shard,
        normalise: Normalise,
        *,
        min_head_fraction: float,
        depth: bool,
        neighbours: int = 0,
        device: torch.device | str = "cpu",
        placement: AtlasPlacement | None = None,
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
        neighbours
            Slices on either side that make a stack with each slice. They are the volume's own, those with too little
            head too, as they are when the model is served; beyond its ends the last slice stands in.
        device
            Where the images are held.
        placement
            Of these shards' volumes.

        Raises
        ------
        InputError
            When a modality has no usable slice, the two differ in size, or neighbours of pictures are asked for.
        """
        if ct.modality is not Modality.CT or mr.modality is not Modality.MR:
            raise ValueError(f"shards of CT and MR are needed, found {ct.modality} and {mr.modality}")
        if ct.slices.shape[-2:] != mr.slices.shape[-2:]:
            raise InputError(
                f"CT slices are {ct.slices.shape[-2:]} and MR slices {mr.slices.shape[-2:]} pixels; "
                "both must be on one grid, run `ctmr preprocess` again"
            )
        place = torch.device(device)
        of_mr, of_ct = (
            domain_of(shard, normalise, min_head_fraction, depth=depth, neighbours=neighbours, device=place)
            for shard in (mr, ct)
        )
        return cls(of_mr, of_ct, placement)

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
        """Return `count` slices of each modality, drawn by seed alone, without atlases."""
        return TrainingData(self.mr.subset(count, seed), self.ct.subset(count, seed))

    def examples(self, count: int) -> Batch:
        """Return `count` fixed slices of each modality, spread evenly over all."""
        return Batch(self.mr.take(_spread(self.mr, count)), self.ct.take(_spread(self.ct, count)))

    def example_heads(self, count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Return the head masks of the MR and the CT slices of `examples`, ``[N, H, W]``; ``None``: unknown."""
        if self.mr.head is None or self.ct.head is None:
            return None
        mr, ct = self.mr.head[_spread(self.mr, count)], self.ct.head[_spread(self.ct, count)]
        return unpack_head(mr.numpy(), self.size[1]), unpack_head(ct.numpy(), self.size[1])


class SliceSampler:
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
    atlases
        With `level_slack`: the CT of each MR slice is one of these in its plane, each as likely, in place of a slice of
        like level and outline. The caller may exchange them.
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
        atlases: Atlases | None = None,
        rng: torch.Generator,
    ) -> None:
        self.atlases = atlases if level_slack is not None else None
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
        if self.atlases is not None:
            return self._beside_atlases(mr, self.atlases)
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

    def _beside_atlases(self, mr: Tensor, atlases: Atlases) -> Batch:
        assert self._data.mr.levels is not None
        which = torch.randint(atlases.count, (self._batch,), generator=self._rng)
        ct_stack = atlases.take(self._data.mr.volume[mr], self._data.mr.levels[mr], which)
        return self._augmented(self._stack(self._data.mr, mr), ct_stack)

    def _taken(self, mr: Tensor, ct: Tensor) -> Batch:
        return self._augmented(self._stack(self._data.mr, mr), self._stack(self._data.ct, ct))

    def _augmented(self, mr_stack: Tensor, ct_stack: Tensor) -> Batch:
        """Augment both modalities: alike where the slices were matched, independently where they were not."""
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
        images = domain.take(index)
        if domain.depth is None:
            return images
        return torch.cat([images, domain.depth[to_device(index, images.device)]], dim=1)


def _spread(domain: Domain, count: int) -> Tensor:
    return torch.linspace(0, len(domain.images) - 1, count + 2)[1:-1].round().long()


def _pairs(data: TrainingData) -> Tensor:
    """Return ``[P, 2]`` int64: MR and CT slices of one subject at one place; of pictures, of one subject."""
    mr_subject, ct_subject = _subject_codes(data.mr, data.ct)
    same = mr_subject[:, None] == ct_subject[None, :]
    if data.mr.levels is not None and data.ct.levels is not None:
        same &= (data.mr.levels[:, None] - data.ct.levels[None, :]).abs() < _SAME_LEVEL
    mr_frame, ct_frame = _frame_codes(data.mr, data.ct)
    either = (mr_frame[:, None] == 0) | (ct_frame[None, :] == 0)
    same &= either | (mr_frame[:, None] == ct_frame[None, :])
    if data.mr.affines is not None and data.ct.affines is not None:
        apart = (data.mr.affines[:, None] - data.ct.affines[None, :]).abs().amax((2, 3))
        same &= (apart < SAME_PLACE_MM)[data.mr.volume][:, data.ct.volume]
    found = same.nonzero()
    if not len(found):
        raise InputError(
            "loss.supervised needs CT and MR slices of one subject at one place and in one frame of reference, and "
            "training has none; set data.disjoint_training to false, or loss.supervised.pairs to random"
        )
    return found


def _frame_codes(*domains: Domain) -> list[Tensor]:
    """Number the frames of reference of all slices over all domains; 0 where none is known."""
    codes = {"": 0}
    per_slice = []
    for domain in domains:
        frames = domain.frames or ("",) * len(domain.subjects)
        numbers = torch.tensor([codes.setdefault(frame, len(codes)) for frame in frames], dtype=torch.int64)
        per_slice.append(numbers[domain.volume])
    return per_slice


def _subject_codes(*domains: Domain) -> list[Tensor]:
    """Number the subjects over all domains; a volume without one is nobody's and never equals another."""
    codes: dict[object, int] = {}
    per_slice = []
    for domain in domains:
        names = [s or (id(domain), i) for i, s in enumerate(domain.subjects)]
        numbers = torch.tensor([codes.setdefault(name, len(codes)) for name in names], dtype=torch.int64)
        per_slice.append(numbers[domain.volume])
    return per_slice
