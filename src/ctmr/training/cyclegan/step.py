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
from ctmr.networks.features import build_features
from ctmr.recipe.training import Adversarial, Loss, Precision, Term
from ctmr.training.cyclegan.losses import (
    REAL,
    accuracy,
    adversarial_loss,
    cycle_loss,
    discriminator_loss,
    gradient_penalty,
    l1,
)
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.hardware.cuda_graphs import Replay, Results

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
    rng
        CPU source of randomness of the gradient penalty.

    Attributes
    ----------
    notices
        What a person should know about the losses, one sentence each.
    judges
        False where no discriminator takes part.
    mixture
        Draws the gradient penalty's shares of what is real, ``[N, 1, 1, 1]`` in [0, 1], for N images.
    replay
        CUDA graphs; ``None`` computes each step anew. Optimisers must then hold their rate on the device (capturable).

    Raises
    ------
    InputError
        When the identity loss is asked for and the modalities differ in channels, or a gradient penalty and the
        discriminators have batch norm.
    """

    def __init__(
        self, networks: CycleGan, loss: Loss, precision: Precision, rng: torch.Generator | None = None
    ) -> None:
        self._networks = networks
        self._adversarial = adversarial_loss(loss.adversarial)
        self._penalty = loss.gradient_penalty if loss.adversarial is Adversarial.WASSERSTEIN else 0.0
        self._cycle = cycle_loss(loss.cycle_terms)
        self._bf16 = precision is Precision.BF16
        self.mixture: Callable[[int], Tensor] = partial(_mixture, rng=rng)
        self.notices: list[str] = []
        self.replay: Replay | None = None
        cycle_mr, cycle_ct = (loss.cycle if own is None else own for own in (loss.cycle_mr, loss.cycle_ct))
        self._identity = loss.identity > 0 and max(cycle_mr, cycle_ct) > 0
        self._weights = {
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
        self.judges = loss.adversarial_weight > 0
        self._cycles = max(cycle_mr, cycle_ct, loss.perceptual.weight) > 0
        self._supervised = loss.supervised.weight > 0
        if not (self.judges or self._cycles or self._supervised):
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
        nets, mr, ct = self._networks, batch.mr, batch.ct
        wide = self._widen
        losses: Measures = {}
        with self._autocast(mr.device):
            if self._identity:
                fake_ct, same_ct = nets.translate_each(Direction.MR2CT, mr, ct)
                fake_mr, same_mr = nets.translate_each(Direction.CT2MR, ct, mr)
            else:
                fake_ct, fake_mr = nets.translate(Direction.MR2CT, mr), nets.translate(Direction.CT2MR, ct)
            if self._cycles:
                cycle_mr = nets.translate(Direction.CT2MR, fake_ct)
                cycle_ct = nets.translate(Direction.MR2CT, fake_mr)
            if self.judges:
                # A fake keeps the anatomy of its source, so it lies under the same skin.
                ct_scores = nets.judge(Modality.CT, fake_ct, batch.mr_depth)
                mr_scores = nets.judge(Modality.MR, fake_mr, batch.ct_depth)
        if self.judges:
            losses[Term.ADVERSARIAL_MR2CT] = self._adversarial(wide(ct_scores), REAL)
            losses[Term.ADVERSARIAL_CT2MR] = self._adversarial(wide(mr_scores), REAL)
        if self._cycles:
            losses[Term.CYCLE_MR] = self._cycle(wide(cycle_mr), mr)
            losses[Term.CYCLE_CT] = self._cycle(wide(cycle_ct), ct)
        if self._identity:
            losses[Term.IDENTITY_CT] = l1(wide(same_ct), ct)
            losses[Term.IDENTITY_MR] = l1(wide(same_mr), mr)
        if self._features is not None:
            losses[Term.PERCEPTUAL_MR] = self._perceptual(cycle_mr, mr)
            losses[Term.PERCEPTUAL_CT] = self._perceptual(cycle_ct, ct)
        if self._supervised:
            losses[Term.SUPERVISED_CT] = l1(wide(fake_ct), ct)
            losses[Term.SUPERVISED_MR] = l1(wide(fake_mr), mr)
        total = torch.stack([self._weights[Term(name)] * value for name, value in losses.items()]).sum()
        if isinstance(warmup, Tensor) or warmup > 0:
            losses[Term.WARMUP_CT] = l1(wide(fake_ct), ct)
            losses[Term.WARMUP_MR] = l1(wide(fake_mr), mr)
            total = total + warmup * (losses[Term.WARMUP_CT] + losses[Term.WARMUP_MR])
        losses[Term.GENERATOR] = total
        return losses, wide(fake_ct).detach(), wide(fake_mr).detach()

    @torch.no_grad()
    def fakes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the fake CT and MR slices of a batch that the generators do not learn from."""
        with self._autocast(batch.mr.device):
            fake_ct = self._networks.translate(Direction.MR2CT, batch.mr)
            fake_mr = self._networks.translate(Direction.CT2MR, batch.ct)
        return self._widen(fake_ct), self._widen(fake_mr)

    def discriminator_losses(
        self, batch: Batch, fake_ct: Tensor, fake_mr: Tensor, ct_depth: Tensor | None, mr_depth: Tensor | None
    ) -> Measures:
        """Return the discriminators' losses and accuracies; ``discriminator`` is the sum to differentiate.

        Parameters
        ----------
        batch
            Real slices.
        fake_ct, fake_mr
            Fakes to show, from the pools.
        ct_depth, mr_depth
            Depth maps of the fake CT and the fake MR slices.
        """
        ct = self._discriminated(Modality.CT, batch.ct, fake_ct, batch.ct_depth, ct_depth)
        mr = self._discriminated(Modality.MR, batch.mr, fake_mr, batch.mr_depth, mr_depth)
        losses = {**ct, **mr}
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
            fake_ct, fake_mr = self.fakes(batch)
        else:
            losses, (fake_ct, fake_mr) = self._update_generators(batch, warmup, generator_optimiser)
        if discriminator_optimiser is not None:
            fake_ct, ct_depth = _query(ct_pool, fake_ct, batch.mr_depth)
            fake_mr, mr_depth = _query(mr_pool, fake_mr, batch.ct_depth)
            losses |= self._update_discriminators(batch, fake_ct, fake_mr, ct_depth, mr_depth, discriminator_optimiser)
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

        inputs = batch.mr, batch.ct, batch.mr_depth, batch.ct_depth
        if self.replay is None:
            losses, images = work(*inputs, None)  # type: ignore[arg-type]
        elif warmup > 0:
            weight = to_device(torch.tensor(warmup), batch.mr.device)
            losses, images = self.replay("generators in warm-up", work, *inputs, weight)
        else:
            losses, images = self.replay("generators", work, *inputs, None)
        return dict(losses), images

    def _update_discriminators(
        self,
        batch: Batch,
        fake_ct: Tensor,
        fake_mr: Tensor,
        ct_depth: Tensor | None,
        mr_depth: Tensor | None,
        optimiser: torch.optim.Optimizer,
    ) -> Measures:
        def work(*images: Tensor) -> Results:
            losses = self.discriminator_losses(Batch(*images[:4]), *images[4:])
            _descend(losses[Term.DISCRIMINATOR], optimiser)
            return losses, ()

        inputs = batch.mr, batch.ct, batch.mr_depth, batch.ct_depth, fake_ct, fake_mr, ct_depth, mr_depth
        if self.replay is None:
            return dict(work(*inputs)[0])  # type: ignore[arg-type]
        return dict(self.replay("discriminators", work, *inputs)[0])

    def _discriminated(
        self, modality: Modality, real: Tensor, fake: Tensor, real_depth: Tensor | None, fake_depth: Tensor | None
    ) -> Measures:
        """Return one discriminator's loss, accuracy and penalty."""
        name = modality.value.lower()
        with self._autocast(real.device):
            scores = self._networks.judge_both(modality, real, fake, real_depth, fake_depth)
        real_scores, fake_scores = map(self._widen, scores)
        losses: Measures = {
            f"discriminator_{name}": discriminator_loss(self._adversarial, real_scores, fake_scores),
        }
        if self._adversarial.threshold is not None:
            losses[f"{ACCURACY}{name}"] = accuracy(real_scores, fake_scores, self._adversarial.threshold)
        if self._penalty > 0:
            mix = self.mixture(len(real)).to(real)
            depth = None
            if real_depth is not None and fake_depth is not None:
                depth = mix * real_depth + (1.0 - mix) * fake_depth
            judge = partial(self._networks.judge, modality, depth=depth)
            losses[f"gradient_penalty_{name}"] = gradient_penalty(judge, real, fake, mix)
        return losses

    def _perceptual(self, again: Tensor, image: Tensor) -> Tensor:
        """Mean squared difference of features, averaged over the layers (Johnson et al. 2016, eq. 2)."""
        assert self._features is not None
        with self._autocast(image.device):
            with torch.no_grad():
                wanted = self._features(image)
            found = self._features(again)
        layers = [(self._widen(a) - self._widen(b)).square().mean() for a, b in zip(found, wanted, strict=True)]
        return torch.stack(layers).mean()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._bf16)

    def _widen(self, x: Tensor) -> Tensor:
        return x.float() if self._bf16 else x


def _mixture(count: int, *, rng: torch.Generator | None) -> Tensor:
    return torch.rand((count, 1, 1, 1), generator=rng)


def _descend(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()


def _query(pool: Pool, fake: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if depth is None:
        return pool(fake), None
    shown = pool(torch.cat([fake, depth], dim=1))
    return shown[:, :-1], shown[:, -1:]
