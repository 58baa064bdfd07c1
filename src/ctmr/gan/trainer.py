"""Trainer: runs CycleGAN steps over training data and emits events; resumes exactly from a checkpoint."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctmr.data.augment import Augmentation
from ctmr.data.sampling import Sampler, TrainingData
from ctmr.errors import CtmrError, InputError
from ctmr.gan import checkpoint
from ctmr.gan.cyclegan import CycleGan
from ctmr.gan.events import CheckpointEvent, DoneEvent, Event, NoticeEvent, SampleEvent, StepEvent
from ctmr.gan.losses import learning_rate_factor, warmup_weight
from ctmr.gan.pool import ImagePool
from ctmr.gan.step import ACCURACY, CycleGanStep
from ctmr.recipe import Loss, Network, Pairs, Term, Train
from ctmr.volume import Direction, Modality

_NEVER = torch.iinfo(torch.int64).max


class Trainer:
    """CycleGAN training in ``train.steps`` steps.

    Parameters
    ----------
    network, loss, train
        Sections of the recipe. A tuning trial passes ``train.model_copy(update={"steps": n})``.
    data
        Normalised slices; its device is the training's.
    checkpoints
        Folder of checkpoints; ``None`` keeps none.
    report_every
        Steps between `StepEvent`s.
    samples
        Slices in a `SampleEvent`; 0 emits none.

    Raises
    ------
    InputError
        When the recipe cannot be trained on these data (sizes, channels, subjects).
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        train: Train,
        data: TrainingData,
        *,
        checkpoints: Path | None = None,
        report_every: int = 50,
        samples: int = 4,
    ) -> None:
        self._network, self._loss, self._train, self._data = network, loss, train, data
        self._folder, self._report_every, self._samples = checkpoints, report_every, samples
        self._device = data.mr.images.device
        self._notices: list[str] = []
        self._rng = torch.Generator().manual_seed(train.seed)
        self._networks = CycleGan(
            network,
            mr_channels=data.mr.images.shape[1],
            ct_channels=data.ct.images.shape[1],
            size=data.size,
            rng=self._rng,
        ).to(self._device)
        self._notices += self._networks.notices
        self._average = copy.deepcopy(self._networks.generators).requires_grad_(False) if train.ema else None
        self._step_function = CycleGanStep(self._networks, loss, train.precision, self._rng)
        self._judges = self._step_function.judges
        if not self._judges and train.generator_every > 1:
            raise InputError(
                f"without discriminators train.generator_every {train.generator_every} leaves steps that train "
                "nothing; set it to 1, or loss.adversarial_weight above 0"
            )
        self._notices += self._step_function.notices
        self._warmup = loss.warmup.weight
        if self._warmup and not data.has_levels:
            self._warmup = 0.0
            self._notices.append(
                "the training images are pictures, which have no level to match, so loss.warmup is not used"
            )
        self._sampler = self._make_sampler(data)
        self._first_sampler = self._sampler
        if train.subset_images:
            self._first_sampler = self._make_sampler(data.subset(train.subset_images, train.seed))
        self._pools = {m: ImagePool(train.pool, self._rng) for m in Modality}
        betas = (train.beta1, train.beta2)
        self._optimisers = {
            "generator": torch.optim.Adam(
                self._networks.generators.parameters(), train.lr_generator, betas, fused=True
            ),
            "discriminator": torch.optim.Adam(
                self._networks.discriminators.parameters(), train.lr_discriminator, betas, fused=True
            ),
        }
        self.step = 0
        """Steps done."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._seconds = 0.0
        self._first_bad = torch.tensor(_NEVER, device=self._device)

    @property
    def digest(self) -> str:
        """sha256 over the recipe sections and which slices are trained on; checkpoints carry it."""
        domains = {
            m: [list(d.images.shape), d.uids, d.depth is not None, d.volume.tolist()]
            for m, d in (("mr", self._data.mr), ("ct", self._data.ct))
        }
        sections = [s.model_dump(mode="json") for s in (self._network, self._loss, self._train)]
        return hashlib.sha256(json.dumps([sections, domains], sort_keys=True).encode()).hexdigest()

    def run(self, until_step: int | None = None) -> Iterator[Event]:
        """Train, yielding events; continue by calling again.

        Parameters
        ----------
        until_step
            Stop once this many steps are done; ``None`` or more than ``train.steps`` runs to the end.

        Yields
        ------
        Event
            At a step: `StepEvent`, `SampleEvent`, `CheckpointEvent`, each when due and after the last step, then
            `DoneEvent`.

        Raises
        ------
        CtmrError
            When a loss is not a finite number.

        Notes
        -----
        Sets PyTorch's number of threads for the process when ``train.threads`` is above 0.
        """
        if self._train.threads:
            torch.set_num_threads(self._train.threads)
        while self._notices:
            yield NoticeEvent(self.step, self._notices.pop(0))
        steps = self._train.steps
        stop = steps if until_step is None else min(until_step, steps)
        while self.step < stop:
            began = time.perf_counter()
            self._one_step()
            last = self.step == steps
            report = last or self.step % self._report_every == 0
            sample = bool(self._samples) and (last or self.step % self._train.sample_every == 0)
            save = self._folder is not None and (last or self.step % self._train.checkpoint_every == 0)
            if report or save:
                self._require_finite()
            self._seconds += time.perf_counter() - began
            if report:
                yield self._report()
            if sample:
                yield self._sample()
            if save:
                yield CheckpointEvent(self.step, self.save())
            if last:
                yield DoneEvent(self.step)

    def generator(self, direction: Direction) -> nn.Module:
        """Return a copy of the moving average of a generator (the generator, where there is none), in eval mode."""
        module = copy.deepcopy(self._exported()[direction.value])
        module.eval().requires_grad_(False)
        return module

    def save(self) -> Path:
        """Write a checkpoint and return its folder."""
        if self._folder is None:
            raise ValueError("this trainer was given no folder for checkpoints")
        tensors, scalars = self._state()
        return checkpoint.save(self._folder, step=self.step, digest=self.digest, tensors=tensors, scalars=scalars)

    def resume(self) -> bool:
        """Continue from the newest intact checkpoint, exactly; False when there is none.

        Raises
        ------
        InputError
            When the checkpoint belongs to another recipe or other data, or all are damaged.
        """
        found = None if self._folder is None else checkpoint.load(self._folder, self.digest)
        if found is None:
            return False
        self._restore(found)
        self._notices += [
            f"checkpoint {path} is damaged and was passed over; training goes on from step {found.step}"
            for path in found.damaged
        ]
        return True

    def _exported(self) -> nn.ModuleDict:
        return self._networks.generators if self._average is None else self._average

    def _make_sampler(self, data: TrainingData) -> Sampler:
        return Sampler(
            data,
            batch=self._train.batch,
            augmentation=Augmentation.of(self._train),
            level_slack=self._loss.warmup.level_slack if self._warmup else None,
            matches=self._loss.warmup.matches,
            paired=self._loss.supervised.weight > 0 and self._loss.supervised.pairs is Pairs.SUBJECT,
            rng=self._rng,
        )

    def _due(self, name: str, every: int) -> torch.optim.Optimizer | None:
        """Return the optimiser when this step updates its networks."""
        return self._optimisers[name] if (self.step + 1) % every == 0 else None

    def _one_step(self) -> None:
        train = self._train
        factor = learning_rate_factor(self.step, train.steps, train.constant_fraction)
        rates = {
            "generator": train.lr_generator * factor,
            "discriminator": train.lr_discriminator * factor,
        }
        for name, optimiser in self._optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = rates[name]
        self._rates = rates
        sampler = self._first_sampler if self.step < train.subset_fraction * train.steps else self._sampler
        measures = self._step_function(
            sampler.draw(),
            warmup=warmup_weight(self._warmup, self._loss.warmup.fraction, self.step, train.steps),
            generator_optimiser=self._due("generator", train.generator_every),
            discriminator_optimiser=self._due("discriminator", train.discriminator_every) if self._judges else None,
            ct_pool=self._pools[Modality.CT].query,
            mr_pool=self._pools[Modality.MR].query,
        )
        self._update_average()
        self.step += 1
        for name, value in measures.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1
        total = torch.stack([measures[name] for name in self._optimisers if name in measures]).sum()
        # Kept on the device: a question a step would make the host wait for every step.
        self._first_bad = torch.where(total.isfinite(), self._first_bad, self._first_bad.clamp(max=self.step))

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average towards the weights; the decay rises from 2/11 so that early weights are forgotten."""
        if self._average is None:
            return
        decay = min(self._train.ema, (self.step + 1) / (self.step + 10))
        for mean, weight in zip(self._average.parameters(), self._networks.generators.parameters(), strict=True):
            mean.lerp_(weight, 1.0 - decay)
        # Statistics of batch norm are averages already.
        for kept, statistic in zip(self._average.buffers(), self._networks.generators.buffers(), strict=True):
            kept.copy_(statistic)

    def _require_finite(self) -> None:
        first = int(self._first_bad)
        if first == _NEVER:
            return
        bad = sorted(name for name, value in self._sums.items() if not bool(value.isfinite()))
        raise CtmrError(
            f"training diverged at step {first} of {self._train.steps}: {', '.join(bad)} became infinite or not a "
            "number; lower train.lr_generator and train.lr_discriminator, or use train.precision fp32"
        )

    def _report(self) -> StepEvent:
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        seconds = self._seconds / max(self._counts.values())
        losses = {name: value for name, value in means.items() if name in set(Term)}
        accuracy = {name.removeprefix(ACCURACY): value for name, value in means.items() if name.startswith(ACCURACY)}
        named = {
            name: sum(losses[term] for term in terms)
            for name, terms in self._loss.log_as.items()
            if all(term in losses for term in terms)
        }
        event = StepEvent(self.step, losses, self._rates, seconds, accuracy, named)
        self._reset_report()
        return event

    def _reset_report(self) -> None:
        self._sums, self._counts, self._seconds = {}, {}, 0.0

    @torch.no_grad()
    def _sample(self) -> SampleEvent:
        batch = self._data.examples(self._samples)
        networks = self._exported().eval()
        to_ct, to_mr = networks[Direction.MR2CT.value], networks[Direction.CT2MR.value]
        fake_ct, fake_mr = to_ct(batch.mr), to_mr(batch.ct)
        images = (batch.mr, fake_ct, to_mr(fake_ct), batch.ct, fake_mr, to_ct(fake_mr))
        networks.train()
        return SampleEvent(self.step, *(image.float().cpu() for image in images))

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"networks.{k}": v for k, v in self._networks.state_dict().items()}
        if self._average is not None:
            tensors |= {f"average.{k}": v for k, v in self._average.state_dict().items()}
        for name, optimiser in self._optimisers.items():
            for index, moments in optimiser.state_dict()["state"].items():
                tensors |= {f"adam.{name}.{index}.{k}": v for k, v in moments.items()}
        for modality, pool in self._pools.items():
            tensors |= {f"pool.{modality}.{k}": v for k, v in pool.state_dict().items()}
        tensors["rng"] = self._rng.get_state()
        return tensors, {"step": self.step}

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        tensors = found.tensors
        self._networks.load_state_dict(_below(tensors, "networks."))
        if self._average is not None:
            self._average.load_state_dict(_below(tensors, "average."))
        for name, optimiser in self._optimisers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(tensors, f"adam.{name}.").items():
                index, moment = key.split(".")
                state.setdefault(int(index), {})[moment] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        for modality, pool in self._pools.items():
            pool.load_state_dict(_below(tensors, f"pool.{modality}."), self._device)
        self._rng.set_state(tensors["rng"])
        self.step = found.step
        self._reset_report()


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
