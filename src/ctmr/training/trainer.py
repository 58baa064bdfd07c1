"""Trainer: runs CycleGAN steps over training data and emits events; resumes exactly from a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctmr.data.atlases import Atlases
from ctmr.data.augment import Augmentation
from ctmr.data.sampling import Batch, SliceSampler, TrainingData
from ctmr.errors import CtmrError, EnvironmentFault
from ctmr.imaging.volume import Direction
from ctmr.recipe.training import Loss, Network, Pairs, Train
from ctmr.system.digest import tree_digest
from ctmr.system.pool import Background
from ctmr.training import checkpoint
from ctmr.training.alarms import Reading
from ctmr.training.cyclegan.losses import warmup_weight
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.cyclegan.optimisation import CycleGanOptimisation
from ctmr.training.cyclegan.step import ACCURACY
from ctmr.training.events import CheckpointEvent, DoneEvent, Event, NoticeEvent, ReadingEvent, SampleEvent, StepEvent
from ctmr.training.hardware import memory
from ctmr.training.hardware.distributed import ALONE, Team
from ctmr.training.hardware.fastest import choose
from ctmr.training.hardware.speed import StepPlan
from ctmr.training.meters import Failure, Interval
from ctmr.training.monitor import Monitor
from ctmr.training.refinement import refine
from ctmr.training.state import below, data_digest, pack_reports, snapshot, under, unpack_reports


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
        Slices in a `SampleEvent`; 0 emits none, and only losses that are not finite are watched for.
    examples
        The slices of every `SampleEvent`, on the training's device; ``None`` takes them from `data`.
    team
        Processes that train together; each takes its share of a batch, and only the leading one emits events.
    speeds
        File that remembers which way to compute a step was fastest; ``None``: it is timed anew where that repays.

    Attributes
    ----------
    cyclegan
        Networks, optimisers and image pools.
    step
        Steps done.
    reports
        All `StepEvent`s so far, those before a resumption too.

    Raises
    ------
    InputError
        When the recipe cannot be trained on these data (sizes, channels, subjects) or by so many processes.
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
        examples: Batch | None = None,
        team: Team = ALONE,
        speeds: Path | None = None,
    ) -> None:
        self._sections, self._loss, self._train, self._data = (network, loss, train), loss, train, data
        self._folder, self._report_every, self._samples, self._team = checkpoints, report_every, samples, team
        self._examples = examples
        self._rng = torch.Generator().manual_seed(train.seed)
        self._warmup = loss.warmup.weight if data.has_levels else 0.0
        self.cyclegan = CycleGanOptimisation(
            network, loss, train, data, self._rng, team, partial(self._fastest, speeds=speeds)
        )
        self._notices = self.cyclegan.notices
        if loss.warmup.weight and not data.has_levels:
            self._notices.append(
                "the training images are pictures, which have no level to match, so loss.warmup is not used"
            )
        self._sampler = self._make_sampler(data, train.batch, self._rng)
        self._first_sampler = self._sampler
        if train.subset_images:
            subset = data.subset(train.subset_images, train.seed)
            self._first_sampler = self._make_sampler(subset, train.batch, self._rng)
        self._refined_at = {round(f * train.steps) for f in loss.warmup.refine} if self._sampler.atlases else set()
        self.step = 0
        self.reports: list[StepEvent] = []
        self._interval = Interval()
        self._monitor = Monitor(train, loss, data)
        self._writing = Background()

    @cached_property
    def digest(self) -> str:
        """sha256 over the recipe sections and everything that is trained on; checkpoints carry it."""
        sections = [s.model_dump(mode="json") for s in self._sections]
        return tree_digest([sections, data_digest(self._data)])

    @property
    def readings(self) -> list[tuple[int, Reading]]:
        """All (step, reading) of the alarms so far, those before a resumption too."""
        return self._monitor.readings

    @property
    def sounded(self) -> list[tuple[int, str]]:
        """All (step, name) of the alarms that have sounded."""
        return self._monitor.sounded

    def run(self, until_step: int | None = None) -> Iterator[Event]:
        """Train, yielding events; continue by calling again.

        Parameters
        ----------
        until_step
            Stop once this many steps are done; ``None`` or more than ``train.steps`` runs to the end.

        Yields
        ------
        Event
            At a step: `StepEvent` and `SampleEvent`, each when due and after the last step and each followed by the
            alarms' `ReadingEvent` and `AlarmEvent`s; `CheckpointEvent` once one is on disk; at the end `DoneEvent`.

        Raises
        ------
        CtmrError
            When a loss is not a finite number, or an alarm of ``train.alarms.stop`` sounds.
        EnvironmentFault
            When a checkpoint cannot be written, another process of the team ended, or the device has too little
            memory for a step; then the sentence says which batch fits.

        Notes
        -----
        Sets PyTorch's number of threads for the process when ``train.threads`` is above 0; processes share them.
        Checkpoints are written in another thread, from a copy; none is unfinished when this ends.
        """
        self._set_threads()
        self.cyclegan.plan.prepare_process()
        while self._notices and self._team.leads:
            yield NoticeEvent(self.step, self._notices.pop(0))
        steps = self._train.steps
        stop = steps if until_step is None else min(until_step, steps)
        while self.step < stop:
            if self.step in self._refined_at:
                notice = self._refine()
                if self._team.leads:
                    yield notice
            began = time.perf_counter()
            if words := memory.words_of_lack(self._one_step):
                raise EnvironmentFault(self._too_large(words))
            last = self.step == steps
            report = last or self.step % self._report_every == 0
            sample = bool(self._samples) and (last or self.step % self._train.sample_every == 0)
            save = self._folder is not None and (last or self.step % self._train.checkpoint_every == 0)
            if report or save:
                self._settle()
            self._interval.seconds += time.perf_counter() - began
            if report:
                self._report()
            if self._team.leads:
                yield from self._events(report, sample)
                yield from map(_on_disk, self._writing.wait() if save else self._writing.finished())
                if save:
                    self._begin_save()
            if last:
                yield from map(_on_disk, self._writing.wait())
                if self._team.leads:
                    yield DoneEvent(self.step)
        yield from map(_on_disk, self._writing.wait())

    def generator(self, direction: Direction) -> nn.Module:
        """Return a copy of the moving average of a generator (the generator, where there is none), in eval mode."""
        module = copy.deepcopy(self.cyclegan.exported[direction.value])
        module.eval().requires_grad_(False)
        return module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]

    def resume(self) -> bool:
        """Continue from the newest intact checkpoint, exactly; False when there is none.

        Raises
        ------
        InputError
            When the checkpoint belongs to another recipe or other data, or all are damaged.
        """
        found = None if self._folder is None else checkpoint.load(self._folder, self.digest)
        self._team.require_equal(found.step if found else 0, "the newest intact checkpoint")
        if found is None:
            return False
        self._restore(found)
        self._notices += [
            f"checkpoint {path} is damaged and was passed over; training goes on from step {found.step}"
            for path in found.damaged
        ]
        return True

    def _set_threads(self) -> None:
        if self._train.threads:
            torch.set_num_threads(max(1, self._train.threads // self._team.size))

    def _fastest(self, networks: CycleGan, *, speeds: Path | None) -> StepPlan:
        """Return how this training's steps are computed."""
        self._set_threads()
        return choose(self._sections, networks, self._data.size, self._rehearsal, team=self._team, remembered=speeds)

    def _rehearsal(self, plan: StepPlan) -> Callable[[], None]:
        """Return what takes a step of a training like this one, by a plan; this one's numbers stay as they are."""
        network, loss, train = self._sections
        rng = torch.Generator().manual_seed(train.seed)
        cyclegan = CycleGanOptimisation(network, loss, train, self._data, rng, ALONE, lambda _: plan)
        sampler = self._make_sampler(self._data, train.batch // self._team.size, rng)

        def step() -> None:
            cyclegan.update(sampler.draw(), 0, self._warmup)

        return step

    def _make_sampler(self, data: TrainingData, batch: int, rng: torch.Generator) -> SliceSampler:
        return SliceSampler(
            data,
            batch=batch,
            augmentation=Augmentation.of(self._train),
            level_slack=self._loss.warmup.level_slack if self._warmup else None,
            matches=self._loss.warmup.matches,
            atlases=Atlases(data.mr, data.ct, data.placement) if data.placement and self._warmup else None,
            paired=self._loss.supervised.weight > 0 and self._loss.supervised.pairs is Pairs.SUBJECT,
            rng=rng,
        )

    def _refine(self) -> NoticeEvent:
        """Bring the atlases onto the translations that there are now."""
        assert self._sampler.atlases is not None
        began = time.perf_counter()
        self._sampler.atlases = refine(self._sampler.atlases, self.cyclegan.exported[Direction.MR2CT.value])
        seconds = time.perf_counter() - began
        return NoticeEvent(
            self.step, f"the CT volumes follow the translations of step {self.step} now ({seconds:.0f} s)"
        )

    def draw(self, step: int) -> Batch:
        """Draw what the step after so many trains on, the share of every process."""
        first = step < self._train.subset_fraction * self._train.steps
        return (self._first_sampler if first else self._sampler).draw()

    def _one_step(self) -> None:
        rng_state = self._rng.get_state()
        losses = self._update(self._team.share(self.draw(self.step)))
        self.step += 1
        self._interval.add(self.step, losses, rng_state)

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        warmup = warmup_weight(self._warmup, self._loss.warmup.fraction, self.step, self._train.steps)
        return self.cyclegan.update(batch, self.step, warmup)

    def _too_large(self, words: str) -> str:
        """Say which batch fits, by taking steps with smaller ones; the training cannot go on afterwards."""

        def attempt(count: int) -> None:
            self.cyclegan.release()
            self._update(self._make_sampler(self._data, count, self._rng).draw())

        # Other processes wait for this one and would not take part.
        alone = self._team.size == 1
        return memory.sentence(self._train.batch, self._data.mr.images.device, words, attempt if alone else None)

    def _settle(self) -> None:
        failure = self._interval.settle(self._team.average)
        if failure is not None:
            raise CtmrError(
                f"training diverged at step {failure.step} of {self._train.steps}: {', '.join(sorted(failure.names))} "
                f"became infinite or not a number{self._keep_batch(failure)}; lower train.lr_generator and "
                "train.lr_discriminator, or use train.precision fp32"
            )

    def _keep_batch(self, failure: Failure) -> str:
        """Write the batch of a failed step beside the checkpoints, and return the words that say where."""
        if self._folder is None or not self._team.leads:
            return ""
        self._rng.set_state(failure.rng_state)
        batch = self.draw(failure.step - 1)
        images = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        path = self._folder / f"not-finite-step-{failure.step:09d}.safetensors"
        checkpoint.save_batch(
            path,
            {name: value for name, value in images.items() if isinstance(value, Tensor)},
            {"step": str(failure.step), "losses": ", ".join(sorted(failure.names))},
        )
        return f", and its batch is kept in {path}"

    def _report(self) -> None:
        means = self._interval.means()
        accuracy = {name.removeprefix(ACCURACY): value for name, value in means.items() if name.startswith(ACCURACY)}
        losses = {name: value for name, value in means.items() if not name.startswith(ACCURACY)}
        named = {
            name: sum(losses[term] for term in terms)
            for name, terms in self._loss.log_as.items()
            if all(term in losses for term in terms)
        }
        seconds = self._interval.seconds / self._interval.count
        rates = self.cyclegan.learning_rates(self.step - 1)
        self.reports.append(StepEvent(self.step, losses, rates, seconds, accuracy, named))
        self._interval = Interval()

    def _events(self, report: bool, sample: bool) -> Iterator[Event]:
        """Yield what is due at this step, and what the alarms make of it."""
        if report:
            yield self.reports[-1]
            if self._samples:
                yield from self._raise_alarms(self._monitor.of_report(self.reports[-1]))
        if sample:
            networks = self.cyclegan.exported.eval()
            event, readings = self._sample(networks), self._monitor.of_images(networks)
            networks.train()
            yield event
            yield from self._raise_alarms(readings)

    def _raise_alarms(self, readings: list[Reading]) -> Iterator[Event]:
        if not readings:
            return
        sounding = self._monitor.sound(self.step, readings)
        yield ReadingEvent(self.step, tuple(readings))
        yield from sounding
        for alarm in sounding:
            if alarm.stops:
                raise CtmrError(
                    f"training stopped by {alarm.message}, or take {alarm.reading.alarm} out of train.alarms.stop"
                )

    @torch.no_grad()
    def _sample(self, networks: nn.ModuleDict) -> SampleEvent:
        batch = self._examples or self._data.examples(self._samples)
        to_ct, to_mr = networks[Direction.MR2CT.value], networks[Direction.CT2MR.value]
        fake_ct, fake_mr = to_ct(batch.mr), to_mr(batch.ct)
        images = (batch.mr, fake_ct, to_mr(fake_ct), batch.ct, fake_mr, to_ct(fake_mr))
        return SampleEvent(self.step, *(image.float().cpu() for image in images))

    def _begin_save(self) -> None:
        assert self._folder is not None
        tensors, scalars = self.state()
        self._writing.call(
            partial(
                checkpoint.save,
                self._folder,
                step=self.step,
                digest=self.digest,
                tensors=snapshot(tensors),
                scalars=scalars,
            )
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint holds: tensors by name, and plain JSON types."""
        fields = self._sampler.atlases.fields if self._sampler.atlases else ()
        tensors = self.cyclegan.state() | {"rng": self._rng.get_state()}
        tensors |= under({f"{number:06d}": field for number, field in enumerate(fields)}, "atlases.")
        scalars = {
            "interval": self._interval.state(),
            "reports": pack_reports(self.reports),
            "watch": self._monitor.state(),
        }
        return tensors, scalars

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        self.cyclegan.restore(found.tensors)
        self._rng.set_state(found.tensors["rng"])
        fields = below(found.tensors, "atlases.")
        if self._sampler.atlases is not None:
            ordered = [fields[name] for name in sorted(fields)]
            self._sampler.atlases = dataclasses.replace(self._sampler.atlases, fields=ordered)
        self.step = found.step
        self._interval.restore(found.scalars["interval"])
        self.reports = unpack_reports(found.scalars["reports"])
        self._monitor.restore(found.scalars["watch"])


def _on_disk(path: Path) -> CheckpointEvent:
    return CheckpointEvent(checkpoint.step_of(path), path)
