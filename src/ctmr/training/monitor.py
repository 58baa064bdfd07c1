"""Monitor: reads the alarms that a recipe asks for while a training runs, and says when one sounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctmr.data.sampling import TrainingData
from ctmr.imaging.volume import Direction, Modality
from ctmr.recipe.training import Alarm, Loss, Term, Train
from ctmr.training.alarms import ADVICE, Reading, discriminator_won, image_readings
from ctmr.training.cyclegan.losses import adversarial_loss
from ctmr.training.events import AlarmEvent, StepEvent

PROBE_SLICES = 8
"""Slices of each modality that are translated for a reading."""
_ADVERSARIAL = {Modality.CT: Term.ADVERSARIAL_MR2CT, Modality.MR: Term.ADVERSARIAL_CT2MR}


class Monitor:
    """The alarms of one training.

    Parameters
    ----------
    train, loss
        Sections of the recipe.
    data
        What is trained on; the readings' slices are fixed ones of it.

    Attributes
    ----------
    readings
        (step, reading), all so far.
    sounded
        (step, name) of the alarms that have sounded.
    """

    def __init__(self, train: Train, loss: Loss, data: TrainingData) -> None:
        self._alarms = train.alarms
        self._first = train.alarms.after * train.steps
        self._unconvincing = adversarial_loss(loss.adversarial).unconvincing if loss.adversarial_weight > 0 else None
        self._data = data
        self._in_a_row: dict[str, int] = {}
        self.readings: list[tuple[int, Reading]] = []
        self.sounded: list[tuple[int, str]] = []

    def of_report(self, report: StepEvent) -> list[Reading]:
        """Return the readings that a report allows."""
        if Alarm.DISCRIMINATOR_WON not in self._alarms.watch or self._unconvincing is None:
            return []
        return [
            discriminator_won(report.accuracy[side.lower()], report.losses[term], self._unconvincing, side)
            for side, term in _ADVERSARIAL.items()
            if side.lower() in report.accuracy and term in report.losses
        ]

    @torch.no_grad()
    def of_images(self, generators: nn.ModuleDict) -> list[Reading]:
        """Translate the fixed slices and return the readings that they allow; networks are in eval mode."""
        watched = set(self._alarms.watch) - {Alarm.DISCRIMINATOR_WON}
        if not watched:
            return []
        batch = self._data.examples(PROBE_SLICES)
        if batch.mr.shape[1] != batch.ct.shape[1]:
            # No network can hand on an input of another form.
            watched.discard(Alarm.IDENTITY_SHORTCUT)
        slices = {Modality.MR: _middle(batch.mr), Modality.CT: _middle(batch.ct)}
        fakes = {
            Modality.CT: _middle(_each(generators[Direction.MR2CT.value], batch.mr)),
            Modality.MR: _middle(_each(generators[Direction.CT2MR.value], batch.ct)),
        }
        heads = self._data.example_heads(PROBE_SLICES)
        masks = None if heads is None else {Modality.MR: heads[0], Modality.CT: heads[1]}
        return [r for r in image_readings(slices, fakes, masks) if r.alarm in watched]

    def sound(self, step: int, readings: Iterable[Reading]) -> list[AlarmEvent]:
        """Count readings in a row and return the alarms that sound with them."""
        sounding = []
        for reading in readings:
            self.readings.append((step, reading))
            if step < self._first:
                continue
            count = self._in_a_row[reading.name] = self._in_a_row.get(reading.name, 0) + 1 if reading.beyond else 0
            if count == self._alarms.patience:
                sounding.append(self._event(step, reading))
                self.sounded.append((step, reading.name))
        return sounding

    def state(self) -> dict[str, Any]:
        """Return the counts and readings as plain JSON types."""
        rows = [[step, r.alarm.value, r.side.value, r.value, r.limit, r.beyond] for step, r in self.readings]
        return {"in_a_row": dict(self._in_a_row), "readings": rows, "sounded": [list(s) for s in self.sounded]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._in_a_row = dict(state["in_a_row"])
        self.sounded = [(step, name) for step, name in state["sounded"]]
        self.readings = [
            (step, Reading(Alarm(alarm), Modality(side), value, limit, beyond))
            for step, alarm, side, value, limit, beyond in state["readings"]
        ]

    def _event(self, step: int, reading: Reading) -> AlarmEvent:
        patience = self._alarms.patience
        times = "" if patience == 1 else f" in {patience} readings in a row"
        words = reading.alarm.replace("_", " ")
        side = "above" if reading.value > reading.limit else "below"
        message = (
            f"alarm {words} of synthetic {reading.side} at step {step}: {reading.value:.3g} is {side} the limit "
            f"{reading.limit:g}{times}; {ADVICE[reading.alarm]}"
        )
        return AlarmEvent(step, reading, message, reading.alarm in self._alarms.stop)


def _each(generator: nn.Module, images: Tensor) -> Tensor:
    """Translate one slice at a time: as much memory as a training with batch 1."""
    return torch.cat([generator(image) for image in torch.split(images, 1)])


def _middle(images: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``[N, C, H, W]`` → the middle channel, ``[N, H, W]`` float32."""
    plain: np.ndarray[Any, np.dtype[np.float32]] = images[:, images.shape[1] // 2].float().cpu().numpy()
    return plain
