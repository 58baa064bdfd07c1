"""Validation score of a model in training: what tuning minimises, on subjects that are never tested on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctmr.data.manifest import Split
from ctmr.data.shards import Shard, has_shard, pairs, read_shard
from ctmr.errors import InputError
from ctmr.evaluation.inference import cycle_slices, translate_array
from ctmr.imaging.volume import Direction, Modality, Unit
from ctmr.metrics.protocol import PROTOCOLS, Protocol
from ctmr.metrics.registry import NMI, SSIM
from ctmr.networks.model_folder import Description, make_translator
from ctmr.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from ctmr.metrics.extractors import Extractor
    from ctmr.networks.translator import Translator

MIN_IMAGES = 2
MAX_SLICES = 48
"""Slices a modality that the unpaired score looks at."""
MIN_HEAD_PX = 64
"""Structure is not measured on a slice that hardly shows a head."""
KID_WEIGHT = 10.0
"""Brings KID to the size of the other two terms."""

_PAIRED = {
    Unit.HU: (PROTOCOLS["paired_volume_hu"], "validation MAE (HU, paired, in the head)"),
    Unit.GREY8: (PROTOCOLS["paired_slice_grey8"], "validation MAE (grey levels, paired, in the head)"),
}
_UNPAIRED = f"validation {KID_WEIGHT:g}·KID + (1 - NMI) + (1 - cycle SSIM), unpaired"


@dataclass(frozen=True)
class Terms:
    """Terms of the unpaired score.

    Attributes
    ----------
    kid, nmi, cycle_ssim
        Of the protocols ``unpaired_distribution``, ``structure`` and ``cycle_slice``, on middle slices.
    """

    kid: float
    nmi: float
    cycle_ssim: float

    @property
    def score(self) -> float:
        """10·KID + (1 - NMI) + (1 - cycle SSIM)."""
        return KID_WEIGHT * self.kid + (1.0 - self.nmi) + (1.0 - self.cycle_ssim)


@dataclass(frozen=True)
class Pictures:
    """Validation images beside what a model makes of them.

    Attributes
    ----------
    columns
        What each column shows.
    images
        ``[R, C, H, W]`` uint8: [-1, 1] as trained, 0 to 255.
    """

    columns: tuple[str, ...]
    images: NDArray[np.uint8]


@dataclass
class Scorer:
    """Scores generators on the validation split; lower is better.

    With pairs in HU or grey levels the score is the mean absolute error inside the head, clipped as the protocols
    ``paired_volume_hu`` and ``paired_slice_grey8`` say, on the model's grid. MR in arbitrary units has no unit to err
    in, so there, and without pairs, it is 10·KID + (1 - NMI) + (1 - cycle SSIM), of the protocols
    ``unpaired_distribution``, ``structure`` and ``cycle_slice``: distance of the translations from real images of the
    target modality, plus what of the input's structure was lost, plus what the way back cannot restore. The terms are
    of like size, and none is enough: noise keeps no structure, the identity keeps all of it, and a code hidden in
    noise closes every cycle.
    """

    name: str
    description: Description
    direction: Direction
    source: Shard
    target: Shard
    paired: list[tuple[int, int]]
    protocol: Protocol | None = None
    _extractor: Extractor | None = None
    _real: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    @staticmethod
    def make(shards: Path, recipe: Recipe, description: Description, direction: Direction | None = None) -> Scorer:
        """Choose the score that the validation data allow; of the recipe's first direction, unless another is given."""
        direction = direction or recipe.direction
        for modality in Modality:
            if not has_shard(shards, Split.VAL, modality):
                raise InputError(f"the validation split has no {modality}, which tuning needs; raise data.val_fraction")
        source, target = (read_shard(shards, Split.VAL, m) for m in (direction.source, direction.target))
        found = [(i, j) for i, j in pairs(source, target, voxel_by_voxel=True) if target.volume_head(j).any()]
        if found and target.unit in _PAIRED:
            protocol, name = _PAIRED[target.unit]
            return Scorer(name, description, direction, source, target, found, protocol)
        fewest = min((source, target), key=lambda shard: len(shard.volumes))
        if len(fewest.volumes) < MIN_IMAGES:
            raise InputError(
                f"the validation split has {len(fewest.volumes)} {fewest.modality} image, and a distance of "
                f"distributions needs {MIN_IMAGES}; raise data.val_fraction"
            )
        return Scorer(_UNPAIRED, description, direction, source, target, [])

    def __call__(self, forward: nn.Module, backward: nn.Module, cases: int = 0) -> float:
        """Return the score of a pair of generators.

        Parameters
        ----------
        forward, backward
            Of the direction, and of the way back.
        cases
            Validation images that are looked at, spread evenly; 0: all.
        """
        if self.protocol is None:
            return self.unpaired(forward, backward, cases).score
        low, high = self.protocol.clip or (-np.inf, np.inf)
        translator, errors = self._translator(forward), []
        for i, j in (self.paired[k] for k in _spread(len(self.paired), cases or len(self.paired))):
            made = translate_array(translator, self.source.volume(i))
            truth, head = self.target.volume(j)[0].astype(np.float32), self.target.volume_head(j)
            errors.append(float(np.abs(np.clip(made, low, high) - np.clip(truth, low, high))[head].mean()))
        return float(np.mean(errors))

    def pictures(self, forward: nn.Module, backward: nn.Module, count: int) -> Pictures:
        """Return the middle slices of a few validation images, their translations, and what they are compared with."""
        import torch

        from ctmr.metrics.extractors import unit_interval
        from ctmr.networks.normaliser import normaliser_for

        translator = self._translator(forward)
        target = normaliser_for(self.description.sides[self.direction.target].unit, self.description.normalise)
        truths = dict(self.paired)
        rows = []
        chosen = [self.paired[k][0] for k in _spread(len(self.paired), count)] if truths else None
        for index in _spread(len(self.source.volumes), count) if chosen is None else chosen:
            volume = self.source.volume(index)
            middle = volume.shape[1] // 2
            shown, again = cycle_slices(
                translator.source, forward, backward, volume, [middle], self.description.neighbours
            )
            made = torch.from_numpy(translate_array(translator, volume, [middle]))
            row = [shown[0, 0], target(made[None], translator.target_range.cpu()).numpy()[0, 0]]
            if truths:
                truth = torch.from_numpy(np.ascontiguousarray(self.target.volume(truths[index]), dtype=np.float32))
                row.append(target(truth[None, :, middle], target.measure(truth)[None]).numpy()[0, 0])
            rows.append(np.stack([*row, again[0, 0]]))
        source, target_name = self.direction.source.value.upper(), self.direction.target.value.upper()
        columns = (source, f"synthetic {target_name}", *((f"true {target_name}",) if truths else ()), f"{source} again")
        grey = unit_interval(np.stack(rows), -1.0, 1.0) * 255
        return Pictures(columns, grey.round().astype(np.uint8))

    def _translator(self, forward: nn.Module) -> Translator:
        translator = make_translator(self.description, self.direction, forward)
        return translator.to(next(forward.parameters()).device)

    def unpaired(self, forward: nn.Module, backward: nn.Module, cases: int = 0) -> Terms:
        """Return the terms of the unpaired score, which exist where there are pairs as well."""
        from ctmr.metrics.distribution import kid
        from ctmr.metrics.extractors import features, load_extractor, unit_interval
        from ctmr.metrics.measurement import measure_cycle, measure_structure

        translator = self._translator(forward)
        most = max(MIN_IMAGES, min(cases or MAX_SLICES, MAX_SLICES))
        self._extractor = self._extractor or load_extractor()
        low, high = self.description.sides[self.direction.target].target_range or (0.0, 1.0)
        made, kept, restored = [], [], []
        for index in _spread(len(self.source.volumes), most):
            volume, head = self.source.volume(index), self.source.volume_head(index)
            middle, case = volume.shape[1] // 2, self.source.volumes[index].image
            translation = translate_array(translator, volume)[middle]
            made.append(translation)
            if head[middle].sum() > MIN_HEAD_PX:
                found = measure_structure(volume[0, middle], translation, head[middle], case=case, subject=case)
                kept.append(found.values[NMI.name])
            shown, again = cycle_slices(
                translator.source, translator.generator, backward, volume, [middle], self.description.neighbours
            )
            restored.append(measure_cycle(shown[0], again[0], case=case, subject=case).values[SSIM.name])
        if most not in self._real:
            chosen = _spread(len(self.target.volumes), most)
            real = [self.target.volume(i)[0, self.target.volumes[i].count // 2] for i in chosen]
            self._real[most] = features(unit_interval(np.stack(real), low, high), self._extractor)
        distance, _ = kid(
            self._real[most],
            features(unit_interval(np.stack(made), low, high), self._extractor),
            subsets=1,
            subset_size=MAX_SLICES,
            seed=0,
        )
        return Terms(distance, float(np.mean(kept or [0.0])), float(np.mean(restored)))


def _spread(count: int, most: int) -> list[int]:
    """Return indices of at most so many of `count` items, spread evenly."""
    return sorted({int(k) for k in np.linspace(0, count - 1, min(count, most)).round()})
