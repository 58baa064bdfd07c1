"""Every way to compute a step has the gradients of float64 and the losses of the plain step; `auto` takes no other."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Iterator

import pytest
import torch
from small_training import FAST, PLAIN, TINY, batch, heads, networks, trained
from torch import Tensor, nn

from ctmr.data.sampling import Batch, TrainingData
from ctmr.gan import speed
from ctmr.gan.cyclegan import CycleGan
from ctmr.gan.events import StepEvent
from ctmr.gan.speed import DeviceKind, Plan, exchange_layers, like
from ctmr.gan.step import CycleGanStep
from ctmr.gan.trainer import Trainer
from ctmr.recipe import GeneratorKind, Loss, Train

RELATIVE_FP32 = 5e-4
"""Largest error of a parameter's gradient, relative to its norm; measured at most 5e-5."""
LEAST_COSINE_BF16, WORSE_BF16 = 0.85, 0.01
"""Of all gradients together with those of float64, and how much below that of PyTorch's own layers in bf16."""
PATHS = {
    "eager": Plan("CPU"),
    "separate passes": Plan("CPU", joined=False),
    "indexed pad": Plan("CPU", indexed_pad=True),
    "fast layers": Plan("CPU", fast_layers=True, indexed_pad=True),
    "channels_last": Plan("CPU", channels_last=True, fast_layers=True, indexed_pad=True),
    "channels_last, separate": Plan("CPU", channels_last=True, fast_layers=True, indexed_pad=True, joined=False),
}


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    yield
    Plan("CPU").prepare_process()


class ElementaryInstanceNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((2, 3), keepdim=True)
        return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()


def truth(net: CycleGan, b: Batch) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Gradients of Zhu et al. 2017 in float64, one pass an image set, with a norm written out."""
    net = copy.deepcopy(net).double()
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                setattr(parent, name, ElementaryInstanceNorm())
    to_ct, to_mr = net.generators["mr2ct"], net.generators["ct2mr"]
    judge_ct, judge_mr = net.discriminators["CT"], net.discriminators["MR"]
    x, y = b.mr.double(), b.ct.double()
    fake_y, fake_x = to_ct(x), to_mr(y)
    objective = (judge_ct(fake_y) - 1).square().mean() + (judge_mr(fake_x) - 1).square().mean()
    objective = objective + 10 * ((to_mr(fake_y) - x).abs().mean() + (to_ct(fake_x) - y).abs().mean())
    objective = objective + 5 * ((to_ct(y) - y).abs().mean() + (to_mr(x) - x).abs().mean())
    objective.backward()
    net.discriminators.zero_grad()
    judged = x.new_zeros(())
    for judge, real, fake in ((judge_ct, y, fake_y.detach()), (judge_mr, x, fake_x.detach())):
        judged = judged + 0.5 * ((judge(real) - 1).square().mean() + judge(fake).square().mean())
    judged.backward()
    return net.generators, net.discriminators


def found(net: CycleGan, b: Batch, plan: Plan) -> CycleGan:
    """Gradients of our step by a plan."""
    net = copy.deepcopy(net)
    plan.prepare(net)
    step = CycleGanStep(net, Loss(), plan.precision)
    net.discriminators.requires_grad_(False)
    losses, fake_ct, fake_mr = step.generator_losses(b, 0.0)
    losses["generator"].backward()
    net.discriminators.requires_grad_(True)
    step.discriminator_losses(b, fake_ct, fake_mr, None, None)["discriminator"].backward()
    return net


def flat(*modules: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for m in modules for p in m.parameters()])


def cosines(got: CycleGan, wanted: tuple[nn.ModuleDict, nn.ModuleDict]) -> list[float]:
    return [
        torch.cosine_similarity(flat(module), flat(reference), dim=0).item()
        for module, reference in zip((got.generators, got.discriminators), wanted, strict=True)
    ]


def assert_gradients_of_float64(net: CycleGan, b: Batch, plan: Plan) -> None:
    wanted, got = truth(net, b), found(net, b, plan)
    if plan.bf16:
        # Rounding to 8 bits decides most of the error: the same rounding with PyTorch's layers is the yardstick.
        yardstick = cosines(found(net, b, Plan("CPU", bf16=True)), wanted)
        for cosine, own in zip(cosines(got, wanted), yardstick, strict=True):
            assert cosine > max(LEAST_COSINE_BF16, own - WORSE_BF16), (cosine, own)
        return
    for module, reference in zip((got.generators, got.discriminators), wanted, strict=True):
        floor = RELATIVE_FP32 * 1e-3 * float(flat(reference).norm())
        for (name, p), q in zip(module.named_parameters(), reference.parameters(), strict=True):
            error, norm = float((p.grad.double() - q.grad).norm()), float(q.grad.norm())
            assert error <= RELATIVE_FP32 * norm + floor, (name, error, norm)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_the_gradients_of_float64(path: str, size: int, bf16: bool) -> None:
    assert_gradients_of_float64(networks(), batch(size), dataclasses.replace(PATHS[path], bf16=bf16))


@pytest.mark.parametrize("path", ["fast layers", "channels_last"])
def test_a_u_net_of_fast_layers_has_the_gradients_of_float64(path: str) -> None:
    assert_gradients_of_float64(networks(GeneratorKind.UNET), batch(1), PATHS[path])


@pytest.mark.skipif(speed._no_compiler(DeviceKind.CPU) is not None, reason="no C++ compiler")
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
            step.discriminator_losses(batch(1), fake_ct, fake_mr, None, None)["discriminator"].backward()
        finally:
            torch.compiler.set_stance("default")


def test_every_measured_path_is_among_those_held_against_float64() -> None:
    tested = {(p.channels_last, p.fast_layers) for p in PATHS.values()}
    assert {(m.channels_last, m.fast_layers) for m in speed._MEASURED.values()} <= tested


def test_exchanged_layers_keep_the_names_of_parameters() -> None:
    net = networks()
    names = list(net.state_dict())
    exchange_layers(net)
    assert list(net.state_dict()) == names


def test_a_path_that_is_wrong_would_be_seen() -> None:
    """The guard itself: channels_last with PyTorch's norm is the known wrong gradient at batch 1."""
    with pytest.raises(AssertionError):
        assert_gradients_of_float64(networks(), batch(1), Plan("CPU", channels_last=True))


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
    optimiser = Plan("CPU").adam(layer, 0.01, (0.5, 0.999))
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
    for direction in whole._networks.generators:
        for p, q in zip(
            whole._networks.generators[direction].parameters(), again._networks.generators[direction].parameters(),
            strict=True,
        ):  # fmt: skip
            assert torch.equal(p, q)


def test_moments_get_the_memory_format_of_their_weight() -> None:
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    moment = torch.randn(4, 3, 2, 2)
    assert torch.equal(like(moment, weight), moment)
    assert like(moment, weight).stride() == weight.stride()
    assert like(torch.tensor(3.0), weight) == 3.0


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"precision": "auto"}, {"deterministic": True}])
def test_what_is_exported_is_pytorchs_and_contiguous(settings: dict[str, object]) -> None:
    from ctmr.volume import Direction

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
        runs.append(torch.cat([p.detach().flatten() for p in trainer._networks.parameters()]))
    assert torch.equal(*runs)
    list(trained(1).run())
    assert not torch.are_deterministic_algorithms_enabled()


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_device(steps: int, **train: object) -> Trainer:
    data = heads()
    moved = [dataclasses.replace(domain, images=domain.images.cuda()) for domain in (data.mr, data.ct)]
    settings = Train.model_validate({"steps": steps, "pool": 2, "shift": 1, **train})
    return Trainer(TINY, Loss(), settings, TrainingData(*moved), report_every=10_000, samples=0)


@on_cuda
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_a_step_on_cuda_never_makes_the_host_wait(graphs: bool) -> None:
    trainer = on_device(40, speed={"graphs": graphs, "layers": "fast", "layout": "channels_last"})
    list(trainer.run(10))
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(trainer.run(20))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_cuda
def test_cuda_graphs_train_to_the_weights_of_eager_steps() -> None:
    ends = []
    for graphs in (False, True):
        trainer = on_device(12, speed={"graphs": graphs}, deterministic=True)
        list(trainer.run())
        ends.append(torch.cat([p.detach().flatten() for p in trainer._networks.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


@on_cuda
def test_equal_deterministic_runs_on_cuda_have_equal_bits() -> None:
    ends = []
    for _ in range(2):
        trainer = on_device(5, deterministic=True)
        list(trainer.run())
        ends.append(torch.cat([p.detach().flatten() for p in trainer._networks.parameters()]))
    assert torch.equal(*ends)


@on_cuda
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_on_cuda_has_the_gradients_of_float64(path: str, size: int, bf16: bool) -> None:
    Plan("CUDA").prepare_process()
    b = Batch(batch(size).mr.cuda(), batch(size).ct.cuda())
    assert_gradients_of_float64(networks().cuda(), b, dataclasses.replace(PATHS[path], bf16=bf16))
