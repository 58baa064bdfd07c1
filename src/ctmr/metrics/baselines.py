"""Baselines that saw no pairs: what a model must beat before any limit means anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.imaging.hounsfield import AIR_HU, DRAWN_OUTSIDE
from ctmr.imaging.volume import Direction, Modality, Unit

HISTOGRAM_MATCHING = "histogram matching"
MATCHED_LINE = "quantile-matched line"
MEAN_IMAGE = "mean image"
FILLED_HEAD = "head filled with 35 HU"
IDENTITY = "identity"

SOFT_TISSUE_HU = 35.0
LINE_QUANTILES = (0.1, 0.9)
_QUANTILES = np.linspace(0.0, 1.0, 1001)
_MAX_SAMPLE = 2_000_000


class TrainingImages(Protocol):
    """The training images of one modality that a baseline is fitted on; `ctmr.data.shards.Shard` is one.

    Attributes
    ----------
    slices
        ``[N, C, H, W]`` in physical units.
    head
        ``[N, H, W]`` bool, True inside the head.
    volumes
        In order of their slices; each has ``first``, ``count`` and ``level`` (of its first slice, from the centre).
    """

    @property
    def slices(self) -> NDArray[Any]: ...
    @property
    def head(self) -> NDArray[np.bool_]: ...
    @property
    def volumes(self) -> Sequence[Any]: ...
    @property
    def unit(self) -> Unit: ...
    @property
    def modality(self) -> Modality: ...


class Baseline(Protocol):
    """Translates a volume in physical units of the source into physical units of the target."""

    def __call__(
        self, volume: NDArray[Any], head: NDArray[np.bool_], *, first_level: float | None = None
    ) -> NDArray[np.float32]:
        """Translate.

        Parameters
        ----------
        volume
            ``[C, D, H, W]``, physical units of the source; the first channel is read.
        head
            ``[D, H, W]`` bool, head mask of the *source*.
        first_level
            `ShardVolume.level` of the volume; ``None``: the volume is centred.

        Returns
        -------
        NDArray
            ``[D, H, W]`` float32.
        """


@dataclass(frozen=True)
class HistogramMatching:
    """Gives the values inside the head the distribution of all training targets: quantile to quantile.

    The source's quantiles are the volume's own, since an MR scale means nothing from scan to scan.
    """

    target_quantiles: NDArray[np.float64]
    outside: float

    @classmethod
    def fit(cls, target: TrainingImages) -> HistogramMatching:
        """Learn the target's quantiles inside heads."""
        return cls(np.quantile(_sample_heads(target), _QUANTILES), DRAWN_OUTSIDE[target.unit])

    def __call__(
        self, volume: NDArray[Any], head: NDArray[np.bool_], *, first_level: float | None = None
    ) -> NDArray[np.float32]:
        """See `Baseline`."""
        values = volume[0][head].astype(np.float64)
        if values.size == 0:
            return _filled(head.shape, self.outside)
        own = np.quantile(values, _QUANTILES)
        # Equal source values get one target value: the middle of the quantiles that they span.
        first, last = np.searchsorted(own, values, side="left"), np.searchsorted(own, values, side="right") - 1
        exact = last >= first
        rank = np.interp(values, own, _QUANTILES)
        rank[exact] = (_QUANTILES[first[exact]] + _QUANTILES[last[exact]]) / 2
        return _inside(head, np.interp(rank, _QUANTILES, self.target_quantiles), self.outside)


@dataclass(frozen=True)
class MatchedLine:
    """Straight line that maps the 10th and 90th percentile of the head to those of the training targets."""

    target_low: float
    target_high: float
    outside: float

    @classmethod
    def fit(cls, target: TrainingImages) -> MatchedLine:
        """Learn the two percentiles of the target inside heads."""
        low, high = np.quantile(_sample_heads(target), LINE_QUANTILES)
        return cls(float(low), float(high), DRAWN_OUTSIDE[target.unit])

    def __call__(
        self, volume: NDArray[Any], head: NDArray[np.bool_], *, first_level: float | None = None
    ) -> NDArray[np.float32]:
        """See `Baseline`."""
        values = volume[0][head].astype(np.float64)
        if values.size == 0:
            return _filled(head.shape, self.outside)
        low, high = np.quantile(values, LINE_QUANTILES)
        t = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
        return _inside(head, self.target_low + t * (self.target_high - self.target_low), self.outside)


@dataclass(frozen=True)
class MeanImage:
    """Answers the mean training target of the same level, whatever the input shows.

    Attributes
    ----------
    levels
        ``[L]`` levels that training had, rising, in slices from the volume's centre.
    images
        ``[L, H, W]`` mean of the training slices at each level.
    """

    levels: NDArray[np.int64]
    images: NDArray[np.float32]

    @classmethod
    def fit(cls, target: TrainingImages) -> MeanImage:
        """Average the target's slices level by level."""
        level_of = np.empty(target.slices.shape[0], dtype=np.int64)
        for v in target.volumes:
            level_of[v.first : v.first + v.count] = np.floor(v.level + np.arange(v.count) + 0.5)
        levels, index = np.unique(level_of, return_inverse=True)
        sums = np.zeros((len(levels), *target.slices.shape[2:]))
        for n, k in enumerate(index):
            sums[k] += target.slices[n, 0]
        counts = np.bincount(index, minlength=len(levels))
        return cls(levels, (sums / counts[:, None, None]).astype(np.float32))

    def __call__(
        self, volume: NDArray[Any], head: NDArray[np.bool_], *, first_level: float | None = None
    ) -> NDArray[np.float32]:
        """See `Baseline`."""
        if volume.shape[2:] != self.images.shape[1:]:
            raise InputError(
                f"the mean image has slices of {self.images.shape[1:]}, but the volume's are {volume.shape[2:]}; "
                "both must lie on the model's grid"
            )
        depth = volume.shape[1]
        start = -(depth - 1) / 2 if first_level is None else first_level
        wanted = np.floor(start + np.arange(depth) + 0.5)
        nearest = np.abs(wanted[:, None] - self.levels[None]).argmin(axis=1)
        mean: NDArray[np.float32] = self.images[nearest]
        return mean


@dataclass(frozen=True)
class FilledHead:
    """Soft tissue of 35 HU inside the head, air outside."""

    def __call__(
        self, volume: NDArray[Any], head: NDArray[np.bool_], *, first_level: float | None = None
    ) -> NDArray[np.float32]:
        """See `Baseline`."""
        return np.where(head, SOFT_TISSUE_HU, AIR_HU).astype(np.float32)


@dataclass(frozen=True)
class Identity:
    """Returns its input: possible only where source and target share a unit."""

    def __call__(
        self, volume: NDArray[Any], head: NDArray[np.bool_], *, first_level: float | None = None
    ) -> NDArray[np.float32]:
        """See `Baseline`."""
        same: NDArray[np.float32] = volume[0].astype(np.float32)
        return same


def fit_baselines(source: TrainingImages, target: TrainingImages, direction: Direction) -> dict[str, Baseline]:
    """Fit every baseline that the units allow, from unpaired training shards alone.

    Parameters
    ----------
    source, target
        Training shards of the direction's two modalities.
    direction
        Which way.

    Returns
    -------
    dict
        Name → translator: histogram matching, quantile-matched line and mean image always; the filled head where the
        target is in HU; the identity where both are 8-bit pictures.

    Raises
    ------
    InputError
        When the shards are not of the direction's modalities, or the target shows no head.
    """
    if (source.modality, target.modality) != (direction.source, direction.target):
        raise InputError(
            f"direction {direction} translates {direction.source} into {direction.target}; the shards given are "
            f"{source.modality} and {target.modality}"
        )
    fitted: dict[str, Baseline] = {
        HISTOGRAM_MATCHING: HistogramMatching.fit(target),
        MATCHED_LINE: MatchedLine.fit(target),
        MEAN_IMAGE: MeanImage.fit(target),
    }
    if target.unit is Unit.HU:
        fitted[FILLED_HEAD] = FilledHead()
    if source.unit is target.unit is Unit.GREY8:
        fitted[IDENTITY] = Identity()
    return fitted


def _sample_heads(shard: TrainingImages) -> NDArray[np.float64]:
    """Values inside heads, evenly thinned to a size that memory holds."""
    step = max(1, int(shard.head.sum()) // _MAX_SAMPLE)
    parts = [shard.slices[n, 0][shard.head[n]][::step] for n in range(shard.slices.shape[0])]
    values = np.concatenate(parts) if parts else np.empty(0)
    if values.size == 0:
        raise InputError(f"the {shard.modality} training shard holds no voxel inside a head; its head masks are empty")
    return values.astype(np.float64)


def _inside(head: NDArray[np.bool_], values: NDArray[np.float64], outside: float) -> NDArray[np.float32]:
    out = _filled(head.shape, outside)
    out[head] = values
    return out


def _filled(shape: tuple[int, ...], value: float) -> NDArray[np.float32]:
    return np.full(shape, value, dtype=np.float32)
