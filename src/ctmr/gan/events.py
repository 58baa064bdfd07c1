"""Events that the trainer emits; whoever runs it decides what to print, track or draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class NoticeEvent:
    """Something a person should know about this training, in one sentence."""

    step: int
    message: str


@dataclass(frozen=True)
class StepEvent:
    """Losses and speed since the last such event.

    Attributes
    ----------
    step
        Steps done.
    losses
        Mean of each unweighted term over those steps; ``generator`` and ``discriminator`` are the weighted sums.
    learning_rates
        Of ``generator`` and ``discriminator`` at the last of these steps.
    seconds_per_step
        Wall time, without what the receiver of events did meanwhile.
    accuracy
        Share of scores on the right side, by discriminator (``ct``, ``mr``); 0.5 is guessing. Empty where scores have
        no threshold.
    named
        The recipe's own names of losses (``loss.log_as``).
    """

    step: int
    losses: Mapping[str, float]
    learning_rates: Mapping[str, float]
    seconds_per_step: float
    accuracy: Mapping[str, float] = field(default_factory=dict)
    named: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleEvent:
    """Fixed training slices, translated and brought back by the generators that would be exported.

    Attributes
    ----------
    mr, fake_ct, cycle_mr, ct, fake_mr, cycle_ct
        ``[N, C, H, W]`` float32 in [-1, 1] on the CPU.
    """

    step: int
    mr: Tensor
    fake_ct: Tensor
    cycle_mr: Tensor
    ct: Tensor
    fake_mr: Tensor
    cycle_ct: Tensor


@dataclass(frozen=True)
class CheckpointEvent:
    """A checkpoint is on disk, complete."""

    step: int
    path: Path


@dataclass(frozen=True)
class DoneEvent:
    """All steps are done."""

    step: int


Event = NoticeEvent | StepEvent | SampleEvent | CheckpointEvent | DoneEvent
