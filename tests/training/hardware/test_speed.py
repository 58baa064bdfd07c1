"""Plans that ``train.speed`` permits."""

from __future__ import annotations

import pytest
import torch
from small_training import FAST, PLAIN, batch, networks, trained

from ctmr.data.sampling import Batch
from ctmr.errors import InputError
from ctmr.recipe.training import Loss, Precision, Train
from ctmr.training.cyclegan.step import CycleGanStep
from ctmr.training.events import NoticeEvent
from ctmr.training.hardware.speed import StepPlan, may_compile, permitted, step_tflop

CPU = torch.device("cpu")


def plans(loss: Loss = Loss(), **train: object) -> list[StepPlan]:
    return permitted(Train.model_validate(train), loss, networks(), CPU)


def forms(found: list[StepPlan]) -> list[tuple[str, bool, bool]]:
    return [(str(p.precision), p.channels_last, p.fast_layers) for p in found]


def test_auto_permits_each_right_form_the_plainest_first() -> None:
    assert forms(plans(precision="auto")) == [
        ("fp32", False, False),
        ("fp32", True, True),
        ("bf16", False, False),
        ("bf16", True, True),
    ]
    assert not any(p.compile or p.graphs for p in plans(precision="auto"))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"precision": "bf16"}, [("bf16", False, False), ("bf16", True, True)]),
        ({"precision": "bf16", "speed": {"layers": "pytorch"}}, [("bf16", False, False)]),
        ({"speed": {"layers": "fast"}}, [("fp32", False, True), ("fp32", True, True)]),
        ({"speed": {"layers": "fast", "layout": "contiguous"}}, [("fp32", False, True)]),
        ({"speed": {"layout": "channels_last"}}, [("fp32", True, True)]),
        (
            {"precision": "auto", "deterministic": True, "speed": {"layout": "contiguous", "layers": "pytorch"}},
            [("fp32", False, False)],
        ),
    ],
)
def test_what_a_recipe_pins_is_kept(settings: dict[str, object], wanted: list[tuple[str, bool, bool]]) -> None:
    assert forms(plans(**settings)) == wanted


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
    (plain, fast) = plans(speed={"compile": True})
    assert not plain.compile and "no C++ compiler" in (plain.notice or "")
    assert not may_compile(Train(), fast, CPU)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layout": "channels_last", "layers": "pytorch"}, "train.speed.layout cannot be used: the gradient"),
        ({"layers": "fast"}, "train.speed.layers cannot be used: the gradient penalty"),
    ],
)
def test_a_path_with_a_wrong_gradient_is_refused(settings: dict[str, str], words: str) -> None:
    loss = Loss(adversarial="wasserstein") if "layout" not in settings else Loss()
    with pytest.raises(InputError, match=words):
        plans(loss, speed=settings)


def test_with_a_gradient_penalty_auto_keeps_pytorchs_layers() -> None:
    (only,) = plans(Loss(adversarial="wasserstein"), precision="bf16")
    assert not (only.fast_layers or only.channels_last)
    assert "differentiates twice" in only.reasons["layers"]


def test_a_trainer_tells_its_plan_once() -> None:
    notices = [e.message for e in trained(1, speed=FAST).run() if isinstance(e, NoticeEvent)]
    assert len(notices) == 1 and "channels_last, fast layers" in notices[0]
    assert not [e for e in trained(1, speed=PLAIN).run() if isinstance(e, NoticeEvent)]
