"""Inception-v3 as the FID of papers uses it: TensorFlow's 2015 network up to its pooled features, without weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE_PX = 299
FEATURES = 2048

Kernel = int | tuple[int, int]


class _Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, taken: int, given: int, kernel: Kernel, stride: int = 1, padding: bool = True) -> None:
        super().__init__()
        sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        margin = (sides[0] // 2, sides[1] // 2) if padding else (0, 0)
        self.conv = nn.Conv2d(taken, given, sides, stride, margin, bias=False)
        self.bn = nn.BatchNorm2d(given, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Branches(nn.Module):
    """Branches side by side, joined along the channels.

    A branch is a list of ``(name, channels, kernel)``; a list in place of a name splits it at the end into two
    layers that are joined again. Strided blocks shrink at the last layer of each branch and in their pool.
    """

    def __init__(self, taken: int, branches: list[_Branch], *, pooled: int = 0, pool: str, stride: int = 1) -> None:
        super().__init__()
        self.pool, self.stride, self.pooled = pool, stride, pooled
        self.program: list[list[str | list[str]]] = []
        for branch in branches:
            channels, steps = taken, list[str | list[str]]()
            for k, layer in enumerate(branch):
                last = k + 1 == len(branch)
                parts = layer if isinstance(layer, list) else [layer]
                for name, given, kernel in parts:
                    shrinks = last and stride > 1
                    self.add_module(name, _Convolution(channels, given, kernel, stride if shrinks else 1, not shrinks))
                names = [name for name, _, _ in parts]
                steps.append(names if isinstance(layer, list) else names[0])
                channels = sum(given for _, given, _ in parts)
            self.program.append(steps)
        if pooled:
            self.branch_pool = _Convolution(taken, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for steps in self.program:
            y = x
            for step in steps:
                names = step if isinstance(step, list) else [step]
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            found.append(y)
        if self.stride > 1:
            y = F.max_pool2d(x, 3, self.stride)
        elif self.pool == "average":
            # TensorFlow's average leaves the padding out of its count.
            y = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        else:
            y = F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*found, self.branch_pool(y) if self.pooled else y], dim=1)


_Layer = tuple[str, int, Kernel]
_Branch = list[_Layer | list[_Layer]]


def _block_5(taken: int, pooled: int) -> _Branches:
    return _Branches(
        taken,
        [
            [("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ],
        pooled=pooled,
        pool="average",
    )


def _block_6(width: int) -> _Branches:
    row, column = (1, 7), (7, 1)
    return _Branches(
        768,
        [
            [("branch1x1", 192, 1)],
            [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)],
            [
                ("branch7x7dbl_1", width, 1),
                ("branch7x7dbl_2", width, column),
                ("branch7x7dbl_3", width, row),
                ("branch7x7dbl_4", width, column),
                ("branch7x7dbl_5", 192, row),
            ],
        ],
        pooled=192,
        pool="average",
    )


def _block_7(taken: int, pool: str) -> _Branches:
    return _Branches(
        taken,
        [
            [("branch1x1", 320, 1)],
            [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
            [
                ("branch3x3dbl_1", 448, 1),
                ("branch3x3dbl_2", 384, 3),
                [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
            ],
        ],
        pooled=192,
        pool=pool,
    )


class FidInception(nn.Module):
    """Features of images for KID and FID, ``[N, 3, H, W]`` in [0, 1] → ``[N, 2048]``.

    Images are resized to 299² (bilinear, not antialiased) and mapped to [-1, 1], as the PyTorch port of the FID does.

    Notes
    -----
    The 2015 network differs from the published one: averages leave padding out, and the last block pools with the
    maximum. Parameters are named as torchvision names them, so that the port's weights fit once they are saved as
    safetensors.

    References
    ----------
    Szegedy et al.: Rethinking the Inception architecture for computer vision, 2016. Heusel et al. 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 2, padding=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, padding=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, padding=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_5(192, 32), _block_5(256, 64), _block_5(288, 64)
        self.Mixed_6a = _Branches(
            288,
            [
                [("branch3x3", 384, 3)],
                [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
            ],
            pool="maximum",
            stride=2,
        )
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_block_6(w) for w in (128, 160, 160, 192))
        self.Mixed_7a = _Branches(
            768,
            [
                [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
                [
                    ("branch7x7x3_1", 192, 1),
                    ("branch7x7x3_2", 192, (1, 7)),
                    ("branch7x7x3_3", 192, (7, 1)),
                    ("branch7x7x3_4", 192, 3),
                ],
            ],
            pool="maximum",
            stride=2,
        )
        self.Mixed_7b, self.Mixed_7c = _block_7(1280, "average"), _block_7(2048, "maximum")

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = 2 * F.interpolate(x, size=(SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False) - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for block in (
            self.Mixed_5b,
            self.Mixed_5c,
            self.Mixed_5d,
            self.Mixed_6a,
            self.Mixed_6b,
            self.Mixed_6c,
            self.Mixed_6d,
            self.Mixed_6e,
            self.Mixed_7a,
            self.Mixed_7b,
            self.Mixed_7c,
        ):
            x = block(x)
        return x.mean(dim=(2, 3))


def load_inception(weights: Mapping[str, Tensor]) -> FidInception:
    """Return the network with these weights, in evaluation mode.

    Parameters
    ----------
    weights
        Parameter name → tensor; the classifier ``fc.*`` is left out, ``num_batches_tracked`` may be missing.

    Raises
    ------
    ValueError
        When a parameter is missing, too many, or of another shape.
    """
    network = FidInception()
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    given = {k: v for k, v in weights.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    missing, unknown = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or unknown:
        raise ValueError(
            f"Inception-v3 of the FID has {len(own)} parameters; missing {len(missing)} {missing[:2]}, "
            f"unknown {len(unknown)} {unknown[:2]}"
        )
    wrong = [k for k in own if own[k].shape != given[k].shape]
    if wrong:
        raise ValueError(
            f"parameter {wrong[0]} has shape {tuple(given[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
        )
    network.load_state_dict(given, strict=False)
    return network.eval()
