"""Recipe section that decides how a training step is computed: arithmetic, memory format, kernels."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from ctmr.recipe.base import Section


class Precision(StrEnum):
    """Arithmetic of the networks' forward passes."""

    FP32 = "fp32"
    TF32 = "tf32"
    """fp32 whose convolutions on CUDA round their factors to 10 bits; elsewhere fp32."""
    BF16 = "bf16"
    AUTO = "auto"
    """bf16 where it is fast (CUDA from Ampere on, CPU with AMX), else fp32."""


class Layout(StrEnum):
    """Memory format of images and weights in training."""

    AUTO = "auto"
    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"


class Layers(StrEnum):
    """Whose instance norm and reflection padding train: PyTorch's, or those of `ctmr.networks.fast_layers`."""

    AUTO = "auto"
    PYTORCH = "pytorch"
    FAST = "fast"


Choice = Literal["auto"] | bool


class Speed(Section):
    """How a step is computed. ``auto`` is what was measured fastest on such a device and equals float64 in tests."""

    layout: Layout = Layout.AUTO
    layers: Layers = Layers.AUTO
    """Instance norm fused with its rectifier, and padding by index, that keep the memory format."""
    joined: Choice = "auto"
    """One pass for fake and identity, and for real and fake, where images do not change each other's output."""
    fused_adam: Choice = "auto"
    """Adam in one kernel for all weights."""
    compile: Choice = "auto"
    """torch.compile of both kinds of network, for the shapes of the training alone."""
    graphs: Choice = "auto"
    """CUDA graphs: a step's kernels are launched at once. No effect on CPU."""
