"""Every way to compute a step has the gradients of float64 and the losses of the plain step; `auto` takes no other."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator

import pytest
import torch
from gradient_truth import PATHS, assert_gradients_of_float64
from small_training import FAST, PLAIN, TINY, batch, heads, networks, trained
from torch import nn

from ctmr.data.sampling import Batch
from ctmr.recipe.training import Loss, Train
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.cyclegan.step import CycleGanStep
from ctmr.training.events import StepEvent
from ctmr.training.hardware.speed import StepPlan, exchange_layers, like, no_compiler, permitted
from ctmr.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    yield
    StepPlan("CPU").prepare_process()


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_the_gradients_of_float64(path: str, size: int, bf16: bool) -> None:
    assert_gradients_of_float64(networks(), batch(size), dataclasses.replace(PATHS[path], bf16=bf16))


@pytest.mark.parametrize("path", ["fast layers", "channels_last"])
def test_a_u_net_of_fast_layers_has_the_gradients_of_float64(path: str) -> None:
    assert_gradients_of_float64(networks("unet"), batch(1), PATHS[path])


@pytest.mark.skipif(no_compiler(CPU) is not None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("bf16", "sizes"),
    [
        pytest.param(True, (1,), marks=pytest.mark.slow),
        pytest.param(True, (2,), marks=pytest.mark.drill),
        pytest.param(False, (1, 2), marks=pytest.mark.drill),
    ],
)
def test_a_compiled_step_has_the_gradients_of_float64_and_compiles_once(bf16: bool, sizes: tuple[int, ...]) -> None:
    plan = dataclasses.replace(PATHS["channels_last"], bf16=bf16, compile=True)
    for size in sizes:
        assert_gradients_of_float64(networks(), batch(size), plan)
    net = networks()
    plan.prepare(net)
    step = CycleGanStep(net, Loss(), plan.precision)
    for turn in range(4):
        torch.compiler.set_stance("fail_on_recompile" if turn > 1 else "default")
        try:
            losses, fake_ct, fake_mr = step.generator_losses(batch(1), 0.0)
            (losses["generator"] * (turn + 1)).backward()
            step.discriminator_losses(batch(1), Batch(fake_mr, fake_ct))["discriminator"].backward()
        finally:
            torch.compiler.set_stance("default")


def test_every_path_that_may_be_chosen_is_among_those_held_against_float64() -> None:
    tested = {(p.channels_last, p.fast_layers) for p in PATHS.values()}
    ways = permitted(Train(precision="auto"), Loss(), networks(), CPU)
    assert {(way.channels_last, way.fast_layers) for way in ways} <= tested


def test_exchanged_layers_keep_the_names_of_parameters() -> None:
    net = networks()
    names = list(net.state_dict())
    exchange_layers(net)
    assert list(net.state_dict()) == names


def test_a_path_that_is_wrong_would_be_seen() -> None:
    """The guard itself: channels_last with PyTorch's norm is the known wrong gradient at batch 1."""
    with pytest.raises(AssertionError):
        assert_gradients_of_float64(networks(), batch(1), StepPlan("CPU", channels_last=True))


def losses_after_50_steps(**settings: object) -> tuple[float, float]:
    last = [e for e in trained(**settings).run() if isinstance(e, StepEvent)][-1]  # type: ignore[arg-type]
    return last.losses["generator"], last.losses["discriminator"]


def test_after_50_steps_the_fast_paths_have_the_losses_of_the_plain_one_within_the_spread_of_seeds() -> None:
    seeds = [losses_after_50_steps(speed=PLAIN, seed=seed) for seed in range(2)]
    fp32 = losses_after_50_steps(speed=FAST)
    bf16 = losses_after_50_steps(speed=FAST, precision="bf16")
    for index in range(2):
        values = [s[index] for s in seeds]
        spread = max(values) - min(values)
        # fp32 differs by rounding alone; bf16 by no more than another seed does, or 5 %.
        assert fp32[index] == pytest.approx(values[0], rel=2e-2)
        assert abs(bf16[index] - values[0]) <= max(spread, 0.05 * statistics.mean(values))


def test_fused_adam_moves_channels_last_weights_as_adam_written_out_does() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    weight = layer.weight.detach().double().contiguous()
    optimiser = StepPlan("CPU").adam(layer, 0.01, (0.5, 0.999))
    first = second = torch.zeros_like(weight)
    for turn in range(1, 4):
        gradient = torch.randn(4, 3, 3, 3)
        layer.weight.grad = gradient.contiguous(memory_format=torch.channels_last)
        layer.bias.grad = torch.zeros(4)
        optimiser.step()
        first = 0.5 * first + 0.5 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double().square()
        weight = weight - 0.01 * (first / (1 - 0.5**turn)) / ((second / (1 - 0.999**turn)).sqrt() + 1e-8)
    torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


def test_a_resumed_channels_last_training_ends_with_the_same_bits(tmp_path: object) -> None:
    def trainer() -> Trainer:
        settings = Train(steps=8, threads=1, pool=2, checkpoint_every=4, speed=FAST)
        return Trainer(TINY, Loss(), settings, heads(), checkpoints=tmp_path, samples=0)  # type: ignore[arg-type]

    whole = trainer()
    list(whole.run(4))
    again = trainer()
    assert again.resume() and again.step == 4
    list(whole.run())
    list(again.run())
    for direction in whole.cyclegan.networks.generators:
        for p, q in zip(
            whole.cyclegan.networks.generators[direction].parameters(),
            again.cyclegan.networks.generators[direction].parameters(),
            strict=True,
        ):
            assert torch.equal(p, q)


def test_moments_get_the_memory_format_of_their_weight() -> None:
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    moment = torch.randn(4, 3, 2, 2)
    assert torch.equal(like(moment, weight), moment)
    assert like(moment, weight).stride() == weight.stride()
    assert like(torch.tensor(3.0), weight) == 3.0


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"precision": "auto"}, {"deterministic": True}])
def test_what_is_exported_is_pytorchs_and_contiguous(settings: dict[str, object]) -> None:
    from ctmr.imaging.volume import Direction

    trainer = trained(2, speed=FAST, **settings)
    list(trainer.run())
    generator = trainer.generator(Direction.MR2CT)
    reference = CycleGan(TINY, mr_channels=1, ct_channels=1).generators["mr2ct"].eval()
    reference.load_state_dict(generator.state_dict())
    image = torch.rand(2, 1, 16, 16)
    assert torch.equal(generator(image), reference(image))
    assert all(p.is_contiguous() for p in generator.parameters())


def test_equal_runs_have_equal_bits_where_determinism_is_asked_for() -> None:
    runs = []
    for _ in range(2):
        trainer = trained(3, deterministic=True)
        list(trainer.run())
        assert torch.are_deterministic_algorithms_enabled()
        runs.append(torch.cat([p.detach().flatten() for p in trainer.cyclegan.networks.parameters()]))
    assert torch.equal(*runs)
    list(trained(1).run())
    assert not torch.are_deterministic_algorithms_enabled()
