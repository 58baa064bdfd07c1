"""Events that the trainer emits; whoever runs it decides what to print, track or draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ctmr.training.alarms import Reading


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
class ReadingEvent:
    """Reading of the alarms at a step, beyond their limits or not."""

    step: int
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class AlarmEvent:
    """An alarm sounds: its readings were beyond the limit for ``train.alarms.patience`` times in a row.

    It sounds once, and again only after a reading within the limit.

    Attributes
    ----------
    reading
        The last of these readings.
    message
        What it means and what to do, in one sentence.
    stops
        The training ends with this event.
    """

    step: int
    reading: Reading
    message: str
    stops: bool


@dataclass(frozen=True)
class SampleEvent:
    """Slices that stay the same for a whole training, translated and brought back by the generators to be exported.

    Attributes
    ----------
    real_mr, fake_ct, rec_mr, real_ct, fake_mr, rec_ct
        ``[N, S * C, H, W]`` float32 in [-1, 1] on the CPU.
    """

    step: int
    real_mr: Tensor
    fake_ct: Tensor
    rec_mr: Tensor
    real_ct: Tensor
    fake_mr: Tensor
    rec_ct: Tensor


@dataclass(frozen=True)
class CheckpointEvent:
    """A checkpoint is on disk, complete and flushed.

    It is written while training goes on, so `step`, the steps that it holds, may lie before other events'.
    """

    step: int
    path: Path


@dataclass(frozen=True)
class DoneEvent:
    """All steps are done."""

    step: int


Event = NoticeEvent | StepEvent | ReadingEvent | AlarmEvent | SampleEvent | CheckpointEvent | DoneEvent
