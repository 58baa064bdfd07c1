"""A training that is killed again and again ends, bit by bit, where one ends that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from killed_training import KILLS, STEPS, Victim, data, kill_repeatedly, recipe

from ctmr.training.trainer import Trainer

pytestmark = [pytest.mark.drill, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_a_killed_training_ends_bit_identical_to_one_that_never_stopped(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    sections = recipe(kind)
    whole = Trainer(*sections, data(), report_every=6, samples=1)
    list(whole.run())
    folder = tmp_path / "checkpoints"
    victim = Victim("training", tmp_path / "errors.log")
    try:
        moments = kill_repeatedly(
            victim,
            lambda: set(folder.glob("*")) | set(folder.glob(".step-*")),
            {"kind": kind, "folder": str(folder)},
        )
    finally:
        victim.stop()
    print(f"{kind}, killed {moments}")
    assert sum(moments.values()) == KILLS
    resumed = Trainer(*sections, data(), checkpoints=folder, report_every=6, samples=1)
    assert resumed.resume() and resumed.step == STEPS
    (one, _), (two, _) = whole.state(), resumed.state()
    assert set(one) == set(two) and [n for n in one if not torch.equal(one[n], two[n])] == []
    assert without_seconds(whole) == without_seconds(resumed)
    assert whole.readings and whole.state()[1]["watch"] == resumed.state()[1]["watch"]
    assert sorted(p.name[:5] for p in folder.iterdir()) == ["step-", "step-"]


def without_seconds(trainer: Trainer) -> list[Any]:
    return [(r.step, r.losses, r.learning_rates, r.accuracy, r.named) for r in trainer.reports]
