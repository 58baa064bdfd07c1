"""Validation score of a model in training: what tuning minimises, on subjects that are never tested on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data.shards import Shard, has_shard, pairs, read_shard
from ctmr.errors import InputError
from ctmr.manifest import Split
from ctmr.recipe import Recipe
from ctmr.stages.model_folder import Description, make_translator
from ctmr.stages.translation import translate_array
from ctmr.volume import Direction, Modality, Unit

if TYPE_CHECKING:
    from torch import nn

MIN_IMAGES = 2
MAX_SLICES = 48
"""Slices a modality that the unpaired score looks at."""


@dataclass
class Scorer:
    """Scores generators on the validation split; lower is better.

    With pairs in HU the score is the mean absolute error in HU inside the head, on the model's grid. Without pairs it
    is 10·KID + (1 - structure NMI): distance of the translations from real images of the target modality, plus what
    of the input's structure was lost. The two terms are of like size; neither alone is enough, since noise keeps no
    structure and the identity keeps all of it.
    """

    name: str
    description: Description
    direction: Direction
    source: Shard
    target: Shard
    paired: list[tuple[int, int]]

    @staticmethod
    def make(shards: Path, recipe: Recipe, description: Description) -> Scorer:
        """Choose the score that the validation data allow."""
        direction = recipe.directions[0]
        for modality in Modality:
            if not has_shard(shards, Split.VAL, modality):
                raise InputError(f"the validation split has no {modality}, which tuning needs; raise data.val_fraction")
        source, target = (read_shard(shards, Split.VAL, m) for m in (direction.source, direction.target))
        found = pairs(source, target)
        hu = bool(found) and target.unit is Unit.HU
        fewest = min((source, target), key=lambda shard: len(shard.volumes))
        if not hu and len(fewest.volumes) < MIN_IMAGES:
            raise InputError(
                f"the validation split has {len(fewest.volumes)} {fewest.modality} image, and a distance of "
                f"distributions needs {MIN_IMAGES}; raise data.val_fraction"
            )
        name = "validation MAE (HU, paired, in the head)" if hu else "validation 10·KID + 1 - NMI (unpaired)"
        return Scorer(name, description, direction, source, target, found if hu else [])

    def __call__(self, generator: nn.Module) -> float:
        """Return the score of the direction's generator."""
        translator = make_translator(self.description, self.direction, generator)
        if self.paired:
            errors = []
            for i, j in self.paired:
                made = translate_array(translator, self.source.volume(i))
                truth, head = self.target.volume(j)[0].astype(np.float32), self.target.volume_head(j)
                errors.append(float(np.abs(np.clip(made, -1024, 3000) - np.clip(truth, -1024, 3000))[head].mean()))
            return float(np.mean(errors))
        return self._unpaired(translator)

    def _unpaired(self, translator: Any) -> float:
        from ctmr.metrics.distribution import features, kid
        from ctmr.metrics.structure import measure_structure

        made, kept = [], []
        for index in _spread(len(self.source.volumes)):
            volume, head = self.source.volume(index), self.source.volume_head(index)
            middle = volume.shape[1] // 2
            translation = translate_array(translator, volume)[middle]
            made.append(translation)
            if head[middle].sum() > 64:
                case = self.source.volumes[index].image
                kept.append(
                    measure_structure(volume[0, middle], translation, head[middle], case=case, subject=case).values[
                        "nmi"
                    ]
                )
        real = [self.target.volume(i)[0, self.target.volumes[i].count // 2] for i in _spread(len(self.target.volumes))]
        low, high = self.description.sides[self.direction.target].target_range or (0.0, 1.0)
        distance, _ = kid(
            features(unit_interval(np.stack(real), low, high)),
            features(unit_interval(np.stack(made), low, high)),
            subsets=1,
            subset_size=MAX_SLICES,
            seed=0,
        )
        return 10.0 * distance + 1.0 - float(np.mean(kept or [0.0]))


def unit_interval(images: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Map a range to [0, 1], as feature extractors take it."""
    out: NDArray[np.float32] = np.clip((images.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    return out


def _spread(count: int) -> list[int]:
    return sorted({int(k) for k in np.linspace(0, count - 1, min(count, MAX_SLICES)).round()})
