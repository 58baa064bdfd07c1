"""Fast layers equal PyTorch's in float64, forward and backward, in both memory formats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ctmr.networks.blocks import ResidualBlock
from ctmr.networks.fast_layers import FastInstanceNorm2d, IndexReflectionPad2d, instance_norm, reflection_pad

FORMATS = (torch.contiguous_format, torch.channels_last)
# Both sums are over at most 7 × 9 pixels; fp32 has 24 bits, bf16 has 8.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def image(count: int, channels: int, dtype: torch.dtype, form: torch.memory_format, seed: int = 0) -> Tensor:
    x = torch.randn(count, channels, 7, 9, generator=torch.Generator().manual_seed(seed)) + 0.5
    return x.to(dtype).contiguous(memory_format=form)


def elementary_norm(x: Tensor, slope: float | None) -> Tensor:
    centred = x - x.mean((2, 3), keepdim=True)
    y = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return y if slope is None else torch.where(y > 0, y, slope * y)


@pytest.mark.parametrize("given", FORMATS, ids=["gradient contiguous", "gradient channels_last"])
@pytest.mark.parametrize("form", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("slope", [None, 0.0, 0.2])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_instance_norm_equals_its_formula_in_float64_in_every_memory_format(
    count: int, slope: float | None, dtype: torch.dtype, form: torch.memory_format, given: torch.memory_format
) -> None:
    x = image(count, 5, dtype, form).requires_grad_()
    gradient = image(count, 5, dtype, given, seed=1)
    truth = x.detach().double().requires_grad_()
    wanted = elementary_norm(truth, slope)
    wanted.backward(gradient.double())
    found = instance_norm(x, 1e-5, slope)
    found.backward(gradient)
    assert found.dtype is dtype and found.is_contiguous(memory_format=form)
    assert x.grad is not None and truth.grad is not None
    assert x.grad.is_contiguous(memory_format=form)
    for a, b in ((found, wanted), (x.grad, truth.grad)):
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm()


def test_pytorchs_own_instance_norm_is_the_reason_for_ours() -> None:
    """Goes red when PyTorch mends its gradient: then channels_last may be had without our layer."""
    x = image(1, 5, torch.float32, torch.contiguous_format).requires_grad_()
    gradient = image(1, 5, torch.float32, torch.channels_last, seed=1)
    truth = x.detach().double().requires_grad_()
    elementary_norm(truth, None).backward(gradient.double())
    functional.instance_norm(x).backward(gradient)
    assert x.grad is not None and truth.grad is not None
    assert (x.grad.double() - truth.grad).norm() > 0.1 * truth.grad.norm()


def test_the_norm_refuses_to_be_differentiated_twice() -> None:
    x = image(1, 2, torch.float32, torch.contiguous_format).requires_grad_()
    (slope,) = torch.autograd.grad(instance_norm(x, 1e-5, 0.0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("form", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (3, 3, 3, 3), (2, 0, 1, 6), (0, 8, 0, 0)])
def test_the_indexed_pad_equals_pytorchs_in_float64(
    padding: tuple[int, int, int, int], form: torch.memory_format
) -> None:
    x = image(2, 3, torch.float64, form).requires_grad_()
    truth = x.detach().contiguous().requires_grad_()
    wanted = functional.pad(truth, padding, mode="reflect")
    gradient = torch.randn(wanted.shape, dtype=torch.float64).contiguous(memory_format=form)
    wanted.backward(gradient)
    found = reflection_pad(x, padding)
    found.backward(gradient)
    assert torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=form)
    torch.testing.assert_close(x.grad, truth.grad, rtol=1e-12, atol=1e-12)


def test_the_indexed_pad_stays_in_bf16_under_autocast() -> None:
    x = image(1, 3, torch.bfloat16, torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert IndexReflectionPad2d(1)(x).dtype is torch.bfloat16


def test_in_eval_mode_both_layers_are_pytorchs() -> None:
    x = image(2, 4, torch.float32, torch.contiguous_format)
    norm = FastInstanceNorm2d(4, slope=0.2).eval()
    assert torch.equal(norm(x), functional.leaky_relu(functional.instance_norm(x), 0.2))
    assert torch.equal(IndexReflectionPad2d(2).eval()(x), functional.pad(x, (2,) * 4, mode="reflect"))


def test_the_layers_have_no_parameters_to_be_named() -> None:
    assert not FastInstanceNorm2d(4).state_dict() and not IndexReflectionPad2d(1).state_dict()


def test_other_devices_formulas_equal_the_cpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch for other devices than CPU, run here: its own forward and backward formulas."""
    from ctmr.networks import fast_layers

    x = image(2, 4, torch.float64, torch.channels_last).requires_grad_()
    truth = x.detach().clone().requires_grad_()
    gradient = image(2, 4, torch.float64, torch.channels_last, seed=1)
    elementary_norm(truth, 0.2).backward(gradient)
    monkeypatch.setattr(fast_layers, "_has_image_kernel", lambda x: False)
    instance_norm(x, 1e-5, 0.2).backward(gradient)
    torch.testing.assert_close(x.grad, truth.grad, rtol=1e-10, atol=1e-10)


def test_a_residual_block_of_fast_layers_has_the_gradients_of_float64() -> None:
    from ctmr.training.hardware.speed import exchange_layers

    torch.manual_seed(0)
    plain = ResidualBlock(6)
    fast = ResidualBlock(6)
    fast.load_state_dict(plain.state_dict())
    exchange_layers(fast)
    assert [type(m) for m in fast.body][:4] == [IndexReflectionPad2d, nn.Conv2d, FastInstanceNorm2d, nn.Identity]
    fast.to(memory_format=torch.channels_last)
    plain.double()
    x = image(1, 6, torch.float32, torch.channels_last)
    plain(x.double().contiguous()).square().mean().backward()
    fast(x).square().mean().backward()
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad.double() - b.grad).norm() <= 1e-4 * b.grad.norm() + 1e-6, name
