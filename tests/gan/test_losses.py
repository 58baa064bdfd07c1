"""Losses, schedules and the registry of adversarial losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctmr.gan.losses import (
    adversarial_loss,
    discriminator_loss,
    l1,
    learning_rate_factor,
    warmup_weight,
)
from ctmr.recipe import Adversarial

SCORES = np.array([[-1.5, 0.25], [2.0, 0.0]])


@pytest.mark.parametrize("kind", list(Adversarial))
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_every_adversarial_loss_equals_its_formula_in_numpy(kind: Adversarial, target: float) -> None:
    p = 1 / (1 + np.exp(-SCORES))
    expected = {
        Adversarial.LEAST_SQUARES: ((SCORES - target) ** 2).mean(),
        Adversarial.BCE: -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(),
    }[kind]
    assert adversarial_loss(kind)(torch.from_numpy(SCORES), target).item() == pytest.approx(expected)


def test_the_discriminator_loss_is_half_the_sum_of_real_and_fake() -> None:
    real, fake = torch.tensor([0.5]), torch.tensor([2.0])
    loss = discriminator_loss(adversarial_loss(Adversarial.LEAST_SQUARES), real, fake)
    assert loss.item() == pytest.approx(0.5 * (0.25 + 4.0))


def test_l1_is_the_mean_absolute_difference() -> None:
    assert l1(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 3.0])).item() == 2.5


def test_learning_rate_is_constant_then_falls_linearly() -> None:
    factors = [learning_rate_factor(n, 10, 0.5) for n in range(11)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.0])


def test_learning_rate_stays_when_the_constant_part_is_everything() -> None:
    assert learning_rate_factor(9, 10, 1.0) == 1.0
    assert learning_rate_factor(5, 10, 0.0) == 0.5


def test_warmup_falls_linearly_to_zero() -> None:
    weights = [warmup_weight(20.0, 0.4, n, 10) for n in range(6)]
    assert weights == pytest.approx([20, 15, 10, 5, 0, 0])
    assert warmup_weight(20.0, 0.0, 0, 10) == 0.0
