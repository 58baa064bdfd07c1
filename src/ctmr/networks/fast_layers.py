"""Layers that compute what PyTorch's own do, in fewer passes and without changing the memory format."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_NATIVE = torch.ops.aten


class FastInstanceNorm2d(nn.InstanceNorm2d):
    """Instance norm without affine parameters, together with the rectifier behind it, in the memory format it is given.

    PyTorch's own changes channels_last to contiguous, and on CPU its backward pass is wrong for batch 1 where the
    gradient arrives in channels_last (PyTorch 2.13). In eval mode, which is what is exported, this is
    PyTorch's own.

    Parameters
    ----------
    channels, eps
        As of `torch.nn.InstanceNorm2d`.
    slope
        Of the (leaky) rectifier below zero; 0 is ReLU, ``None`` no rectifier.
    """

    def __init__(self, channels: int, eps: float = 1e-5, slope: float | None = None) -> None:
        super().__init__(channels, eps=eps)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` → the same shape and dtype; once differentiable in training."""
        if self.training:
            return instance_norm(x, self.eps, self.slope)
        return _rectified(super().forward(x), self.slope)


class IndexReflectionPad2d(nn.ReflectionPad2d):
    """Reflection padding by index: deterministic on every device, in the dtype and memory format it is given.

    PyTorch's ``reflection_pad2d`` has no deterministic CUDA backward (pytorch/pytorch#98208), and autocast on CPU runs
    it in fp32. In eval mode, which is what is exported, this is PyTorch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` → padded."""
        if self.training:
            return reflection_pad(x, self.padding)
        return super().forward(x)


def instance_norm(x: Tensor, eps: float, slope: float | None = None) -> Tensor:
    """Return (x - mean) / √(variance + eps) over each image's channel (Ulyanov et al. 2016), then rectified.

    Parameters
    ----------
    x
        ``[N, C, H, W]``. Statistics are those of fp32 (fp64 for fp64) whatever its dtype.
    eps, slope
        As of `FastInstanceNorm2d`.
    """
    if torch.compiler.is_compiling():
        # The compiler fuses these by itself, and differentiates them; it knows nothing of the function below.
        wide = x if x.dtype is torch.float64 else x.float()
        variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
        return _rectified(((wide - mean) * (variance + eps).rsqrt()).to(x.dtype), slope)
    return cast(Tensor, _InstanceNorm.apply(x, eps, slope))  # type: ignore[no-untyped-call]


def reflection_pad(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Pad ``[N, C, H, W]`` by (left, right, top, bottom), reflecting without repeating the border."""
    return cast(Tensor, _IndexedPad.apply(x, padding))  # type: ignore[no-untyped-call]


def _rectified(x: Tensor, slope: float | None) -> Tensor:
    if slope is None:
        return x
    return functional.relu(x) if slope == 0.0 else functional.leaky_relu(x, slope)


def _memory_format(x: Tensor) -> torch.memory_format:
    # Of one channel or one pixel both formats hold, and either will do.
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


class _InstanceNorm(torch.autograd.Function):
    """PyTorch's batch norm kernel image by image on CPU, elementary operations elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, slope: float | None) -> Tensor:
        form = _memory_format(x)
        x = x.contiguous(memory_format=form)
        if _has_image_kernel(x):
            affine = _unit_affine(x)
            images = torch.split(x, 1) if len(x) > 1 else (x,)
            parts = [_NATIVE.native_batch_norm(image, *affine, None, None, True, 0.0, eps) for image in images]
            out = parts[0][0] if len(x) == 1 else torch.cat([normal for normal, _, _ in parts])
            statistics = torch.stack([part[moment] for moment in (1, 2) for part in parts]).view(2, *x.shape[:2])
        else:
            wide = x.to(_wide(x.dtype))
            variance, mean = torch.var_mean(wide, (2, 3), correction=0)
            scale = (variance + eps).rsqrt()
            statistics = torch.stack([mean, scale])
            out = ((wide - _spread(mean)) * _spread(scale)).to(x.dtype)
        if slope is not None:
            out = functional.leaky_relu_(out, slope) if slope else functional.relu_(out)
        ctx.save_for_backward(x, statistics, *(() if slope is None else (out,)))
        ctx.eps, ctx.slope = eps, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, statistics, *out = ctx.saved_tensors
        form = _memory_format(x)
        # Where memory formats differ the CPU kernel is seven times slower.
        gradient = gradient.contiguous(memory_format=form)
        if ctx.slope == 0.0:
            gradient = _NATIVE.threshold_backward(gradient, out[0], 0.0)
        elif ctx.slope is not None:
            gradient = _NATIVE.leaky_relu_backward(gradient, out[0], ctx.slope, True)
        if not _has_image_kernel(x):
            scale = _spread(statistics[1])
            normal = (x.to(scale.dtype) - _spread(statistics[0])) * scale
            wide = gradient.to(scale.dtype)
            slant = (wide * normal).mean((2, 3), keepdim=True)
            return (scale * (wide - wide.mean((2, 3), keepdim=True) - normal * slant)).to(x.dtype), None, None
        unit, _ = _unit_affine(x)
        pairs = [(gradient, x)] if len(x) == 1 else zip(torch.split(gradient, 1), torch.split(x, 1), strict=True)
        parts = [
            _NATIVE.native_batch_norm_backward(
                slope, image, unit, None, None, mean, scale, True, ctx.eps, [True, False, False]
            )[0]
            for (slope, image), mean, scale in zip(pairs, *statistics, strict=True)
        ]
        return parts[0] if len(x) == 1 else torch.cat(parts), None, None


class _IndexedPad(torch.autograd.Function):
    """Pixels by index; the gradient of what was reflected is folded back, first columns, then rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
        left, right, top, bottom = ctx.padding = padding
        count, channels, height, width = x.shape
        rows, columns = _reflected(height, top, bottom, x.device), _reflected(width, left, right, x.device)
        place = (rows[:, None] * width + columns).flatten()
        if _memory_format(x) is torch.contiguous_format:
            taken = x.contiguous().view(count, channels, height * width).index_select(2, place)
            return taken.view(count, channels, len(rows), len(columns))
        pixels = x.permute(0, 2, 3, 1).reshape(count, height * width, channels).index_select(1, place)
        return pixels.view(count, len(rows), len(columns), channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        left, right, top, bottom = ctx.padding
        return _folded(_folded(gradient, 3, left, right), 2, top, bottom), None


def _reflected(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Return, for each place of a padded axis, the place that it shows."""
    place = torch.arange(-before, length + after, device=device).abs()
    return (length - 1) - ((length - 1) - place).abs()


def _folded(gradient: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Return the gradient without the padding of an axis, that of the padding added where it was taken from."""
    length = gradient.shape[axis] - before - after
    kept = gradient.narrow(axis, before, length).clone()
    if before:
        kept.narrow(axis, 1, before).add_(gradient.narrow(axis, 0, before).flip(axis))
    if after:
        kept.narrow(axis, length - 1 - after, after).add_(gradient.narrow(axis, before + length, after).flip(axis))
    return kept


def _unit_affine(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight 1 and bias 0 that are not of bf16: without them the kernel keeps statistics of bf16 in bf16."""
    channels, dtype = x.shape[1], _wide(x.dtype)
    return x.new_ones(channels, dtype=dtype), x.new_zeros(channels, dtype=dtype)


def _has_image_kernel(x: Tensor) -> bool:
    """On CPU a kernel call for each image costs nothing; elsewhere a batch takes as many launches as one image."""
    return x.device.type == "cpu"


def _spread(x: Tensor) -> Tensor:
    return x[:, :, None, None]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32
