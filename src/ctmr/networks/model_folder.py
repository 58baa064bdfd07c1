"""The model folder: safetensors and one JSON description, from which translators are rebuilt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import InputError
from ctmr.imaging.grid import Grid
from ctmr.imaging.volume import Direction, Unit
from ctmr.recipe.recipe import Normalise
from ctmr.recipe.training import Generator

if TYPE_CHECKING:
    from torch import nn

    from ctmr.networks.translator import Translator

DESCRIPTION = "model.json"


@dataclass(frozen=True)
class ModalityDescription:
    """One modality of a model.

    Attributes
    ----------
    unit
        Of its images.
    channels
        Images a subject.
    sequences
        MR sequence of each channel, empty strings where unknown.
    target_range
        Range (low, high) that outputs of this modality are given; ``None`` when it cannot be an output.
    """

    unit: Unit
    channels: int
    sequences: tuple[str, ...]
    target_range: tuple[float, float] | None


@dataclass(frozen=True)
class Description:
    """Description of what the weights mean.

    Attributes
    ----------
    sides
        Modality → its side.
    neighbours
        Slices on either side that the generators take and give beside their own.
    """

    generator: Generator
    normalise: Normalise
    grid: Grid
    sides: Mapping[str, ModalityDescription]
    directions: tuple[Direction, ...]
    neighbours: int = 0

    def to_json(self) -> str:
        """Return the content of ``model.json``."""
        tree: dict[str, Any] = {
            "generator": self.generator.model_dump(mode="json"),
            "normalise": self.normalise.model_dump(mode="json"),
            "grid": self.grid.model_dump(mode="json"),
            "directions": [d.value for d in self.directions],
            "sides": {
                m: {
                    "unit": s.unit.value,
                    "channels": s.channels,
                    "sequences": s.sequences,
                    "target_range": s.target_range,
                }
                for m, s in self.sides.items()
            },
        }
        # Left out at 0, so that models of single slices stay what they were before there were stacks.
        if self.neighbours:
            tree["neighbours"] = self.neighbours
        return json.dumps(tree, indent=1, sort_keys=True) + "\n"

    @staticmethod
    def read(folder: Path) -> Description:
        """Read a model folder's description."""
        path = folder / DESCRIPTION
        if not path.is_file():
            raise InputError(f"{folder} is not a model folder: it has no {DESCRIPTION}; run `ctmr train` first")
        tree: dict[str, Any] = json.loads(path.read_text())
        sides = {
            m: ModalityDescription(
                Unit(s["unit"]),
                int(s["channels"]),
                tuple(s["sequences"]),
                None if s["target_range"] is None else (float(s["target_range"][0]), float(s["target_range"][1])),
            )
            for m, s in tree["sides"].items()
        }
        return Description(
            Generator.model_validate(tree["generator"]),
            Normalise.model_validate(tree["normalise"]),
            Grid.model_validate(tree["grid"]),
            sides,
            tuple(Direction(d) for d in tree["directions"]),
            int(tree.get("neighbours", 0)),
        )


def weights_file(direction: Direction) -> str:
    """Return the name of a direction's weights."""
    return f"{direction}.safetensors"


def save(folder: Path, description: Description, generators: Mapping[Direction, nn.Module]) -> None:
    """Write the description and every generator's weights."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for direction, generator in generators.items():
        state = {k: v.detach().cpu().contiguous() for k, v in generator.state_dict().items()}
        save_file(state, str(folder / weights_file(direction)))
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
