"""The fastest way to compute a step: timed, chosen and remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_training import TINY, heads, networks, trained

from ctmr.recipe.training import Layers, Layout, Loss, Precision, Speed, Train
from ctmr.training.hardware import fastest, speed
from ctmr.training.hardware.fastest import COMPILING_S, SHARE, choose
from ctmr.training.hardware.speed import StepPlan
from ctmr.training.trainer import Trainer

PLAIN, LAST, BF16, BF16_LAST = (
    f"{precision}, {form}"
    for precision in ("fp32", "bf16")
    for form in ("contiguous, PyTorch's layers", "channels_last, fast layers")
)
COMPILED = f"{BF16_LAST}, compile"


class Machine:
    """A machine on which a step takes the seconds that are given, by the path of its plan."""

    def __init__(self, **train: object) -> None:
        self.seconds = {PLAIN: 1.0, LAST: 0.9, BF16: 0.6, BF16_LAST: 0.5, COMPILED: 0.4}
        self.first = {COMPILED: 60.0}
        self.without_memory: set[str] = set()
        self.train = Train.model_validate({"precision": "auto", "steps": 1000, **train})
        self.now = 0.0
        self.timed: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def make(self, plan: StepPlan) -> Callable[[], None]:
        self.timed.append(plan.path)
        if plan.path in self.without_memory:
            raise torch.OutOfMemoryError("no memory")
        steps = iter([self.first.get(plan.path, self.seconds[plan.path]), *[self.seconds[plan.path]] * 50])

        def step() -> None:
            self.now += next(steps)

        return step

    def choose(self, remembered: Path | None = None) -> StepPlan:
        self.timed.clear()
        return choose((TINY, Loss(), self.train), networks(), (20, 24), self.make, remembered=remembered)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(fastest, "time", found)
    monkeypatch.setattr(speed, "no_compiler", lambda device: None)
    return found


def test_the_fastest_plan_is_taken_and_says_how_much_faster(machine: Machine) -> None:
    plan = machine.choose()
    assert machine.timed == [PLAIN, LAST, BF16, BF16_LAST]
    assert plan.path == BF16_LAST
    assert plan.reasons["path"] == f"timed here, 2.00 times {PLAIN}"
    assert BF16_LAST in (plan.notice or "")


def test_it_is_remembered_by_machine_and_shapes(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "home" / "speeds.json"
    first = machine.choose(path)
    again = machine.choose(path)
    assert machine.timed == [] and again.path == first.path and "before on such a machine" in again.reasons["path"]
    machine.train = machine.train.model_copy(update={"steps": 3})
    assert machine.choose(path).path == first.path and machine.timed == []
    machine.train = machine.train.model_copy(update={"batch": 2, "steps": 1000})
    machine.choose(path)
    assert machine.timed and len(json.loads(path.read_text())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 3}'])
def test_a_damaged_memory_is_timed_anew(content: str, machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    path.write_text(content)
    assert machine.choose(path).path == BF16_LAST
    assert machine.timed and machine.choose(path).path == BF16_LAST and not machine.timed


def test_a_short_training_times_nothing_and_says_so(machine: Machine) -> None:
    machine.train = machine.train.model_copy(update={"steps": 100})
    plan = machine.choose()
    assert machine.timed == [] and plan.path == PLAIN
    assert "100 steps do not repay" in plan.reasons["path"]


def test_nothing_slower_than_plain_is_chosen(machine: Machine) -> None:
    machine.seconds = dict.fromkeys(machine.seconds, 1.0) | {LAST: 0.99, BF16: 3.0}
    plan = machine.choose()
    assert plan.path == PLAIN and plan.reasons["path"] == "none of 4 ways timed here is faster"


@pytest.mark.parametrize("slow", [2.0, 50.0, 1e4])
@pytest.mark.parametrize("steps", [600, 5000])
def test_timing_takes_no_more_than_its_share_and_one_plan(slow: float, steps: int, machine: Machine) -> None:
    machine.seconds |= {LAST: slow, BF16: slow, BF16_LAST: slow, COMPILED: slow}
    machine.train = machine.train.model_copy(update={"steps": steps})
    assert machine.choose().path == PLAIN
    assert machine.now <= SHARE * steps + 3 * slow
    if slow > fastest.SLOW_START:
        assert machine.now <= SHARE * steps + slow


def test_compiling_is_tried_where_the_training_is_long_and_taken_where_it_repays(machine: Machine) -> None:
    enough = int(COMPILING_S / SHARE / machine.seconds[BF16_LAST]) + 1
    machine.train = machine.train.model_copy(update={"steps": enough - 2})
    assert machine.choose().path == BF16_LAST and COMPILED not in machine.timed
    machine.train = machine.train.model_copy(update={"steps": enough})
    assert machine.choose().path == COMPILED and machine.timed[-1] == COMPILED
    machine.seconds[COMPILED] = 0.499
    assert machine.choose().path == BF16_LAST


def test_compiling_that_is_remembered_is_weighed_against_the_steps(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    machine.train = machine.train.model_copy(update={"steps": 100_000})
    assert machine.choose(path).path == COMPILED
    for steps, wanted in ((1100, BF16_LAST), (1300, COMPILED)):  # 60 s twice, for 0.1 s a step
        machine.train = machine.train.model_copy(update={"steps": steps})
        assert machine.choose(path).path == wanted and machine.timed == []


def test_what_the_recipe_pins_is_not_timed_against_others(machine: Machine) -> None:
    pinned = Speed(layout=Layout.CONTIGUOUS, layers=Layers.PYTORCH, compile=False)
    machine.train = machine.train.model_copy(update={"precision": Precision.FP32, "speed": pinned})
    assert machine.choose().path == PLAIN and machine.timed == []
    machine.train = Train(precision="bf16", steps=1000)
    assert machine.choose().path == BF16_LAST and machine.timed == [BF16, BF16_LAST]


def test_a_deterministic_training_is_not_left_to_the_clock(machine: Machine) -> None:
    machine.train = machine.train.model_copy(update={"deterministic": True})
    assert machine.choose().path == f"{PLAIN}, deterministic" and machine.timed == []


def test_a_plan_without_memory_ends_the_timing_and_is_not_taken(machine: Machine) -> None:
    machine.without_memory = {BF16_LAST}
    assert machine.choose().path == BF16
    machine.without_memory = {PLAIN}
    assert machine.choose().path == PLAIN


def test_timing_leaves_no_trace_in_the_numbers_of_a_training() -> None:
    def first_steps(settings: Train) -> list[torch.Tensor]:
        trainer = Trainer(TINY, Loss(), settings, heads(), samples=0)
        list(trainer.run(until_step=3))
        return [p.detach().clone() for p in trainer.cyclegan.networks.parameters()]

    timed = trained(1000, precision="auto")
    plan = timed.cyclegan.plan
    assert "timed here" in plan.reasons["path"]
    pins = Speed(
        layout=Layout.CHANNELS_LAST if plan.channels_last else Layout.CONTIGUOUS,
        layers=Layers.FAST if plan.fast_layers else Layers.PYTORCH,
        compile=False,
    )
    list(timed.run(until_step=3))
    pinned = first_steps(Train(steps=1000, threads=1, pool=4, seed=0, precision=plan.precision, speed=pins))
    for a, b in zip(timed.cyclegan.networks.parameters(), pinned, strict=True):
        assert torch.equal(a.detach(), b)
