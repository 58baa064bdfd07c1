"""Sample sheets of a training: which slices they show, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ctmr.data.examples import Examples, choose_examples
from ctmr.data.manifest import PHANTOM_PREFIX, Split
from ctmr.data.shards import has_shard, read_shard
from ctmr.evaluation.sections import UNIT_WORDS
from ctmr.imaging.volume import Modality
from ctmr.networks.model_folder import Description, ModalityDescription
from ctmr.networks.normaliser import normaliser_for
from ctmr.networks.stacks import middle
from ctmr.recipe.recipe import Percentile, Recipe
from ctmr.training.events import SampleEvent

if TYPE_CHECKING:
    from ctmr.reports.samples import SampleGroup

ROWS = 4


@dataclass(frozen=True)
class Samples:
    """The slices of one training's sample sheets.

    Attributes
    ----------
    examples
        The slices; of validation, or of training where validation lacks a modality.
    split
        Theirs.
    phantom
        Whether all are phantoms.
    """

    examples: Examples
    split: Split
    phantom: bool
    description: Description

    @staticmethod
    def choose(
        shards: Path, recipe: Recipe, description: Description, *, device: torch.device | str = "cpu"
    ) -> Samples:
        """Choose them; equal shards give equal ones, so a resumed training goes on with the same."""
        split = Split.VAL if all(has_shard(shards, Split.VAL, m) for m in Modality) else Split.TRAIN
        ct, mr = (read_shard(shards, split, m) for m in (Modality.CT, Modality.MR))
        examples = choose_examples(
            ct, mr, recipe.normalise, neighbours=recipe.network.neighbours, count=ROWS, device=device
        )
        phantom = all(v.subject.startswith(PHANTOM_PREFIX) for shard in (ct, mr) for v in shard.volumes)
        return Samples(examples, split, phantom, description)

    def draw(self, event: SampleEvent) -> bytes:
        """Draw what a training makes of them, as PNG."""
        from ctmr.reports.samples import sample_sheet

        groups = [
            self._group(Modality.MR, Modality.CT, self.examples.mr_names, event.real_mr, event.fake_mr, event.rec_mr),
            self._group(Modality.CT, Modality.MR, self.examples.ct_names, event.real_ct, event.fake_ct, event.rec_ct),
        ]
        slices = "validation slices" if self.split is Split.VAL else "training slices, validation lacks a modality"
        rows = "one subject a row" if self.examples.paired else "MR and CT of a row are unpaired"
        return sample_sheet(groups, title=f"step {event.step} · {slices} · {rows}", phantom=self.phantom)

    def _group(
        self, modality: Modality, other: Modality, names: tuple[str, ...], real: Tensor, fake: Tensor, rec: Tensor
    ) -> SampleGroup:
        """The columns of one modality in its unit; of a stack the middle slice, of several sequences the first."""
        from ctmr.reports.samples import SampleGroup

        side = self.description.sides[modality]
        low, high, unit = _scale(side, self.description)
        inverse = normaliser_for(side.unit, self.description.normalise).inverse
        limits = torch.tensor([[[low, high]]])
        images = tuple(
            inverse(middle(stacks, self.description.neighbours)[:, :1], limits)[:, 0].numpy()
            for stacks in (real, fake, rec)
        )
        titles = (
            str(modality),
            f"synthetic {modality}\nfrom {other}",
            f"{modality} again\n{modality} → {other} → {modality}",
        )
        return SampleGroup(titles, images, names, (low, high), unit)


def _scale(side: ModalityDescription, description: Description) -> tuple[float, float, str]:
    """Black, white and the unit in words; where each volume has a range of its own, values are shares of it."""
    config = normaliser_for(side.unit, description.normalise).config
    if isinstance(config, Percentile):
        return 0.0, 1.0, "share of the volume's range"
    return config.low, config.high, UNIT_WORDS[side.unit]
