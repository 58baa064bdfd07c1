"""Candidates: what is measured side by side, from the model itself to translators that never learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.errors import InputError
from ctmr.evaluation.inference import cycle_slices, translate_array
from ctmr.evaluation.testset import Case, TestSet
from ctmr.imaging.volume import Direction
from ctmr.networks.model_folder import Description, load_generator, load_translator

if TYPE_CHECKING:
    from torch import nn

    from ctmr.metrics.baselines import Baseline
    from ctmr.networks.translator import Translator

OWN = "this model"
AS_TRAINED = "this model, inputs with the training-only steps"


@dataclass(frozen=True)
class Candidate:
    """One translator of the comparison.

    Attributes
    ----------
    name
        As tables call it.
    translate
        Case → ``[D, H, W]`` on the grid, in the target's unit.
    as_trained
        Its inputs went through the training-only steps.
    """

    name: str
    translate: Callable[[Case], NDArray[np.float32]]
    as_trained: bool = False


@dataclass(frozen=True)
class Model:
    """Both generators of a model folder, on the CPU, seen from one direction."""

    folder: Path
    description: Description
    direction: Direction
    forward: Translator
    backward: nn.Module

    @staticmethod
    def load(folder: Path, direction: Direction) -> Model:
        """Rebuild both generators; InputError when the direction would write several channels."""
        return Model(
            folder,
            Description.read(folder),
            direction,
            load_translator(folder, direction),
            load_generator(folder, direction.reverse),
        )

    def translate(self, array: NDArray[Any], slices: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Translate ``[C, D, H, W]``, or some of its slices; see `translate_array`."""
        return translate_array(self.forward, array, slices)

    def cycle(self, array: NDArray[Any], slices: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return slices as trained and their reconstructions, ``[N, C, H, W]``; see `cycle_slices`."""
        forward = self.forward
        return cycle_slices(forward.source, forward.generator, self.backward, array, slices, forward.neighbours)

    def candidate(self, name: str = OWN) -> Candidate:
        """Return the model as a client sees it: its inputs come by the served path."""
        return Candidate(name, lambda case: self.translate(case.array))

    def candidate_as_trained(self) -> Candidate:
        """Return the model with inputs that also went through the training-only steps."""

        def translate(case: Case) -> NDArray[np.float32]:
            if case.as_trained is None:
                raise InputError(f"case {case.name} was prepared without training-only steps; preprocess it again")
            return self.translate(case.as_trained.array)

        return Candidate(AS_TRAINED, translate, as_trained=True)


def fit_all_baselines(test_set: TestSet) -> dict[str, Baseline]:
    """Fit every translator that sees no pairs, on the training shards."""
    from ctmr.metrics.baselines import fit_baselines

    direction = test_set.direction
    return fit_baselines(test_set.training(direction.source), test_set.training(direction.target), direction)


def baseline_candidates(fitted: Mapping[str, Baseline]) -> list[Candidate]:
    """Return fitted baselines as candidates."""

    def candidate(name: str, translator: Baseline) -> Candidate:
        return Candidate(name, lambda case: translator(case.array, case.head, first_level=case.level))

    return [candidate(name, translator) for name, translator in fitted.items()]
