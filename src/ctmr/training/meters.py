"""Interval: a training's measures since its last report, left on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Failure:
    """The first step with a measure that is not a finite number.

    Attributes
    ----------
    step
        Steps done with it.
    names
        Measures that were not finite there.
    rng_state
        Of the training's source of randomness before that step: it draws the same batch again.
    """

    step: int
    names: tuple[str, ...]
    rng_state: Tensor


@dataclass(frozen=True)
class _Step:
    step: int
    names: tuple[str, ...]
    values: Tensor
    rng_state: Tensor


class Interval:
    """Sums and counts of measures.

    A step leaves one small tensor; nothing waits for the device before `settle`. Sums are kept in float32 and in the
    order of the steps, so that it does not matter how often, or where, they are settled.
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._sums: dict[str, np.float32] = {}
        self._counts: dict[str, int] = {}
        self.seconds = 0.0
        """Wall time of the steps."""

    def add(self, step: int, measures: Mapping[str, Tensor], rng_state: Tensor) -> None:
        """Take a step's measures, float32 scalars on the device."""
        self._steps.append(_Step(step, tuple(measures), torch.stack(list(measures.values())), rng_state))

    def settle(self, average: Callable[[Tensor], None]) -> Failure | None:
        """Add up what steps have left, after `average` has averaged it over processes in place; None: all finite."""
        if not self._steps:
            return None
        flat = torch.cat([s.values for s in self._steps])
        average(flat)
        parts = torch.split(flat.cpu(), [len(s.names) for s in self._steps])
        failure = None
        for one, part in zip(self._steps, parts, strict=True):
            values: list[np.float32] = list(part.numpy())
            bad = tuple(n for n, v in zip(one.names, values, strict=True) if not np.isfinite(v))
            if bad and failure is None:
                failure = Failure(one.step, bad, one.rng_state)
            for name, value in zip(one.names, values, strict=True):
                self._sums[name] = self._sums[name] + value if name in self._sums else value
                self._counts[name] = self._counts.get(name, 0) + 1
        self._steps.clear()
        return failure

    def means(self) -> dict[str, float]:
        """Return the mean of each measure over the steps that had it, of what is settled."""
        return {name: float(value) / self._counts[name] for name, value in self._sums.items()}

    @property
    def count(self) -> int:
        """Steps that are settled."""
        return max(self._counts.values(), default=0)

    def state(self) -> dict[str, Any]:
        """Return what is settled as plain JSON types; float32 survives exactly."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts), "seconds": self.seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._steps.clear()
        self._sums = {name: np.float32(value) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
        self.seconds = float(state["seconds"])
