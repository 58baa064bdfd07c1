"""What ``train.speed`` comes to on each kind of device."""

from __future__ import annotations

import pytest
import torch
from small_training import FAST, PLAIN, batch, networks, trained

from ctmr.data.sampling import Batch
from ctmr.errors import InputError
from ctmr.recipe.training import Loss, Precision, Speed, Train
from ctmr.training.cyclegan.step import CycleGanStep
from ctmr.training.events import NoticeEvent
from ctmr.training.hardware import speed
from ctmr.training.hardware.speed import DeviceKind, StepPlan, resolve, step_tflop

CPU = torch.device("cpu")


def plan(kind: DeviceKind, monkeypatch: pytest.MonkeyPatch, loss: Loss = Loss(), **train: object) -> StepPlan:
    monkeypatch.setattr(DeviceKind, "of", classmethod(lambda cls, device: kind))
    return resolve(Train.model_validate(train), loss, networks(), (32, 32), CPU)


def test_auto_takes_what_was_measured_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan(DeviceKind.CPU_AMX, monkeypatch, precision="auto", steps=10)
    assert chosen.bf16 and chosen.channels_last and chosen.fast_layers and not chosen.compile
    assert "docs/performance.md" in chosen.reasons["layout"]
    assert "channels_last" in (chosen.notice or "")
    assert chosen.record()["reasons"]["layout"] == chosen.reasons["layout"]


UNMEASURED = [kind for kind in (DeviceKind.CUDA, DeviceKind.CPU) if (kind, False) not in speed._MEASURED]


@pytest.mark.parametrize("kind", UNMEASURED)
def test_auto_is_pytorchs_own_where_nothing_was_measured(kind: DeviceKind, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan(kind, monkeypatch, precision="fp32")
    assert not (chosen.channels_last or chosen.fast_layers or chosen.compile or chosen.graphs)
    assert "not measured" in chosen.reasons["layers"]
    assert chosen.notice is None


def test_auto_precision_is_fp32_without_bf16_in_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(DeviceKind.CPU, monkeypatch, precision="auto").precision is Precision.FP32


def test_a_training_compiles_where_its_work_repays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_no_compiler", lambda kind: None)
    monkeypatch.setattr(
        speed,
        "_MEASURED",
        {
            (DeviceKind.CPU_AMX, True): speed.MeasuredSpeed(True, True, speed.Compiling(10.0, 0.01, 1.0), 0, "a test"),
        },
    )
    steps = int(20.0 / (0.01 + step_tflop(networks(), Loss(), 1, (32, 32))))
    settings = {"precision": "bf16", "speed": Speed()}
    assert plan(DeviceKind.CPU_AMX, monkeypatch, steps=steps + 1, **settings).compile
    assert not plan(DeviceKind.CPU_AMX, monkeypatch, steps=steps - 1, **settings).compile
    assert not plan(DeviceKind.CPU_AMX, monkeypatch, steps=steps + 1, deterministic=True, **settings).compile


def test_the_work_of_a_step_is_what_pytorchs_counter_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net, b = networks(), batch(2)
    net.joined = False
    step = CycleGanStep(net, Loss(), Precision.FP32)
    with FlopCounterMode(display=False) as counter:
        net.discriminators.requires_grad_(False)
        losses, fake_ct, fake_mr = step.generator_losses(b, 0.0)
        losses["generator"].backward()
        net.discriminators.requires_grad_(True)
        step.discriminator_losses(b, Batch(fake_mr, fake_ct))["discriminator"].backward()
    # The counter leaves out the gradient of images that need none: those of the first layer of some passes.
    assert step_tflop(net, Loss(), 2, (20, 24)) * 1e12 == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_without_a_compiler_a_step_is_eager_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    chosen = plan(DeviceKind.CPU, monkeypatch, speed={"compile": True})
    assert not chosen.compile and "no C++ compiler" in (chosen.notice or "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layout": "channels_last", "layers": "pytorch"}, "train.speed.layout cannot be used: the gradient"),
        ({"layers": "fast"}, "train.speed.layers cannot be used: the gradient penalty"),
    ],
)
def test_a_path_with_a_wrong_gradient_is_refused(
    settings: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Loss(adversarial="wasserstein") if "layout" not in settings else Loss()
    with pytest.raises(InputError, match=words):
        plan(DeviceKind.CPU, monkeypatch, loss, speed=settings)


def test_with_a_gradient_penalty_auto_keeps_pytorchs_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan(DeviceKind.CPU_AMX, monkeypatch, Loss(adversarial="wasserstein"), precision="bf16")
    assert not (chosen.fast_layers or chosen.channels_last)
    assert "differentiates twice" in chosen.reasons["layers"]


def test_a_trainer_tells_its_plan_once() -> None:
    notices = [e.message for e in trained(1, speed=FAST).run() if isinstance(e, NoticeEvent)]
    assert len(notices) == 1 and "channels_last, fast layers" in notices[0]
    assert not [e for e in trained(1, speed=PLAIN).run() if isinstance(e, NoticeEvent)]
