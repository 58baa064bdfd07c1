"""Losses of the CycleGAN: adversarial, cycle, and L1 for identity and warm-up; schedules of weights and rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ctmr.errors import InputError
from ctmr.metrics.protocol import SsimWindow
from ctmr.metrics.ssim import GAUSSIAN_RADIUS_PX, ssim
from ctmr.recipe.training import ADVERSARIAL_LOSSES, CYCLE_TERMS, CycleTerms, Loss, Term

REAL, FAKE = 1.0, 0.0
SURE_SCORE = 0.05
"""A fake whose patches score this, where real ones score 1 and others 0, convinces nobody."""
DATA_RANGE = 2.0
"""Of normalised images, [-1, 1]."""

_TINY = 1e-12


def least_squares(scores: Tensor, target: float) -> Tensor:
    """Mean of (score - target)² (Mao et al. 2017, arXiv:1611.04076, eq. 9 with a = 0 and b = c = 1)."""
    return (scores - target).square().mean()


def least_squares_sigmoid(scores: Tensor, target: float) -> Tensor:
    """Mean of (sigmoid(score) - target)²: least squares for a discriminator that ends in a sigmoid."""
    return least_squares(scores.sigmoid(), target)


def cross_entropy(scores: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy of sigmoid(score) (Goodfellow et al. 2014, non-saturating for the generator)."""
    return functional.binary_cross_entropy_with_logits(scores, torch.full_like(scores, target))


def wasserstein(scores: Tensor, target: float) -> Tensor:
    """Mean score of fakes, minus the mean score of what is real or should pass for it (Arjovsky et al. 2017, eq. 3)."""
    return -scores.mean() if target == REAL else scores.mean()


@dataclass(frozen=True)
class AdversarialLoss:
    """An adversarial loss.

    Attributes
    ----------
    score
        ``(scores, target) → scalar``; targets are `REAL` and `FAKE`.
    share
        Factor on the discriminator's sum over real and fake: one half lets it learn half as fast as the generator
        (Zhu et al. 2017, section 7.1); a Wasserstein critic should be ahead.
    threshold
        Score above which an image is taken for real; ``None`` where scores have no zero.
    unconvincing
        The generator's loss when every patch of its fakes scores `SURE_SCORE`; ``None`` where scores have no scale.
    penalised
        Whether ``loss.gradient_penalty`` belongs to it.
    generator
        ``(scores of fakes) → scalar``, the generator's loss, where it is not `score` with target `REAL`.
    """

    score: Callable[[Tensor, float], Tensor]
    share: float = 0.5
    threshold: float | None = 0.0
    unconvincing: float | None = None
    penalised: bool = False
    generator: Callable[[Tensor], Tensor] | None = None

    def of_generator(self, fake: Tensor) -> Tensor:
        """Return the generator's loss of the scores of its fakes, which should pass for real."""
        return self.score(fake, REAL) if self.generator is None else self.generator(fake)

    def of_discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's loss: the sum over real and fake scores, times `share`."""
        return self.share * (self.score(real, REAL) + self.score(fake, FAKE))

    def penalty_weight(self, loss: Loss) -> float:
        """Return the weight of the gradient penalty in a recipe's losses."""
        return loss.gradient_penalty if self.penalised else 0.0


LEAST_SQUARES = AdversarialLoss(least_squares, threshold=(REAL + FAKE) / 2, unconvincing=(REAL - SURE_SCORE) ** 2)
LEAST_SQUARES_SIGMOID = AdversarialLoss(least_squares_sigmoid, unconvincing=(REAL - SURE_SCORE) ** 2)
BCE = AdversarialLoss(cross_entropy, unconvincing=-math.log(SURE_SCORE))
WASSERSTEIN = AdversarialLoss(wasserstein, share=1.0, threshold=None, penalised=True)


def adversarial_loss(kind: str) -> AdversarialLoss:
    """Return the loss that a recipe names."""
    row: AdversarialLoss = ADVERSARIAL_LOSSES[kind]
    return row


def accuracy(real: Tensor, fake: Tensor, threshold: float) -> Tensor:
    """Share of scores on the right side of the threshold, real and fake images counting alike; 0.5 is guessing."""
    return 0.5 * ((real > threshold).float().mean() + (fake <= threshold).float().mean())


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Return the mean of (‖∇D(x̂)‖₂ - 1)² (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3).

    Parameters
    ----------
    discriminator
        ``[N, C, H, W]`` → scores ``[N, …]``; an image's score is the mean over its patches.
    real, fake
        ``[N, C, H, W]``.
    mix
        ``[N, 1, 1, 1]`` in [0, 1]: x̂ is ``mix · real + (1 - mix) · fake``.
    """
    between = (mix * real + (1.0 - mix) * fake).requires_grad_(True)
    scores = discriminator(between).flatten(1).mean(dim=1)
    (slope,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    length = (slope.flatten(1).square().sum(dim=1) + _TINY).sqrt()
    return (length - 1.0).square().mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference: cycle loss (Zhu et al. 2017, eq. 2), identity loss (section 5.2) and warm-up."""
    return functional.l1_loss(a, b)


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference."""
    return functional.mse_loss(a, b)


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM of images in [-1, 1], ``[N, C, H, W]``: `ctmr.metrics.ssim.ssim` with the Gaussian window.

    Raises
    ------
    InputError
        When the images are smaller than the window.
    """
    side = 2 * GAUSSIAN_RADIUS_PX + 1
    height, width = a.shape[-2:]
    if min(height, width) < side:
        raise InputError(
            f"the SSIM cycle loss needs slices of at least {side} pixels, found {height}×{width}; "
            "enlarge preprocess.size or set loss.cycle_terms.ssim to 0"
        )
    return 1.0 - ssim(a, b, data_range=DATA_RANGE, window=SsimWindow.GAUSSIAN_11_2D)


def cycle_loss(terms: CycleTerms) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the weighted sum of differences ``(rec, real) → scalar`` that a recipe asks for."""
    weighted = [(weight, CYCLE_TERMS[name]) for name, weight in terms.model_dump().items() if weight > 0]

    def loss(rec: Tensor, real: Tensor) -> Tensor:
        return sum((weight * term(rec, real) for weight, term in weighted), real.new_zeros(()))

    return loss


def generator_weights(loss: Loss) -> dict[Term, float]:
    """Return the weight of every term of the generators' loss but the warm-up's, which falls with the step."""
    cycle_mr, cycle_ct = (loss.cycle if own is None else own for own in (loss.cycle_mr, loss.cycle_ct))
    return {
        Term.ADVERSARIAL_MR2CT: loss.adversarial_weight,
        Term.ADVERSARIAL_CT2MR: loss.adversarial_weight,
        Term.CYCLE_MR: cycle_mr,
        Term.CYCLE_CT: cycle_ct,
        Term.IDENTITY_CT: loss.identity * cycle_ct,
        Term.IDENTITY_MR: loss.identity * cycle_mr,
        Term.PERCEPTUAL_MR: loss.perceptual.weight,
        Term.PERCEPTUAL_CT: loss.perceptual.weight,
        Term.SUPERVISED_CT: loss.supervised.weight,
        Term.SUPERVISED_MR: loss.supervised.weight,
    }


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
