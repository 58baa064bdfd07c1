"""Losses of the CycleGAN: adversarial (least squares, cross-entropy), and L1 for cycle, identity and warm-up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ctmr.recipe import Adversarial

REAL, FAKE = 1.0, 0.0


def least_squares(scores: Tensor, target: float) -> Tensor:
    """Mean of (score - target)² (Mao et al. 2017, arXiv:1611.04076, eq. 9 with a = 0 and b = c = 1)."""
    return (scores - target).square().mean()


def cross_entropy(scores: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy of sigmoid(score) (Goodfellow et al. 2014, non-saturating for the generator)."""
    return functional.binary_cross_entropy_with_logits(scores, torch.full_like(scores, target))


AdversarialLoss = Callable[[Tensor, float], Tensor]

_ADVERSARIAL: dict[Adversarial, AdversarialLoss] = {
    Adversarial.LEAST_SQUARES: least_squares,
    Adversarial.BCE: cross_entropy,
}


def adversarial_loss(kind: Adversarial) -> AdversarialLoss:
    """Return the loss ``(scores, target) → scalar`` that a recipe names; targets are `REAL` and `FAKE`."""
    return _ADVERSARIAL[kind]


def discriminator_loss(loss: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum over real and fake scores: the discriminator learns half as fast (Zhu et al. 2017, section 7.1)."""
    return 0.5 * (loss(real, REAL) + loss(fake, FAKE))


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference: cycle loss (Zhu et al. 2017, eq. 2), identity loss (section 5.2) and warm-up."""
    return functional.l1_loss(a, b)


def warmup_weight(weight: float, fraction: float, step: int, steps: int) -> float:
    """Return the warm-up's weight at a step (from 0): linear from `weight` to 0 over `fraction` of all steps."""
    length = fraction * steps
    return weight * max(0.0, 1.0 - step / length) if length > 0 else 0.0


def learning_rate_factor(step: int, steps: int, constant_fraction: float) -> float:
    """Return the factor on the learning rate at a step (from 0).

    1 over the first `constant_fraction` of the steps, then linear so that it would reach 0 at step `steps`
    (Zhu et al. 2017, section 4: constant for 100 epochs, to zero over the next 100).
    """
    constant = constant_fraction * steps
    return 1.0 if step < constant else max(0.0, (steps - step) / (steps - constant)) if constant < steps else 1.0
