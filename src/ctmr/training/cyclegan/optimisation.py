"""Optimisation of a CycleGAN: the four networks, and all that a step changes or remembers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ctmr.data.sampling import Batch, TrainingData
from ctmr.errors import InputError
from ctmr.imaging.volume import Modality
from ctmr.recipe.training import Loss, Network, Train
from ctmr.training import state
from ctmr.training.cyclegan import ema
from ctmr.training.cyclegan.losses import learning_rate_factor
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.cyclegan.pool import ImagePool
from ctmr.training.cyclegan.step import CycleGanStep, Measures
from ctmr.training.hardware.cuda_graphs import Replay
from ctmr.training.hardware.distributed import Team
from ctmr.training.hardware.speed import StepPlan, set_rate


class CycleGanOptimisation:
    """Networks, moving average, optimisers and image pools of one training.

    Parameters
    ----------
    network, loss, train
        Sections of the recipe.
    data
        What is trained on: its sizes, channels and device are looked at.
    rng
        CPU source of all randomness.
    team
        Processes that train together.
    plan
        Says of the networks how steps are computed.

    Attributes
    ----------
    networks
        The four networks.
    ema
        Moving average of the generators; ``None``: none.
    plan
        How steps are computed.
    step
        Losses and gradients of a step.
    optimisers, pools
        By ``generator`` and ``discriminator``; by modality.
    notices
        What a person should know about this training, one sentence each.

    Raises
    ------
    InputError
        When the recipe cannot be trained on these data (sizes, channels) or by so many processes.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        train: Train,
        data: TrainingData,
        rng: torch.Generator,
        team: Team,
        plan: Callable[[CycleGan], StepPlan],
    ) -> None:
        self._train, self._team = train, team
        device = data.mr.images.device
        self.networks = CycleGan(
            network, mr_channels=data.mr.channels, ct_channels=data.ct.channels, size=data.size, rng=rng
        ).to(device)
        team.require_divisible(train.batch, self.networks)
        self.ema = copy.deepcopy(self.networks.generators).requires_grad_(False) if train.ema else None
        self.plan = plan(self.networks)
        self.plan.prepare(self.networks)
        self.step = CycleGanStep(
            self.networks,
            loss,
            self.plan.precision,
            mixture=partial(team.mixture, rng=rng),
            replay=Replay() if self.plan.graphs and team.size == 1 else None,
        )
        if not self.step.adversarial and train.generator_every > 1:
            raise InputError(
                f"without discriminators train.generator_every {train.generator_every} leaves steps that train "
                "nothing; set it to 1, or loss.adversarial_weight above 0"
            )
        self.notices = [*self.networks.notices, *filter(None, [self.plan.notice]), *self.step.notices]
        self.pools = {m: ImagePool(train.pool, rng) for m in Modality}
        betas = (train.beta1, train.beta2)
        self.optimisers = {
            "generator": self.plan.adam(self.networks.generators, train.lr_generator, betas),
            "discriminator": self.plan.adam(self.networks.discriminators, train.lr_discriminator, betas),
        }
        for optimiser in self.optimisers.values():
            team.average_gradients(optimiser)

    @property
    def exported(self) -> nn.ModuleDict:
        """Generators that a model is made of: the moving average where there is one."""
        return self.networks.generators if self.ema is None else self.ema

    def learning_rates(self, step: int) -> dict[str, float]:
        """Return the rates of ``generator`` and ``discriminator`` at a step (from 0)."""
        factor = learning_rate_factor(step, self._train.steps, self._train.constant_fraction)
        return {
            "generator": self._train.lr_generator * factor,
            "discriminator": self._train.lr_discriminator * factor,
        }

    def update(self, batch: Batch, step: int, warmup: float) -> Measures:
        """Take a step (from 0) and return its losses.

        Parameters
        ----------
        batch
            This process's part of it.
        warmup
            Weight of the warm-up's L1 at this step.
        """
        train = self._train
        for name, rate in self.learning_rates(step).items():
            set_rate(self.optimisers[name], rate)
        trains_generators = (step + 1) % train.generator_every == 0
        trains_discriminators = self.step.adversarial and (step + 1) % train.discriminator_every == 0
        losses = self.step(
            batch,
            warmup=warmup,
            generator_optimiser=self.optimisers["generator"] if trains_generators else None,
            discriminator_optimiser=self.optimisers["discriminator"] if trains_discriminators else None,
            ct_pool=self._team.pool(self.pools[Modality.CT]),
            mr_pool=self._team.pool(self.pools[Modality.MR]),
        )
        if self.ema is not None:
            ema.update(self.ema, self.networks.generators, train.ema, step)
        return losses

    def release(self) -> None:
        """Let go of gradients, CUDA graphs and compiled networks: the next step may have a batch of another size."""
        self.step.replay = None
        self.networks.compiled.clear()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return all that a checkpoint holds of it, by name."""
        tensors = state.under(self.networks.state_dict(), "networks.")
        if self.ema is not None:
            tensors |= state.under(self.ema.state_dict(), "ema.")
        for name, optimiser in self.optimisers.items():
            tensors |= state.under(state.pack_optimiser(optimiser), f"adam.{name}.")
        for modality, pool in self.pools.items():
            tensors |= state.under(pool.state_dict(), f"pool.{modality}.")
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.networks.load_state_dict(state.below(tensors, "networks."))
        if self.ema is not None:
            self.ema.load_state_dict(state.below(tensors, "ema."))
        for name, optimiser in self.optimisers.items():
            state.unpack_optimiser(optimiser, state.below(tensors, f"adam.{name}."))
        device = next(self.networks.parameters()).device
        for modality, pool in self.pools.items():
            pool.load_state_dict(state.below(tensors, f"pool.{modality}."), device)
