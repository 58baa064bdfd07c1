"""Computation of a step: the plans that ``train.speed`` permits on a device, and networks made ready for one."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from dataclasses import dataclass
from itertools import product
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
        Field → why, where the recipe did not decide it; ``path``: why this plan among those that it permits.
    """

    device: str = "CPU"
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
        told = plain and "precision" not in self.reasons and "compile" not in self.reasons
        return None if told else self.sentence()

    @property
    def path(self) -> str:
        """Name of the plan among those of one training."""
        parts = [
            str(self.precision),
            "channels_last" if self.channels_last else "contiguous",
            "fast layers" if self.fast_layers else "PyTorch's layers",
            *(name for name in ("compile", "graphs", "deterministic") if getattr(self, name)),
        ]
        return ", ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return the plan as plain JSON types, for whoever must know later how a model was computed."""
        return dataclasses.asdict(self)

    def sentence(self) -> str:
        """Return the plan in one sentence."""
        why = "; ".join(f"{field}: {reason}" for field, reason in self.reasons.items())
        return f"steps are computed on {self.device} with {self.path}" + (f" ({why})" if why else "")

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


def permitted(
    train: Train, loss: Loss, networks: CycleGan, device: torch.device, *, alone: bool = True
) -> list[StepPlan]:
    """Return the plans that a recipe permits for these networks on a device, the plainest first.

    Compiling is among them only where the recipe asks for it: `may_compile` says whether it could come on top.

    Parameters
    ----------
    networks
        As built; looked at only.
    alone
        One process trains: CUDA graphs do not span several.

    Raises
    ------
    InputError
        When the recipe asks for a path that gives wrong gradients with these networks.
    """
    speed, cuda = train.speed, device.type == "cuda"
    reasons: dict[str, str] = {}
    precisions = [train.precision]
    if train.precision is Precision.AUTO:
        precisions = [Precision.FP32]
        if not train.deterministic and (not cuda or torch.cuda.get_device_capability(device) >= _AMPERE):
            precisions.append(Precision.BF16)
    wrong = _obstacle(loss, networks)
    layers = {Layers.AUTO: [False, True], Layers.PYTORCH: [False], Layers.FAST: [True]}[speed.layers]
    layouts = {Layout.AUTO: [False, True], Layout.CONTIGUOUS: [False], Layout.CHANNELS_LAST: [True]}[speed.layout]
    if wrong or layers == [False]:
        layouts = _without(
            layouts, "layout", wrong or "the gradient of PyTorch's instance norm is wrong in it", reasons
        )
    if wrong:
        layers = _without(layers, "layers", wrong, reasons)
    graphs = [False]
    if cuda and alone:
        graphs = [False, True] if speed.graphs == "auto" else [bool(speed.graphs)]
        if _penalised(loss):
            graphs = _without(graphs, "graphs", "the gradient penalty draws numbers on the host", reasons)
    compiled = _asked(speed.compile) is True
    if compiled and (missing := no_compiler(device)):
        compiled, reasons["compile"] = False, missing
    plans = []
    for graphed, precision, (channels_last, fast) in product(graphs, precisions, product(layouts, layers)):
        if channels_last > fast or (fast > channels_last and len(layouts) > 1 and len(layers) > 1):
            # The first is wrong. The second was nowhere faster than both or neither, so it is used only when asked for.
            continue
        plans.append(
            StepPlan(
                device="CUDA" if cuda else "CPU",
                bf16=precision is Precision.BF16,
                tf32=precision is Precision.TF32,
                channels_last=channels_last,
                fast_layers=fast,
                indexed_pad=fast or train.deterministic,
                joined=_asked(speed.joined) is not False,
                fused_adam=_asked(speed.fused_adam) is not False,
                compile=compiled,
                graphs=graphed,
                deterministic=train.deterministic,
                reasons=reasons,
            )
        )
    return plans


def may_compile(train: Train, plan: StepPlan, device: torch.device) -> bool:
    """True when a recipe leaves open whether a plan is compiled, and this machine can."""
    left_open = train.speed.compile == "auto" and plan.fast_layers and not train.deterministic
    return left_open and no_compiler(device) is None


def _without(choices: list[bool], field: str, reason: str, reasons: dict[str, str]) -> list[bool]:
    """Return choices but the one that cannot be; InputError where the recipe allows no other."""
    if choices == [True]:
        raise InputError(f"train.speed.{field} cannot be used: {reason}; set train.speed.{field} to auto")
    if True in choices:
        reasons[field] = reason
    return [False]


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


def no_compiler(device: torch.device) -> str | None:
    """Return what this machine lacks for torch.compile."""
    if device.type == "cuda":
        import importlib.util

        return None if importlib.util.find_spec("triton") else "there is no Triton compiler (package triton)"
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    return None if any(map(shutil.which, names)) else "there is no C++ compiler (CXX, g++, clang++)"
