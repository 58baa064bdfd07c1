"""One CycleGAN step in both directions: generators, then discriminators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ctmr.data.sampling import Batch
from ctmr.errors import InputError
from ctmr.gan.losses import REAL, adversarial_loss, discriminator_loss, l1
from ctmr.networks.discriminators import build_discriminator
from ctmr.networks.generators import build_generator
from ctmr.recipe import Loss, Network, Precision
from ctmr.volume import Direction, Modality

Pool = Callable[[Tensor], Tensor]


class CycleGan(nn.Module):
    """The four networks: `generators` by direction, `discriminators` by the modality they judge.

    Parameters
    ----------
    network
        Section of the recipe.
    mr_channels, ct_channels
        Channels of the two modalities.
    size
        Slices (H, W), checked against the architecture when given.
    rng
        CPU source of the initial weights.
    """

    def __init__(
        self,
        network: Network,
        *,
        mr_channels: int,
        ct_channels: int,
        size: tuple[int, int] | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        channels = {Modality.MR: mr_channels, Modality.CT: ct_channels}
        self.channels = channels
        self.generators = nn.ModuleDict(
            {
                d.value: build_generator(network.generator, channels[d.source], channels[d.target], size=size, rng=rng)
                for d in Direction
            }
        )
        self.discriminators = nn.ModuleDict(
            {m.value: build_discriminator(network.discriminator, channels[m], rng=rng) for m in Modality}
        )

    def translate(self, direction: Direction, image: Tensor) -> Tensor:
        """``[N, C, H, W]`` of the source → the target modality, both in [-1, 1]."""
        out: Tensor = self.generators[direction.value](image)
        return out

    def judge(self, modality: Modality, image: Tensor, depth: Tensor | None) -> Tensor:
        """Score images ``[N, C, H, W]`` that should look like `modality`."""
        out: Tensor = self.discriminators[modality.value](image, depth)
        return out


class CycleGanStep:
    """Losses and gradients of one step (Zhu et al. 2017, section 3); optimisation is the trainer's.

    Parameters
    ----------
    networks
        The four networks.
    loss
        Section of the recipe.
    precision
        bf16 runs the networks' forward passes under autocast; losses, weights and optimisers stay fp32.

    Raises
    ------
    InputError
        When the identity loss is asked for and the modalities differ in channels.
    """

    def __init__(self, networks: CycleGan, loss: Loss, precision: Precision) -> None:
        self._networks = networks
        self._loss = loss
        self._adversarial = adversarial_loss(loss.adversarial)
        self._bf16 = precision is Precision.BF16
        self._identity = loss.identity * loss.cycle
        mr, ct = networks.channels[Modality.MR], networks.channels[Modality.CT]
        if self._identity > 0 and mr != ct:
            raise InputError(
                f"the identity loss needs as many MR as CT channels, found {mr} and {ct}; set loss.identity to 0"
            )

    def generator_losses(self, batch: Batch, warmup: float) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the generators' losses and the detached fakes.

        Parameters
        ----------
        batch
            Real slices.
        warmup
            Weight of the L1 to the unpaired slices of the batch at this step.

        Returns
        -------
        losses
            Unweighted terms by name, and ``generator``, the weighted sum to differentiate.
        fake_ct, fake_mr
            ``[N, C, H, W]``.
        """
        nets, mr, ct = self._networks, batch.mr, batch.ct
        with self._autocast(mr.device):
            if self._identity > 0:
                # One pass over twice the batch: instance norm keeps images independent.
                fake_ct, same_ct = nets.translate(Direction.MR2CT, torch.cat([mr, ct])).chunk(2)
                fake_mr, same_mr = nets.translate(Direction.CT2MR, torch.cat([ct, mr])).chunk(2)
            else:
                fake_ct, fake_mr = nets.translate(Direction.MR2CT, mr), nets.translate(Direction.CT2MR, ct)
            cycle_mr = nets.translate(Direction.CT2MR, fake_ct)
            cycle_ct = nets.translate(Direction.MR2CT, fake_mr)
            # A fake keeps the anatomy of its source, so it lies under the same skin.
            ct_scores = nets.judge(Modality.CT, fake_ct, batch.mr_depth)
            mr_scores = nets.judge(Modality.MR, fake_mr, batch.ct_depth)
        wide = self._widen
        losses = {
            "adversarial_mr2ct": self._adversarial(wide(ct_scores), REAL),
            "adversarial_ct2mr": self._adversarial(wide(mr_scores), REAL),
            "cycle_mr": l1(wide(cycle_mr), mr),
            "cycle_ct": l1(wide(cycle_ct), ct),
        }
        total = losses["adversarial_mr2ct"] + losses["adversarial_ct2mr"]
        total = total + self._loss.cycle * (losses["cycle_mr"] + losses["cycle_ct"])
        if self._identity > 0:
            losses["identity_ct"] = l1(wide(same_ct), ct)
            losses["identity_mr"] = l1(wide(same_mr), mr)
            total = total + self._identity * (losses["identity_ct"] + losses["identity_mr"])
        if warmup > 0:
            losses["warmup_ct"] = l1(wide(fake_ct), ct)
            losses["warmup_mr"] = l1(wide(fake_mr), mr)
            total = total + warmup * (losses["warmup_ct"] + losses["warmup_mr"])
        losses["generator"] = total
        return losses, wide(fake_ct).detach(), wide(fake_mr).detach()

    def discriminator_losses(
        self, batch: Batch, fake_ct: Tensor, fake_mr: Tensor, ct_depth: Tensor | None, mr_depth: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the discriminators' losses; ``discriminator`` is the sum to differentiate.

        Parameters
        ----------
        batch
            Real slices.
        fake_ct, fake_mr
            Fakes to show, from the pools.
        ct_depth, mr_depth
            Depth maps of the fake CT and the fake MR slices.
        """
        with self._autocast(batch.mr.device):
            ct_scores = self._networks.judge(
                Modality.CT, torch.cat([batch.ct, fake_ct]), _cat(batch.ct_depth, ct_depth)
            )
            mr_scores = self._networks.judge(
                Modality.MR, torch.cat([batch.mr, fake_mr]), _cat(batch.mr_depth, mr_depth)
            )
        losses = {
            "discriminator_ct": discriminator_loss(self._adversarial, *self._widen(ct_scores).chunk(2)),
            "discriminator_mr": discriminator_loss(self._adversarial, *self._widen(mr_scores).chunk(2)),
        }
        losses["discriminator"] = losses["discriminator_ct"] + losses["discriminator_mr"]
        return losses

    def __call__(
        self,
        batch: Batch,
        *,
        warmup: float,
        generator_optimiser: torch.optim.Optimizer,
        discriminator_optimiser: torch.optim.Optimizer,
        ct_pool: Pool,
        mr_pool: Pool,
    ) -> dict[str, Tensor]:
        """Update all networks once and return the detached losses, without waiting for the device."""
        discriminators = self._networks.discriminators
        discriminators.requires_grad_(False)
        losses, fake_ct, fake_mr = self.generator_losses(batch, warmup)
        generator_optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["generator"])
        generator_optimiser.step()

        discriminators.requires_grad_(True)
        fake_ct, ct_depth = _query(ct_pool, fake_ct, batch.mr_depth)
        fake_mr, mr_depth = _query(mr_pool, fake_mr, batch.ct_depth)
        judged = self.discriminator_losses(batch, fake_ct, fake_mr, ct_depth, mr_depth)
        discriminator_optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(judged["discriminator"])
        discriminator_optimiser.step()
        return {name: value.detach() for name, value in {**losses, **judged}.items()}

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=self._bf16)

    def _widen(self, x: Tensor) -> Tensor:
        return x.float() if self._bf16 else x


def _cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])


def _query(pool: Pool, fake: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if depth is None:
        return pool(fake), None
    shown = pool(torch.cat([fake, depth], dim=1))
    return shown[:, :-1], shown[:, -1:]
