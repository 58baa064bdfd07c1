"""Seen on a GPU alone.

There: `python -m pytest -q tests/training/hardware/test_on_cuda.py tests/training/hardware/test_memory.py`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gradient_truth import PATHS, assert_gradients_of_float64
from small_training import PLAIN, TINY, batch, heads, networks

from ctmr.data.sampling import Batch, TrainingData
from ctmr.recipe.training import Loss, Network, Speed, Train
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.events import StepEvent
from ctmr.training.hardware.speed import StepPlan, no_compiler
from ctmr.training.trainer import Trainer

DEVICE = torch.device("cuda")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

EVERYTHING = {"layout": "channels_last", "layers": "fast", "compile": False}
COMPILED = {**EVERYTHING, "compile": no_compiler(DEVICE) is None}


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    StepPlan("CUDA").prepare_process()
    yield
    StepPlan("CUDA").prepare_process()


def trainer(steps: int, *, folder: Path | None = None, every: int = 10_000, **train: object) -> Trainer:
    data = heads()
    moved = [dataclasses.replace(domain, images=domain.images.to(DEVICE)) for domain in (data.mr, data.ct)]
    settings = Train.model_validate({"steps": steps, "pool": 2, "shift": 1, "checkpoint_every": 4, **train})
    return Trainer(TINY, Loss(), settings, TrainingData(*moved), report_every=every, samples=0, checkpoints=folder)


def weights(trained: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.cyclegan.networks.parameters()])


def on_device(images: Batch) -> Batch:
    return Batch(images.mr.to(DEVICE), images.ct.to(DEVICE))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("path", [*PATHS, "compiled"])
def test_every_path_has_the_gradients_of_float64(path: str, size: int, bf16: bool) -> None:
    plan = dataclasses.replace(PATHS["channels_last"], compile=True) if path == "compiled" else PATHS[path]
    assert_gradients_of_float64(networks().to(DEVICE), on_device(batch(size)), dataclasses.replace(plan, bf16=bf16))


@pytest.mark.parametrize("size", [1, 8])
def test_networks_of_full_width_have_the_gradients_of_float64(size: int) -> None:
    rng = torch.Generator().manual_seed(4)
    net = CycleGan(Network(), mr_channels=1, ct_channels=1, rng=rng).to(DEVICE)
    images = Batch(*(torch.rand(size, 1, 64, 64, generator=rng).to(DEVICE) * 2 - 1 for _ in range(2)))
    for path in ("eager", "channels_last"):
        # Depth adds up rounding: on a CPU PyTorch's own layers are 2e-3 away.
        assert_gradients_of_float64(net, images, PATHS[path], relative=1e-2)


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_a_step_never_makes_the_host_wait(graphs: bool) -> None:
    trained = trainer(40, speed={"graphs": graphs, "layers": "fast", "layout": "channels_last"})
    list(trained.run(10))
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(trained.run(20))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graphs_train_to_the_weights_of_eager_steps() -> None:
    ends = []
    for graphs in (False, True):
        trained = trainer(12, speed={"graphs": graphs}, deterministic=True)
        list(trained.run())
        ends.append(weights(trained))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16", "speed": EVERYTHING}], ids=["plain", "fast"])
def test_equal_deterministic_runs_have_equal_bits(settings: dict[str, object]) -> None:
    ends = []
    for _ in range(2):
        trained = trainer(20, deterministic=True, **settings)
        list(trained.run())
        ends.append(weights(trained))
    assert torch.equal(*ends)


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16", "speed": EVERYTHING}], ids=["plain", "fast"])
def test_a_resumed_deterministic_training_ends_with_the_same_bits(tmp_path: Path, settings: dict[str, object]) -> None:
    whole = trainer(12, deterministic=True, **settings)
    list(whole.run())
    # Goes beyond its checkpoint, as a killed one would have.
    list(trainer(12, folder=tmp_path, deterministic=True, **settings).run(6))
    again = trainer(12, folder=tmp_path, deterministic=True, **settings)
    assert again.resume() and again.step == 4
    list(again.run())
    assert torch.equal(weights(whole), weights(again))


def curve(seed: int, path: Speed | dict[str, object], precision: str) -> dict[str, float]:
    """Mean of each loss over the last 100 of 500 steps."""
    reports = list(trainer(500, every=20, seed=seed, speed=path, precision=precision).run())
    last = [e.losses for e in reports if isinstance(e, StepEvent) and e.step > 400]
    assert len(last) == 5
    return {term: statistics.fmean(losses[term] for losses in last) for term in last[0]}


@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "graphs"])
def test_over_500_steps_the_fastest_path_stays_within_the_spread_of_two_seeds(graphs: bool) -> None:
    plain, other = (curve(seed, PLAIN, "fp32") for seed in (0, 1))
    fastest = curve(0, {**COMPILED, "graphs": graphs}, "bf16")
    for term in ("generator", "discriminator", "cycle_mr", "cycle_ct"):
        spread = max(abs(plain[term] - other[term]), 0.1 * plain[term])
        assert abs(fastest[term] - plain[term]) <= spread, (term, plain[term], other[term], fastest[term])
