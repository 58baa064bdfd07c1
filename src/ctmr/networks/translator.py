"""Translator: normaliser, generator and inverse in one module: physical units in, physical units out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctmr.networks.normaliser import Normaliser
from ctmr.networks.stacks import middle, stack_size


class Translator(nn.Module):
    """Module that is evaluated, exported as ``generator.onnx`` and served.

    Parameters
    ----------
    source, target
        Normalisers of the two units.
    generator
        ``[N, S * C, H, W]`` in [-1, 1] → ``[N, S, H, W]`` in [-1, 1], where a stack has S slices.
    target_range
        ``[2]`` (low, high) of the output; for percentile units the median over training volumes.
    neighbours
        Slices on either side of the translated one in a stack; 0: a stack is one slice.

    Examples
    --------
    A generator that changes nothing: the brightest MR signal becomes the highest HU.

    >>> from ctmr.recipe.recipe import Percentile, Window
    >>> source, target = Normaliser(Percentile(percentile=100, headroom=1)), Normaliser(Window(low=-1000, high=1000))
    >>> translator = Translator(source, nn.Identity(), target, (-1000.0, 1000.0))
    >>> mr = torch.tensor([0.0, 100.0, 150.0, 200.0]).reshape(1, 1, 2, 2)
    >>> translator(mr, source.measure(mr)[None]).flatten().tolist()
    [-1000.0, 0.0, 500.0, 1000.0]
    """

    target_range: Tensor

    def __init__(
        self,
        source: Normaliser,
        generator: nn.Module,
        target: Normaliser,
        target_range: tuple[float, float],
        neighbours: int = 0,
    ) -> None:
        super().__init__()
        self.source = source
        self.generator = generator
        self.target = target
        self.neighbours = neighbours
        self.register_buffer(
            "target_range", torch.tensor(target_range, dtype=torch.float32).reshape(1, 1, 2), persistent=False
        )

    def forward(self, slices: Tensor, limits: Tensor) -> Tensor:
        """Translate slices.

        Parameters
        ----------
        slices
            ``[N, S * C, H, W]`` float32, physical units of the source; from `ctmr.networks.stacks.gather_stacks`.
        limits
            ``[N, C, 2]`` float32, the source volume's range (`Normaliser.measure`), repeated per slice.

        Returns
        -------
        Tensor
            ``[N, 1, H, W]`` float32, physical units of the target: the middle slice.
        """
        if self.neighbours:
            limits = limits.repeat(1, stack_size(self.neighbours), 1)
        out: Tensor = self.generator(self.source(slices, limits)).float()
        if self.neighbours:
            out = middle(out, self.neighbours)
        return self.target.inverse(out, self.target_range)


class RangeMeter(nn.Module):
    """`Normaliser.measure` as a module, exported as ``range.onnx``."""

    def __init__(self, source: Normaliser) -> None:
        super().__init__()
        self.source = source

    def forward(self, volume: Tensor) -> Tensor:
        """``[C, D, H, W]`` float32 in physical units → ``[C, 2]``."""
        return self.source.measure(volume)
