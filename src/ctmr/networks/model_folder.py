"""The model folder: safetensors and one JSON description, from which translators are rebuilt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ctmr.errors import InputError
from ctmr.imaging.grid import Grid
from ctmr.imaging.volume import Direction, Unit
from ctmr.recipe.base import Section
from ctmr.recipe.recipe import Normalise
from ctmr.recipe.training import Generator

if TYPE_CHECKING:
    from torch import nn

    from ctmr.networks.translator import Translator

DESCRIPTION = "model.json"


class ModalityDescription(Section):
    """One modality of a model."""

    unit: Unit
    channels: int
    """Images a subject."""
    sequences: tuple[str, ...]
    """MR sequence of each channel, empty strings where unknown."""
    target_range: tuple[float, float] | None
    """Range (low, high) that outputs of this modality are given; ``None`` when it cannot be an output."""


class Description(Section):
    """Description of what the weights mean: the content of ``model.json``."""

    generator: Generator
    normalise: Normalise
    grid: Grid
    sides: dict[str, ModalityDescription]
    """By modality."""
    directions: tuple[Direction, ...]
    neighbours: int = 0
    """Slices on either side that the generators take and give beside their own."""

    def to_json(self) -> str:
        """Return the content of ``model.json``."""
        # Left out at 0, so that models of single slices stay what they were before there were stacks.
        tree = self.model_dump(mode="json", exclude=None if self.neighbours else {"neighbours"})
        return json.dumps(tree, indent=1, sort_keys=True) + "\n"

    def unlike(self, other: Description, direction: Direction) -> str:
        """Return what keeps two models from translating the same images in a direction; empty when nothing does."""
        if self.grid != other.grid:
            return "grid"
        if direction not in self.directions or direction not in other.directions:
            return "direction"
        for modality in (direction.source, direction.target):
            ours, theirs = self.sides[modality], other.sides[modality]
            if ours.unit is not theirs.unit:
                return f"unit of {modality}"
            if (ours.channels, ours.sequences) != (theirs.channels, theirs.sequences):
                return f"number or sequence of {modality} channels"
        return ""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a model folder's description."""
        path = folder / DESCRIPTION
        if not path.is_file():
            raise InputError(f"{folder} is not a model folder: it has no {DESCRIPTION}; run `ctmr train` first")
        return cls.model_validate_json(path.read_text())


def weights_file(direction: Direction) -> str:
    """Return the name of a direction's weights."""
    return f"{direction}.safetensors"


def save(folder: Path, description: Description, generators: Mapping[Direction, nn.Module]) -> None:
    """Write the description and every generator's weights."""
    from safetensors.torch import save as as_bytes

    folder.mkdir(parents=True, exist_ok=True)
    for direction, generator in generators.items():
        state = {k: v.detach().cpu().contiguous() for k, v in generator.state_dict().items()}
        # Not save_file: it tells a full disk as an error of its own, which no stage knows for one.
        (folder / weights_file(direction)).write_bytes(as_bytes(state))
    (folder / DESCRIPTION).write_text(description.to_json())


def make_translator(description: Description, direction: Direction, generator: nn.Module) -> Translator:
    """Return the translator of a direction around a generator."""
    from ctmr.networks.normaliser import normaliser_for
    from ctmr.networks.translator import Translator

    source, target = description.sides[direction.source], description.sides[direction.target]
    if target.target_range is None:
        raise InputError(
            f"direction {direction} would have to write {target.channels} channels of {direction.target}; "
            "a translator writes one"
        )
    return Translator(
        normaliser_for(source.unit, description.normalise),
        generator,
        normaliser_for(target.unit, description.normalise),
        target.target_range,
        description.neighbours,
    ).eval()


def load_generator(folder: Path, direction: Direction) -> nn.Module:
    """Rebuild a generator from a model folder, on the CPU, in eval mode; both directions are always there."""
    from safetensors.torch import load_file

    from ctmr.networks.generators import build_generator
    from ctmr.networks.stacks import stack_size

    description = Description.read(folder)
    source, target = description.sides[direction.source], description.sides[direction.target]
    slices = stack_size(description.neighbours)
    generator = build_generator(description.generator, slices * source.channels, slices * target.channels)
    generator.load_state_dict(load_file(str(folder / weights_file(direction))))
    return generator.eval()


def load_translator(folder: Path, direction: Direction) -> Translator:
    """Rebuild a translator from a model folder, on the CPU, in eval mode."""
    return make_translator(Description.read(folder), direction, load_generator(folder, direction))
