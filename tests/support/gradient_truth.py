"""Gradients of a CycleGAN step in float64, written from the paper's formulas, and how near a path has to come."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ctmr.data.sampling import Batch
from ctmr.recipe.training import Loss
from ctmr.training.cyclegan.networks import CycleGan
from ctmr.training.cyclegan.step import CycleGanStep
from ctmr.training.hardware.speed import StepPlan

RELATIVE_FP32 = 5e-4
"""Largest error of a parameter's gradient, relative to its norm; measured at most 5e-5."""
LEAST_COSINE_BF16, WORSE_BF16 = 0.85, 0.01
"""Of all gradients together with those of float64, and how much below that of PyTorch's own layers in bf16."""
PATHS = {
    "eager": StepPlan("CPU"),
    "separate passes": StepPlan("CPU", joined=False),
    "indexed pad": StepPlan("CPU", indexed_pad=True),
    "fast layers": StepPlan("CPU", fast_layers=True, indexed_pad=True),
    "channels_last": StepPlan("CPU", channels_last=True, fast_layers=True, indexed_pad=True),
    "channels_last, separate": StepPlan("CPU", channels_last=True, fast_layers=True, indexed_pad=True, joined=False),
}


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


def found(net: CycleGan, b: Batch, plan: StepPlan) -> CycleGan:
    """Gradients of our step by a plan."""
    net = copy.deepcopy(net)
    plan.prepare(net)
    step = CycleGanStep(net, Loss(), plan.precision)
    net.discriminators.requires_grad_(False)
    losses, fake_ct, fake_mr = step.generator_losses(b, 0.0)
    losses["generator"].backward()
    net.discriminators.requires_grad_(True)
    step.discriminator_losses(b, Batch(fake_mr, fake_ct))["discriminator"].backward()
    return net


def flat(*modules: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for m in modules for p in m.parameters()])


def cosines(got: CycleGan, wanted: tuple[nn.ModuleDict, nn.ModuleDict]) -> list[float]:
    return [
        torch.cosine_similarity(flat(module), flat(reference), dim=0).item()
        for module, reference in zip((got.generators, got.discriminators), wanted, strict=True)
    ]


def assert_gradients_of_float64(net: CycleGan, b: Batch, plan: StepPlan, relative: float = RELATIVE_FP32) -> None:
    wanted, got = truth(net, b), found(net, b, plan)
    if plan.bf16:
        # Rounding to 8 bits decides most of the error: the same rounding with PyTorch's layers is the yardstick.
        yardstick = cosines(found(net, b, StepPlan("CPU", bf16=True)), wanted)
        for cosine, own in zip(cosines(got, wanted), yardstick, strict=True):
            assert cosine > max(LEAST_COSINE_BF16, own - WORSE_BF16), (cosine, own)
        return
    for module, reference in zip((got.generators, got.discriminators), wanted, strict=True):
        floor = relative * 1e-3 * float(flat(reference).norm())
        for (name, p), q in zip(module.named_parameters(), reference.parameters(), strict=True):
            error, norm = float((p.grad.double() - q.grad).norm()), float(q.grad.norm())
            assert error <= relative * norm + floor, (name, error, norm)
