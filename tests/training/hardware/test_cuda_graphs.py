"""CUDA graphs, with a recorder that does again on the host what CUDA would launch again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from small_training import trained
from torch import Tensor, nn

from ctmr.training.events import StepEvent
from ctmr.training.hardware.cuda_graphs import EAGER_CALLS, Replay
from ctmr.training.hardware.speed import set_rate
from ctmr.training.trainer import Trainer


class Again:
    def __init__(self, work: object) -> None:
        self.work = work

    def replay(self) -> None:
        self.work()  # type: ignore[operator]


class Host:
    def __init__(self, record: Callable[[object], Again]) -> None:
        self.record = record

    def aside(self, work: Callable[[], object]) -> object:
        return work()


def test_a_replayed_step_gets_new_inputs_and_leaves_earlier_results_alone() -> None:
    held = torch.zeros(2)

    def work(x: Tensor, nothing: None, weight: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        held.copy_(x * weight)
        return {"sum": held.sum(), "first": held[0]}, (held,)

    replay = Replay(Host(fixed_results))
    seen = []
    for turn in range(EAGER_CALLS + 4):
        scalars, (image,) = replay("double", work, torch.full((2,), float(turn)), None, torch.tensor(2.0))
        seen.append((scalars, image.clone() if turn < EAGER_CALLS else image))
    for turn, (scalars, image) in enumerate(seen):
        if turn >= EAGER_CALLS:
            assert image.tolist() == [2.0 * turn] * 2
            assert scalars["sum"] == 4.0 * turn and scalars["first"] == 2.0 * turn


def fixed_results(work: object) -> Again:
    """As CUDA does: a recording does nothing at first, and every launch writes into the results of the recording."""
    cells = work.__closure__  # type: ignore[attr-defined]
    out = next(c.cell_contents for c in cells if isinstance(c.cell_contents, list))
    work()  # type: ignore[operator]
    scalars, _, images = out[0]

    def launch() -> None:
        work()  # type: ignore[operator]
        fresh, _, fresh_images = out.pop()
        scalars.copy_(fresh)
        for kept, given in zip(images, fresh_images, strict=True):
            kept.copy_(given)

    return Again(launch)


def test_a_replayed_training_equals_an_eager_one() -> None:
    runs = []
    for graphs in (False, True):
        trainer = trained(8)
        if graphs:
            trainer.cyclegan.step.replay = Replay(Host(partial(recorded_without_doing, trainer)))
        events = [e for e in trainer.run() if isinstance(e, StepEvent)]
        parameters = torch.cat([p.detach().flatten() for p in trainer.cyclegan.networks.parameters()])
        runs.append((events[-1].losses["generator"], parameters))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-6)
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-5, atol=1e-6)


def recorded_without_doing(trainer: Trainer, work: object) -> Again:
    """Record by doing once and undoing, so that the first launch counts once; Adam's moments are undone too."""
    before = [(p, p.detach().clone()) for p in trainer.cyclegan.networks.parameters()]
    adams = [(o, copy.deepcopy(o.state_dict())) for o in trainer.cyclegan.optimisers.values()]
    recording = fixed_results(work)
    with torch.no_grad():
        for p, value in before:
            p.copy_(value)
    for optimiser, state in adams:
        optimiser.load_state_dict(state)
    return recording


def test_a_rate_held_on_the_device_is_set_in_place() -> None:
    held = torch.tensor(1.0)
    optimiser = torch.optim.Adam([nn.Parameter(torch.zeros(1))], held, capturable=False)
    optimiser.param_groups[0]["lr"] = held
    set_rate(optimiser, 0.25)
    assert held == 0.25
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    set_rate(plain, 0.5)
    assert plain.param_groups[0]["lr"] == 0.5
