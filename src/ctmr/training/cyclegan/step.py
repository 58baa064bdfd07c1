"""One CycleGAN step in both directions: generators, then discriminators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from ctmr.data.augment import to_device
from ctmr.data.sampling import Batch
from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality
from ctmr.networks.blocks import mixes_images
from ctmr.networks.features import Features, build_features
from ctmr.recipe.training import Loss, Precision, Term
from ctmr.training.cyclegan.losses import (
    accuracy,
    adversarial_loss,
    cycle_loss,
    generator_weights,
    gradient_penalty,
    l1,
)
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.hardware.cuda_graphs import Replay, Results, Work

Pool = Callable[[Tensor], Tensor]

ACCURACY = "accuracy_"
"""Begins the names of the discriminators' accuracies, ``accuracy_ct`` and ``accuracy_mr``."""

Measures = dict[str, Tensor]
"""Unweighted losses by `Term`, and accuracies, as scalars."""


class CycleGanStep:
    """Losses and gradients of one step (Zhu et al. 2017, section 3); optimisation is the trainer's.

    Parameters
    ----------
    networks
        The four networks, on the training's device.
    loss
        Section of the recipe.
    precision
        bf16 runs the networks' forward passes under autocast; losses, weights and optimisers stay fp32.
    mixture
        Draws the gradient penalty's shares of what is real, ``[N, 1, 1, 1]`` in [0, 1], for N images; ``None`` takes
        PyTorch's global randomness.
    replay
        CUDA graphs; ``None`` computes each step anew. Optimisers must then hold their rate on the device (capturable).

    Attributes
    ----------
    notices
        What a person should know about the losses, one sentence each.
    adversarial
        False where no discriminator takes part.

    Raises
    ------
    InputError
        When the identity loss is asked for and the modalities differ in channels, or a gradient penalty and the
        discriminators have batch norm.
    """

    def __init__(
        self,
        networks: CycleGan,
        loss: Loss,
        precision: Precision,
        mixture: Callable[[int], Tensor] | None = None,
        replay: Replay | None = None,
    ) -> None:
        self._networks = networks
        self._bf16 = precision is Precision.BF16
        self._mixture = mixture or (lambda count: torch.rand((count, 1, 1, 1)))
        self.replay = replay
        self.notices: list[str] = []
        self._adversarial_loss = adversarial_loss(loss.adversarial)
        self._penalty = self._adversarial_loss.penalty_weight(loss)
        self._cycle_loss = cycle_loss(loss.cycle_terms)
        self._weights = generator_weights(loss)
        self.adversarial = loss.adversarial_weight > 0
        self._identity = max(self._weights[Term.IDENTITY_CT], self._weights[Term.IDENTITY_MR]) > 0
        self._supervised = loss.supervised.weight > 0
        self._reconstructs = (
            max(self._weights[t] for t in (Term.CYCLE_MR, Term.CYCLE_CT, Term.PERCEPTUAL_MR, Term.PERCEPTUAL_CT)) > 0
        )
        if not (self.adversarial or self._reconstructs or self._supervised):
            raise InputError(
                "loss.adversarial_weight, loss.cycle, loss.perceptual.weight and loss.supervised.weight are all 0, "
                "so there is nothing to train; set one of them"
            )
        self._features = None
        if loss.perceptual.weight > 0:
            self._features = build_features(loss.perceptual).to(next(networks.parameters()).device)
            self.notices.append(f"the perceptual loss compares features of {self._features.source}")
        mr, ct = networks.channels[Modality.MR], networks.channels[Modality.CT]
        if self._identity and mr != ct:
            raise InputError(
                f"the identity loss needs as many MR as CT channels, found {mr} and {ct}; set loss.identity to 0"
            )
        if self._penalty > 0 and mixes_images(networks.discriminators):
            raise InputError(
                "the gradient penalty needs discriminators that judge each image by itself, found batch norm; set "
                "network.discriminator.norm to instance, or loss.gradient_penalty to 0"
            )

    def generator_losses(self, batch: Batch, warmup: float | Tensor) -> tuple[Measures, Tensor, Tensor]:
        """Return the generators' losses and the detached fakes.

        Parameters
        ----------
        batch
            Real slices.
        warmup
            Weight of the L1 to the unpaired slices of the batch at this step; a scalar on the device is never 0.

        Returns
        -------
        losses
            Unweighted terms by name, and ``generator``, the weighted sum to differentiate.
        fake_ct, fake_mr
            ``[N, C, H, W]``.
        """
        networks, fp32 = self._networks, self._fp32
        real_mr, real_ct = batch.mr, batch.ct
        losses: Measures = {}
        with self._autocast(real_mr.device):
            if self._identity:
                fake_ct, idt_ct = networks.translate_each(Direction.MR2CT, real_mr, real_ct)
                fake_mr, idt_mr = networks.translate_each(Direction.CT2MR, real_ct, real_mr)
            else:
                fake_ct = networks.translate(Direction.MR2CT, real_mr)
                fake_mr = networks.translate(Direction.CT2MR, real_ct)
            if self._reconstructs:
                rec_mr = networks.translate(Direction.CT2MR, fake_ct)
                rec_ct = networks.translate(Direction.MR2CT, fake_mr)
            if self.adversarial:
                # A fake keeps the anatomy of its source, so it lies under the same skin.
                score_ct = networks.discriminate(Modality.CT, fake_ct, batch.mr_depth)
                score_mr = networks.discriminate(Modality.MR, fake_mr, batch.ct_depth)
        if self.adversarial:
            losses[Term.ADVERSARIAL_MR2CT] = self._adversarial_loss.of_generator(fp32(score_ct))
            losses[Term.ADVERSARIAL_CT2MR] = self._adversarial_loss.of_generator(fp32(score_mr))
        if self._reconstructs:
            losses[Term.CYCLE_MR] = self._cycle_loss(fp32(rec_mr), real_mr)
            losses[Term.CYCLE_CT] = self._cycle_loss(fp32(rec_ct), real_ct)
        if self._identity:
            losses[Term.IDENTITY_CT] = l1(fp32(idt_ct), real_ct)
            losses[Term.IDENTITY_MR] = l1(fp32(idt_mr), real_mr)
        if self._features is not None:
            losses[Term.PERCEPTUAL_MR] = self._perceptual_loss(self._features, rec_mr, real_mr)
            losses[Term.PERCEPTUAL_CT] = self._perceptual_loss(self._features, rec_ct, real_ct)
        if self._supervised:
            losses[Term.SUPERVISED_CT] = l1(fp32(fake_ct), real_ct)
            losses[Term.SUPERVISED_MR] = l1(fp32(fake_mr), real_mr)
        total = torch.stack([self._weights[Term(name)] * value for name, value in losses.items()]).sum()
        if isinstance(warmup, Tensor) or warmup > 0:
            losses[Term.WARMUP_CT] = l1(fp32(fake_ct), real_ct)
            losses[Term.WARMUP_MR] = l1(fp32(fake_mr), real_mr)
            total = total + warmup * (losses[Term.WARMUP_CT] + losses[Term.WARMUP_MR])
        losses[Term.GENERATOR] = total
        return losses, fp32(fake_ct).detach(), fp32(fake_mr).detach()

    def discriminator_losses(self, real: Batch, fake: Batch) -> Measures:
        """Return the discriminators' losses and accuracies; ``discriminator`` is the sum to differentiate.

        Parameters
        ----------
        real
            Real slices.
        fake
            Fakes to show, from the pools, and the depth maps of the slices that they were made of.
        """
        losses = self._losses_of_discriminator(Modality.CT, real, fake)
        losses |= self._losses_of_discriminator(Modality.MR, real, fake)
        total = losses[Term.DISCRIMINATOR_CT] + losses[Term.DISCRIMINATOR_MR]
        if self._penalty > 0:
            total = total + self._penalty * (losses[Term.GRADIENT_PENALTY_CT] + losses[Term.GRADIENT_PENALTY_MR])
        losses[Term.DISCRIMINATOR] = total
        return losses

    def __call__(
        self,
        batch: Batch,
        *,
        warmup: float,
        generator_optimiser: torch.optim.Optimizer | None,
        discriminator_optimiser: torch.optim.Optimizer | None,
        ct_pool: Pool,
        mr_pool: Pool,
    ) -> Measures:
        """Update the networks once and return the detached losses, without waiting for the device.

        Networks whose optimiser is ``None`` are left as they are, and the losses of their update are not computed.
        """
        losses: Measures = {}
        if generator_optimiser is None:
            fake_ct, fake_mr = self._fakes(batch)
        else:
            losses, (fake_ct, fake_mr) = self._update_generators(batch, warmup, generator_optimiser)
        if discriminator_optimiser is not None:
            fake_ct, ct_depth = _query(ct_pool, fake_ct, batch.mr_depth)
            fake_mr, mr_depth = _query(mr_pool, fake_mr, batch.ct_depth)
            fake = Batch(fake_mr, fake_ct, mr_depth, ct_depth)
            losses |= self._update_discriminators(batch, fake, discriminator_optimiser)
        return {str(name): value.detach() for name, value in losses.items()}

    def _update_generators(
        self, batch: Batch, warmup: float, optimiser: torch.optim.Optimizer
    ) -> tuple[Measures, tuple[Tensor, ...]]:
        discriminators = self._networks.discriminators

        def work(mr: Tensor, ct: Tensor, mr_depth: Tensor, ct_depth: Tensor, weight: Tensor | None) -> Results:
            discriminators.requires_grad_(False)
            losses, fake_ct, fake_mr = self.generator_losses(
                Batch(mr, ct, mr_depth, ct_depth), warmup if weight is None else weight
            )
            _descend(losses[Term.GENERATOR], optimiser)
            discriminators.requires_grad_(True)
            return losses, (fake_ct, fake_mr)

        weight = None
        if self.replay is not None and warmup > 0:
            # A number that the host holds would be recorded as it is.
            weight = to_device(torch.tensor(warmup), batch.mr.device)
        name = "generators" if weight is None else "generators in warm-up"
        return self._compute(name, work, batch.mr, batch.ct, batch.mr_depth, batch.ct_depth, weight)

    def _update_discriminators(self, real: Batch, fake: Batch, optimiser: torch.optim.Optimizer) -> Measures:
        def work(*images: Tensor) -> Results:
            losses = self.discriminator_losses(Batch(*images[:4]), Batch(*images[4:]))
            _descend(losses[Term.DISCRIMINATOR], optimiser)
            return losses, ()

        images = [(b.mr, b.ct, b.mr_depth, b.ct_depth) for b in (real, fake)]
        return self._compute("discriminators", work, *images[0], *images[1])[0]

    def _compute(self, name: str, work: Work, *inputs: Tensor | None) -> tuple[Measures, tuple[Tensor, ...]]:
        """Do work, or launch what is recorded of it."""
        losses, images = work(*inputs) if self.replay is None else self.replay(name, work, *inputs)
        return dict(losses), images

    @torch.no_grad()
    def _fakes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the fake CT and MR slices of a batch that the generators do not learn from."""
        with self._autocast(batch.mr.device):
            fake_ct = self._networks.translate(Direction.MR2CT, batch.mr)
            fake_mr = self._networks.translate(Direction.CT2MR, batch.ct)
        return self._fp32(fake_ct), self._fp32(fake_mr)

    def _losses_of_discriminator(self, modality: Modality, reals: Batch, fakes: Batch) -> Measures:
        """Return one discriminator's loss, accuracy and penalty."""
        name = modality.value.lower()
        (real, real_depth), (fake, fake_depth) = reals.of(modality), fakes.of(modality)
        with self._autocast(real.device):
            scores = self._networks.discriminate_both(modality, real, fake, real_depth, fake_depth)
        score_real, score_fake = map(self._fp32, scores)
        loss = self._adversarial_loss
        losses: Measures = {f"discriminator_{name}": loss.of_discriminator(score_real, score_fake)}
        if loss.threshold is not None:
            losses[f"{ACCURACY}{name}"] = accuracy(score_real, score_fake, loss.threshold)
        if self._penalty > 0:
            mix = self._mixture(len(real)).to(real)
            depth = None
            if real_depth is not None and fake_depth is not None:
                depth = mix * real_depth + (1.0 - mix) * fake_depth
            discriminator = partial(self._networks.discriminate, modality, depth=depth)
            losses[f"gradient_penalty_{name}"] = gradient_penalty(discriminator, real, fake, mix)
        return losses

    def _perceptual_loss(self, features: Features, rec: Tensor, real: Tensor) -> Tensor:
        """Mean squared difference of features, averaged over the layers (Johnson et al. 2016, eq. 2)."""
        with self._autocast(real.device):
            with torch.no_grad():
                of_real = features(real)
            of_rec = features(rec)
        layers = [(self._fp32(a) - self._fp32(b)).square().mean() for a, b in zip(of_rec, of_real, strict=True)]
        return torch.stack(layers).mean()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._bf16)

    def _fp32(self, x: Tensor) -> Tensor:
        return x.float() if self._bf16 else x


def _descend(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()


def _query(pool: Pool, fake: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if depth is None:
        return pool(fake), None
    shown = pool(torch.cat([fake, depth], dim=1))
    return shown[:, :-1], shown[:, -1:]
