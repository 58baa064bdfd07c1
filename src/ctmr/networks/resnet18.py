"""ResNet-18, as encoder and as classifier, with torchvision's parameter names so that its ImageNet weights fit."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from ctmr.networks.blocks import norm
from ctmr.networks.weights import read_weights, require_fit
from ctmr.recipe.training import LayerNorm
from ctmr.system.digest import file_digest

_BLOCKS = 2
_RGB = 3
_FIRST = "conv1.weight"


class BasicBlock(nn.Module):
    """Two 3×3 convolutions added to their input (He et al. 2016, arXiv:1512.03385, figure 5 left)."""

    def __init__(self, taken: int, given: int, stride: int, kind: LayerNorm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(taken, given, 3, stride, padding=1, bias=False)
        self.bn1 = norm(given, kind)
        self.conv2 = nn.Conv2d(given, given, 3, padding=1, bias=False)
        self.bn2 = norm(given, kind)
        self.downsample: nn.Module | None = None
        if stride > 1 or taken != given:
            self.downsample = nn.Sequential(nn.Conv2d(taken, given, 1, stride, bias=False), norm(given, kind))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, taken, H, W]`` → ``[N, given, H / stride, W / stride]``."""
        kept = x if self.downsample is None else self.downsample(x)
        out: Tensor = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + kept
        return functional.relu(out)


class ResNet18(nn.Module):
    """ResNet of two basic blocks a stage (He et al. 2016, table 1).

    Parameters
    ----------
    in_channels
        Channels of the image.
    width
        Channels of the stem; 64 is the paper's.
    stages
        1 to 4; 4 is ResNet-18.
    kind
        Batch norm is the paper's.
    classes
        Outputs of `forward`; ``None`` leaves the classifier out.
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 64,
        stages: int = 4,
        kind: LayerNorm = LayerNorm.BATCH,
        classes: int | None = 1000,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width, kind)
        taken = width
        for stage in range(stages):
            given = width * 2**stage
            first = BasicBlock(taken, given, 1 if stage == 0 else 2, kind)
            blocks = [first, *(BasicBlock(given, given, 1, kind) for _ in range(_BLOCKS - 1))]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            taken = given
        self.channels = [width, *(width * 2**stage for stage in range(stages))]
        self.fc = None if classes is None else nn.Linear(taken, classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """``[N, C, H, W]`` → the stem's output at half the resolution, then each stage's."""
        out = [functional.relu(self.bn1(self.conv1(x)))]
        x = functional.max_pool2d(out[0], 3, stride=2, padding=1)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            out.append(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` → ``[N, classes]`` scores."""
        if self.fc is None:
            raise ValueError("a ResNet-18 without classes has features only")
        scores: Tensor = self.fc(self.features(x)[-1].mean(dim=(2, 3)))
        return scores


def load_imagenet(network: nn.Module, path: Path | str) -> str:
    """Load ImageNet weights into the ResNet-18 inside a network, and return the file's sha256.

    The classifier ``fc`` keeps its own weights. The first convolution of a network that does not see three channels
    gets the sum of the three filters, shared evenly among its channels: a grey image then gives what the same image
    as RGB would.

    Parameters
    ----------
    network
        Changed in place; holds one `ResNet18` of width 64 with batch norm.
    path
        ``.safetensors``, or a ``.pth`` of tensors alone, with torchvision's parameter names.

    Raises
    ------
    InputError
        No such file, an unreadable one, or one that is not a ResNet-18's.
    """
    resnet = next(m for m in network.modules() if isinstance(m, ResNet18))
    own = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    given = read_weights(path)
    first = given.get(_FIRST)
    channels = own[_FIRST].shape[1]
    if first is not None and first.ndim == 4 and first.shape[1] == _RGB and channels != _RGB:
        given[_FIRST] = (first.sum(dim=1, keepdim=True) / channels).expand(-1, channels, -1, -1)
    require_fit("ResNet-18", path, {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}, given)
    resnet.load_state_dict({k: given.get(k, v) for k, v in own.items()}, strict=False)
    return file_digest(Path(path))
