"""Fastest way to compute a step: timed on this machine with these networks and batches, chosen, and remembered."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctmr.recipe.training import Loss, Network, Train
from ctmr.system.digest import tree_digest
from ctmr.system.files import write_file
from ctmr.system.locks import locked
from ctmr.system.processes import processor
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.hardware import memory
from ctmr.training.hardware.distributed import ALONE, Team
from ctmr.training.hardware.speed import StepPlan, may_compile, permitted, step_tflop

SHARE = 0.02
"""Of the expected training, what timing may take."""
FASTER = 0.97
"""A plan is preferred to the plainest one below so much of its time: two steps tell less apart."""
REPAID = 2.0
"""Compiling saves so many times what it costs, at least."""
COMPILING_S = 75.0
"""Longest time that compiling took in docs/performance.md: it is tried where `SHARE` allows as much."""
SLOW_START = 6.0
"""A plan whose first step takes so many times the plainest's first is not timed further: bf16 without hardware."""

Step = Callable[[], None]
Make = Callable[[StepPlan], Step]
"""Makes a training of its own that computes as planned, and returns what takes one of its steps."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a plan's first step, and of the fastest of those after it; the first's when it was given up."""

    first: float
    step: float


def choose(
    sections: tuple[Network, Loss, Train],
    networks: CycleGan,
    size: tuple[int, int],
    make: Make,
    *,
    team: Team = ALONE,
    remembered: Path | None = None,
) -> StepPlan:
    """Return the fastest plan that a recipe permits, as timed here.

    Timing takes at most `SHARE` of the training; a training too short for that takes what was timed before on such a
    machine, or the plainest plan. A deterministic one takes the plainest: a choice by time does not give equal bits.

    Parameters
    ----------
    sections
        Of the recipe.
    networks
        As built, on the training's device; looked at only.
    size
        Slices (H, W).
    team
        Processes that share a batch: the leading one times, and all take its choice.
    remembered
        File of what was timed before; made when missing. ``None``: nothing is remembered.

    Raises
    ------
    InputError
        When the recipe asks for a path that gives wrong gradients with these networks.
    EnvironmentFault
        The file cannot be written.
    """
    _, loss, train = sections
    device = next(networks.parameters()).device
    plans = permitted(train, loss, networks, device, alone=team.size == 1)
    ways = plans + [dataclasses.replace(p, compile=True) for p in plans if may_compile(train, p, device)]
    if train.deterministic or len(ways) == 1:
        return plans[0]
    if not team.leads:
        return ways[team.leading(0)]
    if remembered is not None:
        remembered.parent.mkdir(parents=True, exist_ok=True)
    # Timing beside another's timing would say little of either.
    with nullcontext() if remembered is None else locked(remembered.with_suffix(".lock")):
        known = _Known(remembered, _key(sections, networks, size, device, team.size))
        _time(plans, train, device, make, known)
        chosen = _decide(plans, train, device, make, known)
    team.leading([way.path for way in ways].index(chosen.path))
    return chosen


class _Known:
    """Times of one network and batch on one machine, by the path of a plan."""

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self.timings = {name: Timing(**found) for name, found in self._read().get(key, {}).items()}
        self.before = bool(self.timings)

    def _read(self) -> dict[str, Any]:
        """Return the whole file; what cannot be read was timed for nothing."""
        try:
            found = json.loads(self._path.read_bytes()) if self._path is not None else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def add(self, timings: dict[str, Timing]) -> None:
        """Remember timings."""
        self.timings |= timings
        if self._path is not None:
            entry = {name: dataclasses.asdict(timing) for name, timing in self.timings.items()}
            write_file(self._path, json.dumps(self._read() | {self._key: entry}, indent=1).encode(), replace=True)


def _time(plans: list[StepPlan], train: Train, device: torch.device, make: Make, known: _Known) -> None:
    """Time the plans that are not known yet, where that repays."""
    warm, timed = (5, 10) if device.type == "cuda" else (1, 2)
    new = [plan for plan in plans if plan.path not in known.timings]
    if not new or SHARE * train.steps < len(plans) * (warm + timed):
        return
    found = dict(known.timings)
    began = time.perf_counter()
    for plan in plans:
        if plan.path in found:
            continue
        plain = found.get(plans[0].path)
        if plain is not None and time.perf_counter() - began > SHARE * train.steps * plain.step:
            break
        timing = _timing(plan, device, make, warm, timed, None if plain is None else SLOW_START * plain.first)
        if timing is None:
            break
        found[plan.path] = timing
    if plans[0].path in found:
        known.add(found)
        known.before = False


def _decide(plans: list[StepPlan], train: Train, device: torch.device, make: Make, known: _Known) -> StepPlan:
    """Return the fastest plan of those that are known, compiled where that repays."""
    plain = known.timings.get(plans[0].path)
    if plain is None:
        why = f"PyTorch's own, because {train.steps} steps do not repay timing others"
        return _because(plans[0], why)
    by_time = [(known.timings[p.path].step, p) for p in plans if p.path in known.timings]
    seconds, best = min(by_time, key=lambda pair: pair[0])
    if seconds > FASTER * plain.step:
        seconds, best = plain.step, plans[0]
    where = "before on such a machine" if known.before else "here"
    if may_compile(train, best, device):
        compiled = dataclasses.replace(best, compile=True)
        timing = _compiled(compiled, seconds, train, device, make, known)
        if timing is not None and train.steps * (seconds - timing.step) >= REPAID * timing.first:
            seconds, best = timing.step, compiled
    ratio = plain.step / seconds
    if best is plans[0]:
        return _because(best, f"none of {len(by_time)} ways timed {where} is faster")
    return _because(best, f"timed {where}, {ratio:.2f} times {plans[0].path}")


def _compiled(
    plan: StepPlan, eager_s: float, train: Train, device: torch.device, make: Make, known: _Known
) -> Timing | None:
    """Return the times of a compiled plan, known or taken now; None where taking them does not repay."""
    if plan.path not in known.timings:
        if SHARE * train.steps * eager_s < COMPILING_S:
            return None
        warm, timed = (5, 10) if device.type == "cuda" else (1, 2)
        timing = _timing(plan, device, make, warm, timed, None)
        if timing is None:
            return None
        known.add({plan.path: timing})
    return known.timings[plan.path]


def _timing(
    plan: StepPlan, device: torch.device, make: Make, warm: int, timed: int, longest_first: float | None
) -> Timing | None:
    """Take steps as planned; None where the device's memory is too small for them."""
    plan.prepare_process()
    taken: list[float] = []

    def take() -> None:
        step = make(plan)
        for number in range(warm + timed):
            _wait(device)
            began = time.perf_counter()
            step()
            _wait(device)
            taken.append(time.perf_counter() - began)
            if number == 0 and longest_first is not None and taken[0] > longest_first:
                return

    with torch.random.fork_rng(enabled=True):
        if memory.words_of_lack(take):
            return None
    return Timing(taken[0], min(taken[warm:] or taken))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _because(plan: StepPlan, reason: str) -> StepPlan:
    return dataclasses.replace(plan, reasons=plan.reasons | {"path": reason})


def _key(
    sections: tuple[Network, Loss, Train],
    networks: CycleGan,
    size: tuple[int, int],
    device: torch.device,
    processes: int,
) -> str:
    """Return what times depend on, as a digest: machine, library, shapes, and the passes of a step."""
    if device.type == "cuda":
        machine: list[Any] = [torch.cuda.get_device_name(device), torch.version.cuda]
    else:
        able = sorted(name for name, has in torch.cpu.get_capabilities().items() if has)
        machine = [processor(), able, len(os.sched_getaffinity(0)), torch.get_num_threads()]
    network, loss, train = sections
    channels = sorted((str(m), c) for m, c in networks.channels.items())
    tflop = step_tflop(networks, loss, train.batch, size)
    shapes = [network.model_dump(mode="json"), channels, train.batch, processes, list(size), f"{tflop:.6g}"]
    switches = [train.speed.joined, train.speed.fused_adam, train.ema > 0, train.threads]
    return tree_digest([[torch.__version__, machine], shapes, switches])
