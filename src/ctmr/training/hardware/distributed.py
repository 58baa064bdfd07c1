"""Distributed: one training in several processes that torchrun starts; each takes its share of every batch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from ctmr.data.sampling import Batch
from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.networks.blocks import mixes_images
from ctmr.system.processes import torchrun_rank
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.cyclegan.pool import ImagePool
from ctmr.training.cyclegan.step import Pool

_TIMEOUT = timedelta(minutes=30)
"""For a process to reach the point where others wait for it; the first writes a checkpoint or samples meanwhile."""
_TOLD = "ctmr_told"
_LEAD_S = 3.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Team:
    """The processes of one training. All hold the same data, networks, pools and randomness.

    Attributes
    ----------
    rank
        This process, from 0; 0 alone writes, reports and samples.
    size
        Processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def require_divisible(self, batch: int, networks: CycleGan) -> None:
        """Refuse what cannot be divided among processes.

        Raises
        ------
        InputError
            The batch is no multiple of the processes, or a network has batch norm.
        """
        if batch % self.size:
            raise InputError(
                f"train.batch {batch} cannot be divided among {self.size} processes; set it to a multiple of "
                f"{self.size}, or start fewer"
            )
        if self.size > 1 and mixes_images(networks):
            raise InputError(
                f"batch norm takes its statistics from the whole batch, which {self.size} processes do not see; set "
                "the networks' norm to instance, or train in one process"
            )

    def share(self, batch: Batch) -> Batch:
        """Return this process's part of a batch that all have drawn."""
        if self.size == 1:
            return batch
        parts = {f.name: getattr(batch, f.name) for f in fields(batch)}
        return replace(batch, **{k: self._part(v) for k, v in parts.items() if isinstance(v, Tensor)})

    def mixture(self, count: int, *, rng: torch.Generator) -> Tensor:
        """Return this process's part of the random shares ``[N, 1, 1, 1]`` that a gradient penalty needs."""
        return self._part(torch.rand((count * self.size, 1, 1, 1), generator=rng))

    def pool(self, pool: ImagePool) -> Pool:
        """Return a pool that sees the fakes of all processes, so that it is the same in each."""
        if self.size == 1 or pool.size == 0:
            return pool.query
        return lambda images: self._part(pool.query(self._gather(images)))

    def average(self, values: Tensor) -> None:
        """Replace a tensor by its mean over the processes."""
        if self.size == 1:
            return
        with _together(self):
            torch.distributed.all_reduce(values)
        values /= self.size

    def average_gradients(self, optimiser: torch.optim.Optimizer) -> None:
        """Average an optimiser's gradients before each of its steps, in one message.

        A loss is a mean over the images of a batch and every process has as many, so the mean of their gradients is
        the gradient of the whole batch.
        """
        if self.size > 1:
            optimiser.register_step_pre_hook(partial(_average_gradients, self))

    def leading(self, number: int) -> int:
        """Return the leading process's number to all."""
        return number if self.size == 1 else int(self._gather(torch.tensor([number], device=_device()))[0])

    def require_equal(self, number: int, what: str) -> None:
        """Raise EnvironmentFault when the processes do not agree on a number."""
        if self.size == 1:
            return
        found = self._gather(torch.tensor([number], device=_device())).tolist()
        if len(set(found)) > 1:
            raise EnvironmentFault(
                f"{what} differs between the processes of this training: {found}; all need the same work directory, "
                "data and recipe"
            )

    def _part(self, whole: Tensor) -> Tensor:
        count = len(whole) // self.size
        return whole[self.rank * count : (self.rank + 1) * count]

    def _gather(self, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with _together(self):
            torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)


ALONE = Team()


class SeparatedError(EnvironmentFault):
    """Another process of the team has ended, or torchrun ends this one."""


@contextmanager
def team() -> Iterator[Team]:
    """Yield the team of this process: that of torchrun's environment, or `ALONE`.

    Processes talk by NCCL, one device each, where PyTorch has CUDA, and by Gloo elsewhere. When one fails, the others
    end too, and only the first that leaves with an error says so.

    Raises
    ------
    EnvironmentFault
        When the processes do not find each other, or the machine has fewer devices than processes.
    """
    rank, size = torchrun_rank()
    if size == 1:
        yield ALONE
        return
    cuda = torch.cuda.is_available()
    if cuda:
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise EnvironmentFault(
                f"torchrun started process {local + 1} on a machine with {devices} CUDA devices; give "
                f"--nproc-per-node {devices}"
            )
        torch.cuda.set_device(local)
    found = Team(rank, size)
    with _together(found):
        store, _, _ = next(rendezvous("env://"))
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=_TIMEOUT
        )
    before = signal.signal(signal.SIGTERM, _asked_to_end)
    try:
        yield found
    except CtmrError as error:
        # What all have found, such as a batch that cannot be divided, the leading process says.
        if _told_before(store, _LEAD_S if rank > 0 and not isinstance(error, SeparatedError) else 0.0):
            raise SystemExit(error.exit_code) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        torch.distributed.destroy_process_group()


def _told_before(store: Any, wait_s: float) -> bool:
    """Count this process among those that tell an error; True when another did, now or within so many seconds."""
    end = time.monotonic() + wait_s
    try:
        while time.monotonic() < end and store.add(_TOLD, 0) == 0:
            time.sleep(_POLL_S)
        return int(store.add(_TOLD, 1)) > 1
    except RuntimeError:
        return False


def _asked_to_end(*_: object) -> None:
    raise SeparatedError(
        "torchrun ends this training, because another of its processes failed or because it was told to; the same "
        "command goes on from the last checkpoint"
    )


def _average_gradients(team: Team, optimiser: torch.optim.Optimizer, *_: Any) -> None:
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    team.average(flat)
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@contextmanager
def _together(team: Team) -> Iterator[None]:
    """Turn the end of another process, which a collective call sees first, into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise SeparatedError(
            f"another of the {team.size} processes of this training has ended or cannot be reached "
            f"({str(error).strip().splitlines()[0][:200]}); its own words, if it had any, stand above, and the same "
            "command goes on from the last checkpoint"
        ) from error


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
