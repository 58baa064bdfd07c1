"""Computation of a step: the plan that ``train.speed`` comes to on a device, and networks made ready for it."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from ctmr.errors import InputError
from ctmr.imaging.volume import Direction, Modality
from ctmr.networks.blocks import convolutions, mixes_images
from ctmr.networks.fast_layers import FastInstanceNorm2d, IndexReflectionPad2d
from ctmr.recipe.training import Layers, Layout, Loss, Precision, Train
from ctmr.training.cyclegan.losses import adversarial_loss
from ctmr.training.cyclegan.networks import CycleGan

_AMPERE = (8, 0)
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


class DeviceKind(StrEnum):
    """Devices that are told apart because another path is fastest there."""

    CUDA = "CUDA"
    CPU_AMX = "CPU with AMX"
    """Advanced Matrix Extensions multiply bf16; AVX512-BF16 alone was measured slower than fp32."""
    CPU = "CPU"

    @classmethod
    def of(cls, device: torch.device) -> DeviceKind:
        """Return the kind of a device of this machine."""
        if device.type == "cuda":
            return cls.CUDA
        return cls.CPU_AMX if torch.cpu.get_capabilities().get("amx_bf16") else cls.CPU


@dataclass(frozen=True)
class Compiling:
    """Costs and savings of compiling.

    Attributes
    ----------
    seconds
        Of the first step, over those of an eager one.
    saved_step_s, saved_tflop_s
        Seconds saved in each step: a part that every step has, and one for each 10¹² additions and multiplications.
    """

    seconds: float
    saved_step_s: float
    saved_tflop_s: float

    def repays(self, steps: int, tflop: float) -> bool:
        """True when a training saves twice what compiling costs: other machines and networks will differ."""
        return steps * (self.saved_step_s + self.saved_tflop_s * tflop) >= 2 * self.seconds


@dataclass(frozen=True)
class MeasuredSpeed:
    """The fastest path on a kind of device in one arithmetic; every one is held against float64 by the tests.

    Attributes
    ----------
    channels_last, fast_layers
        As in `StepPlan`.
    compiling
        ``None``: no faster, or not measured.
    graph_batch
        Largest batch at which CUDA graphs are faster; 0: none.
    where
        What was measured.
    """

    channels_last: bool
    fast_layers: bool
    compiling: Compiling | None
    graph_batch: int
    where: str


_UNMEASURED = MeasuredSpeed(False, False, None, 0, "not measured on such a device, so PyTorch's own")
_MEASURED: dict[tuple[DeviceKind, bool], MeasuredSpeed] = {
    (DeviceKind.CPU_AMX, True): MeasuredSpeed(
        True, True, Compiling(75, 0.026, 0.22), 0, "fastest in docs/performance.md"
    ),
    (DeviceKind.CPU_AMX, False): MeasuredSpeed(False, False, None, 0, "fastest in docs/performance.md"),
}
"""By kind of device and whether it computes in bf16; what is missing was not measured."""


_MISSING = {
    DeviceKind.CUDA: "there is no Triton compiler (package triton)",
    DeviceKind.CPU_AMX: "there is no C++ compiler (CXX, g++, clang++)",
    DeviceKind.CPU: "there is no C++ compiler (CXX, g++, clang++)",
}


@dataclass(frozen=True)
class StepPlan:
    """Plan of how steps are computed.

    Attributes
    ----------
    bf16
        Networks' forward passes run under autocast; losses, weights and optimisers stay fp32.
    tf32
        fp32 convolutions on CUDA round their factors.
    channels_last
        Memory format of weights and activations.
    fast_layers, indexed_pad
        Instance norm and padding of `ctmr.networks.fast_layers`; the padding alone where only determinism asks for it.
    joined
        One pass where images do not change each other's output.
    fused_adam, compile, graphs
        As in `ctmr.recipe.training.Speed`.
    deterministic
        PyTorch refuses whatever has no deterministic form.
    reasons
        Field → why, where the recipe did not decide it.
    """

    device: str
    bf16: bool = False
    tf32: bool = False
    channels_last: bool = False
    fast_layers: bool = False
    indexed_pad: bool = False
    joined: bool = True
    fused_adam: bool = True
    compile: bool = False
    graphs: bool = False
    deterministic: bool = False
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        """Arithmetic of the networks' forward passes, as it came out."""
        return Precision.BF16 if self.bf16 else Precision.TF32 if self.tf32 else Precision.FP32

    @property
    def notice(self) -> str | None:
        """Notice for a person: the plan, where it is more than PyTorch's eager step in fp32 or bf16."""
        plain = not (self.channels_last or self.fast_layers or self.indexed_pad or self.compile or self.graphs)
        missing = self.reasons.get("compile") in _MISSING.values()
        return None if plain and "precision" not in self.reasons and not missing else self.sentence()

    def record(self) -> dict[str, Any]:
        """Return the plan as plain JSON types, for whoever must know later how a model was computed."""
        return dataclasses.asdict(self)

    def sentence(self) -> str:
        """Return the plan in one sentence."""
        parts = [
            str(self.precision),
            "channels_last" if self.channels_last else "contiguous",
            "fast layers" if self.fast_layers else "PyTorch's layers",
            *(name for name in ("compile", "graphs", "deterministic") if getattr(self, name)),
        ]
        why = "; ".join(f"{field}: {reason}" for field, reason in self.reasons.items())
        return f"steps are computed on {self.device} with {', '.join(parts)}" + (f" ({why})" if why else "")

    def prepare_process(self) -> None:
        """Set what PyTorch keeps for the whole process: determinism, and what cuDNN may do."""
        if self.deterministic:
            os.environ.setdefault(_CUBLAS, ":4096:8")
        if self.deterministic != torch.are_deterministic_algorithms_enabled():
            # Not called in vain: it imports the compiler's settings, which takes seconds.
            torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.deterministic = self.deterministic
        torch.backends.cudnn.benchmark = not self.deterministic
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32

    def prepare(self, networks: CycleGan) -> None:
        """Exchange layers, memory format and calls of networks; names and values of their parameters stay."""
        networks.joined = self.joined
        if self.fast_layers or self.indexed_pad:
            exchange_layers(networks, norms=self.fast_layers)
        if self.channels_last:
            networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            for module in (*networks.generators.values(), *networks.discriminators.values()):
                networks.compiled[module] = torch.compile(module, dynamic=False)

    def adam(self, networks: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
        """Return Adam for all parameters of networks; with CUDA graphs its rate is held on the device."""
        parameters = list(networks.parameters())
        if self.graphs:
            held = torch.tensor(rate, device=parameters[0].device)
            return torch.optim.Adam(parameters, held, betas, fused=self.fused_adam, capturable=True)
        return torch.optim.Adam(parameters, rate, betas, fused=self.fused_adam)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is held on the device."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def resolve(train: Train, loss: Loss, networks: CycleGan, size: tuple[int, int], device: torch.device) -> StepPlan:
    """Return the plan for a training.

    Parameters
    ----------
    networks
        As built; looked at only.
    size
        Slices (H, W).

    Raises
    ------
    InputError
        When the recipe asks for a path that gives wrong gradients with these networks, or that this machine lacks.
    """
    speed, kind, reasons = train.speed, DeviceKind.of(device), dict[str, str]()
    bf16 = train.precision is Precision.BF16
    if train.precision is Precision.AUTO:
        bf16 = kind is DeviceKind.CPU_AMX or (kind is DeviceKind.CUDA and _bf16_in_hardware(device))
        reasons["precision"] = f"bf16 {'is' if bf16 else 'is not'} fast on this {kind}"
    best = _MEASURED.get((kind, bf16), _UNMEASURED)
    obstacle = _obstacle(loss, networks)

    def chosen(field: str, asked: bool | None, fastest: bool, *, possible: str | None = None) -> bool:
        """Return what the recipe asks for, else the fastest; `possible` says why neither can be."""
        if asked and possible:
            raise InputError(f"train.speed.{field} cannot be used: {possible}; set train.speed.{field} to auto")
        if asked is not None:
            return asked
        reasons[field] = best.where if possible is None else possible
        return fastest and possible is None

    layers = {Layers.AUTO: None, Layers.PYTORCH: False, Layers.FAST: True}[speed.layers]
    fast = chosen("layers", layers, best.fast_layers, possible=obstacle)
    layout = {Layout.AUTO: None, Layout.CONTIGUOUS: False, Layout.CHANNELS_LAST: True}[speed.layout]
    wrong = obstacle if obstacle or fast else "the gradient of PyTorch's instance norm is wrong in channels_last"
    channels_last = chosen("layout", layout, best.channels_last, possible=wrong)
    repays = False
    if speed.compile == "auto" and best.compiling is not None and fast and not train.deterministic:
        repays = best.compiling.repays(train.steps, step_tflop(networks, loss, train.batch, size))
    compiled = chosen("compile", _asked(speed.compile), repays)
    missing = _no_compiler(kind)
    if compiled and missing is not None:
        compiled, reasons["compile"] = False, missing
    graphs = False
    if kind is DeviceKind.CUDA:
        still = "the gradient penalty draws numbers on the host" if _penalised(loss) else None
        graphs = chosen("graphs", _asked(speed.graphs), train.batch <= best.graph_batch, possible=still)
    return StepPlan(
        device=str(kind),
        bf16=bf16,
        tf32=train.precision is Precision.TF32,
        channels_last=channels_last,
        fast_layers=fast,
        indexed_pad=fast or train.deterministic,
        joined=_asked(speed.joined) is not False,
        fused_adam=_asked(speed.fused_adam) is not False,
        compile=compiled,
        graphs=graphs,
        deterministic=train.deterministic,
        reasons=reasons,
    )


def exchange_layers(module: nn.Module, *, norms: bool = True) -> None:
    """Put fast layers in the place of PyTorch's reflection padding and, with `norms`, instance norm.

    A rectifier right behind a norm in one `torch.nn.Sequential` goes into the norm and leaves an identity.
    """
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for index, (name, child) in enumerate(children):
            if type(child) is nn.ReflectionPad2d:
                setattr(parent, name, IndexReflectionPad2d(child.padding))
            elif norms and type(child) is nn.InstanceNorm2d:
                slope = None
                if isinstance(parent, nn.Sequential) and index + 1 < len(children):
                    slope = _slope(children[index + 1][1])
                setattr(parent, name, FastInstanceNorm2d(child.num_features, child.eps, slope))
                if slope is not None:
                    setattr(parent, children[index + 1][0], nn.Identity())


def step_tflop(networks: CycleGan, loss: Loss, batch: int, size: tuple[int, int]) -> float:
    """Return the 10¹² additions and multiplications of a step's convolutions; a backward pass counts as two forward."""
    passes = 1 + (loss.cycle > 0) + (loss.identity > 0)
    total = 0.0
    for modality, direction in zip(Modality, Direction, strict=True):
        image = torch.empty((batch, networks.channels[direction.source], *size), device="meta")
        shown = torch.empty((batch, networks.channels[modality], *size), device="meta")
        depth = torch.empty((batch, 1, *size), device="meta")
        total += 3 * passes * _forward_flop(networks.generators[direction.value], image)
        # Real and fake forward and backward; for the generators forward, and backward to the image alone.
        total += (3 + 3 + 2) * _forward_flop(networks.discriminators[modality.value], shown, depth)
    return total / 1e12


def _forward_flop(module: nn.Module, *inputs: Tensor) -> float:
    counts: list[int] = []

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        places = given[0] if isinstance(layer, nn.ConvTranspose2d) else out
        counts.append(2 * layer.weight.numel() * places.shape[0] * places.shape[2] * places.shape[3])

    shadow = copy.deepcopy(module).to("meta")
    for layer in convolutions(shadow):
        layer.register_forward_hook(count)
    with torch.no_grad():
        shadow(*inputs)
    return sum(counts)


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor's values in a parameter's memory format, where shapes agree: fused Adam needs one for both."""
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def _slope(module: nn.Module) -> float | None:
    if isinstance(module, nn.ReLU):
        return 0.0
    return module.negative_slope if isinstance(module, nn.LeakyReLU) else None


def _asked(choice: str | bool) -> bool | None:
    return None if isinstance(choice, str) else choice


def _penalised(loss: Loss) -> bool:
    return adversarial_loss(loss.adversarial).penalty_weight(loss) > 0


def _obstacle(loss: Loss, networks: CycleGan) -> str | None:
    """Return why the fast layers cannot train these networks."""
    if _penalised(loss):
        return "the gradient penalty differentiates twice, and the fast layers once"
    if mixes_images(networks):
        return "batch norm's gradient is wrong in channels_last where memory formats meet"
    return None


def _bf16_in_hardware(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _AMPERE


def _no_compiler(kind: DeviceKind) -> str | None:
    """Return what this machine lacks for torch.compile."""
    if kind is DeviceKind.CUDA:
        import importlib.util

        return None if importlib.util.find_spec("triton") else _MISSING[kind]
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    return None if any(shutil.which(name) for name in names) else _MISSING[kind]
