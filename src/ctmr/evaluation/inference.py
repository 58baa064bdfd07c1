"""Translating whole volumes with a translator: the path evaluate and tuning measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ctmr.networks.translator import Translator

CHUNK_SLICES = 8


def translate_array(
    translator: Translator, array: NDArray[Any], slices: Sequence[int] | None = None
) -> NDArray[np.float32]:
    """Translate one volume on the model's grid.

    Parameters
    ----------
    array
        ``[C, D, H, W]`` in the storage type of the source unit.
    slices
        Indices along D; only these are translated. The range is that of the whole volume all the same.

    Returns
    -------
    NDArray
        ``[D, H, W]`` float32, physical units of the target; D is the number of `slices` where they are given.
    """
    import torch

    from ctmr.networks.stacks import gather_stacks

    device = translator.target_range.device
    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)
    with torch.inference_mode():
        limits = translator.source.measure(volume)[None]
        chunks = [
            translator(gather_stacks(volume.movedim(1, 0), rows), limits.expand(len(rows), -1, -1))[:, 0]
            for rows in _chunks(volume, slices, translator.neighbours)
        ]
    out: NDArray[np.float32] = torch.cat(chunks).cpu().numpy()
    return out


def cycle_slices(
    source_side: nn.Module,
    forward: nn.Module,
    backward: nn.Module,
    array: NDArray[Any],
    slices: Sequence[int] | None = None,
    neighbours: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return slices as trained, ``[D, C, H, W]`` in [-1, 1], and their reconstructions through both generators.

    See `translate_array` for `array` and `slices`. With `neighbours` whole stacks go there and back, and what is
    returned is the middle of each.
    """
    import torch

    from ctmr.networks.stacks import gather_stacks, middle, stack_size

    weight = next(forward.parameters(), torch.empty(0))
    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(weight.device)
    with torch.inference_mode():
        limits = source_side.measure(volume)[None]  # type: ignore[operator]
        limits = limits.repeat(1, stack_size(neighbours), 1)
        chunks = [gather_stacks(volume.movedim(1, 0), rows) for rows in _chunks(volume, slices, neighbours)]
        parts = [source_side(p, limits.expand(len(p), -1, -1)) for p in chunks]
        again = [middle(backward(forward(p)).float(), neighbours) for p in parts]
    return torch.cat([middle(p, neighbours) for p in parts]).cpu().numpy(), torch.cat(again).cpu().numpy()


def _chunks(volume: Tensor, slices: Sequence[int] | None, neighbours: int) -> tuple[Tensor, ...]:
    """Rows of stacks ``[N, S]`` in a volume ``[C, D, H, W]``, some at a time; chunks share what lies at their edges."""
    import torch

    from ctmr.networks.stacks import stack_rows

    rows = stack_rows(volume.shape[1], neighbours)
    return torch.split(rows if slices is None else rows[list(slices)], CHUNK_SLICES)
