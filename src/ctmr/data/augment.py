"""Augmentation on the device: one random move for an image and the maps that belong to it, and random intensity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ctmr.recipe.training import Train

BACKGROUND = -1.0
"""Normalised value of air, of no signal and of depth 0."""


@dataclass(frozen=True)
class Augmentation:
    """Changes drawn at random for each image.

    Attributes
    ----------
    flip, flip_vertical
        Flip along W, and along H, each with probability one half. W is left-right on axial and coronal grids.
    shift
        Largest move in pixels along H and W.
    rotation_deg
        Largest angle, either way.
    zoom
        Lowest and highest magnification; its logarithm is drawn evenly.
    intensity
        Largest deviation from 1 of the factor of `scale_intensity`.
    """

    flip: bool = False
    shift: int = 0
    flip_vertical: bool = False
    rotation_deg: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    intensity: float = 0.0

    @classmethod
    def of(cls, train: Train) -> Augmentation:
        """Return what a recipe asks for."""
        return cls(train.flip, train.shift, train.flip_vertical, train.rotation_deg, train.zoom, train.intensity)

    @property
    def interpolates(self) -> bool:
        """True when pixels land between pixels."""
        return self.rotation_deg > 0 or self.zoom != (1.0, 1.0)


def augment(images: Tensor, augmentation: Augmentation, rng: torch.Generator) -> Tensor:
    """Zoom, rotate, flip and shift each image, in this order and in one step.

    Flips and shifts move whole pixels; with zoom or rotation, values are interpolated bilinearly, once. What comes in
    at the border is background (-1), never the opposite border.

    Parameters
    ----------
    images
        ``[N, C, H, W]`` in [-1, 1]; a depth map is moved with its image when it is one of the channels.
    augmentation
        `intensity` is not looked at.
    rng
        CPU source of randomness. As many numbers are drawn for equal arguments, whatever the images.

    Returns
    -------
    Tensor
        Same shape, dtype and device.
    """
    count, _, height, width = images.shape
    moves = torch.zeros((2, count, 1), dtype=torch.int64)
    if augmentation.shift:
        moves = torch.randint(-augmentation.shift, augmentation.shift + 1, (2, count, 1), generator=rng)
    mirrored = _drawn(count, augmentation.flip, rng)
    upended = _drawn(count, augmentation.flip_vertical, rng)
    # From an output pixel back to the one that it shows, so the last move is undone first.
    rows = torch.arange(height).expand(count, height) - moves[0]
    columns = torch.arange(width).expand(count, width) - moves[1]
    rows = torch.where(upended, height - 1 - rows, rows)
    columns = torch.where(mirrored, width - 1 - columns, columns)
    if augmentation.interpolates:
        angle = torch.rand((count, 1, 1), generator=rng) * 2.0 - 1.0
        low, high = map(math.log, augmentation.zoom)
        zoom = torch.exp(low + (high - low) * torch.rand((count, 1, 1), generator=rng))
        return _resampled(images, rows, columns, angle * math.radians(augmentation.rotation_deg), zoom)
    if not (augmentation.flip or augmentation.flip_vertical or augmentation.shift):
        return images
    return _gathered(images, rows, columns)


def scale_intensity(images: Tensor, most: float, rng: torch.Generator) -> Tensor:
    """Multiply each image's distance from black (-1) by a factor within ``1 ± most``, and clip it to [-1, 1]."""
    factor = 1.0 + most * (2.0 * torch.rand((len(images), 1, 1, 1), generator=rng) - 1.0)
    return ((images + 1.0) * to_device(factor.to(images.dtype), images.device) - 1.0).clamp(max=1.0)


def _drawn(count: int, wanted: bool, rng: torch.Generator) -> Tensor:
    return torch.rand((count, 1), generator=rng) < 0.5 if wanted else torch.zeros((count, 1), dtype=torch.bool)


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return each image at whole rows ``[N, H]`` and columns ``[N, W]``."""
    count, channels, height, width = images.shape
    device = images.device
    rows, columns = to_device(rows, device), to_device(columns, device)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    item = torch.arange(count, device=device).view(count, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, channels, 1, 1)
    moved = images[item, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return moved.masked_fill_(~inside[:, None], BACKGROUND)


def _resampled(images: Tensor, rows: Tensor, columns: Tensor, angle: Tensor, zoom: Tensor) -> Tensor:
    """Return each image at rows and columns turned by `angle` and shrunk by `zoom` about the centre."""
    height, width = images.shape[-2:]
    y = (rows - (height - 1) / 2)[:, :, None] / zoom
    x = (columns - (width - 1) / 2)[:, None, :] / zoom
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # grid_sample counts from -1 to 1 over the image's full width, column first.
    grid = torch.stack([2.0 / width * (cosine * x - sine * y), 2.0 / height * (sine * x + cosine * y)], dim=-1)
    grid = to_device(grid.to(images.dtype), images.device)
    shown = functional.grid_sample(
        images - BACKGROUND, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return shown + BACKGROUND


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on a device; for CUDA through page-locked memory, so that the host goes on at once."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
