"""Steps that tuning and training share: shards to training data, a trainer, a model's description."""

from __future__ import annotations

from pathlib import Path

import torch

from ctmr.data.atlases import ATLASES, AtlasPlacement
from ctmr.data.domain import require_volumes, target_ranges
from ctmr.data.manifest import Split
from ctmr.data.sampling import TrainingData
from ctmr.data.shards import read_shard
from ctmr.imaging.grid import Grid
from ctmr.imaging.volume import Modality
from ctmr.networks.model_folder import Description, ModalityDescription
from ctmr.recipe.recipe import Recipe


def training_data(shards: Path, recipe: Recipe) -> TrainingData:
    """Load both training shards, normalised, on the device that is there."""
    ct, mr = (read_shard(shards, Split.TRAIN, m) for m in (Modality.CT, Modality.MR))
    atlases = shards / Split.TRAIN.value / ATLASES
    return TrainingData.from_shards(
        ct,
        mr,
        recipe.normalise,
        min_head_fraction=recipe.preprocess.min_head_fraction,
        depth=recipe.network.discriminator.position,
        neighbours=recipe.network.neighbours,
        device="cuda" if torch.cuda.is_available() else "cpu",
        placement=AtlasPlacement.read(atlases) if atlases.is_file() else None,
    )


def describe(preprocessed: Path, recipe: Recipe) -> Description:
    """Return what the trained weights will mean; InputError where the recipe asks for neighbours of pictures."""
    sides = {}
    for modality in Modality:
        shard = read_shard(preprocessed / "shards", Split.TRAIN, modality)
        require_volumes(shard, recipe.network.neighbours)
        channels = int(shard.slices.shape[1])
        limits = target_ranges(shard, recipe.normalise) if channels == 1 else None
        sequences = {v.sequences for v in shard.volumes}
        same = sequences.pop() if len(sequences) == 1 else ("",) * channels
        sides[modality.value] = ModalityDescription(
            unit=shard.unit, channels=channels, sequences=same, target_range=limits
        )
    grid = Grid.model_validate_json((preprocessed / "grid.json").read_text())
    return Description(
        generator=recipe.network.generator,
        normalise=recipe.normalise,
        grid=grid,
        sides=sides,
        directions=(recipe.direction,),
        neighbours=recipe.network.neighbours,
    )
