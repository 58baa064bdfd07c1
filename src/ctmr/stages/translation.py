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

    device = translator.target_range.device
    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)
    with torch.inference_mode():
        limits = translator.source.measure(volume)[None]
        chunks = [
            translator(part, limits.expand(len(part), -1, -1))[:, 0]
            for part in torch.split(_chosen(volume, slices), CHUNK_SLICES)
        ]
    out: NDArray[np.float32] = torch.cat(chunks).cpu().numpy()
    return out


def cycle_slices(
    source_side: nn.Module,
    forward: nn.Module,
    backward: nn.Module,
    array: NDArray[Any],
    slices: Sequence[int] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return slices as trained, ``[D, C, H, W]`` in [-1, 1], and their reconstructions through both generators.

    See `translate_array` for `array` and `slices`.
    """
    import torch

    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    with torch.inference_mode():
        limits = source_side.measure(volume)[None]  # type: ignore[operator]
        chunks = torch.split(_chosen(volume, slices), CHUNK_SLICES)
        parts = [source_side(p, limits.expand(len(p), -1, -1)) for p in chunks]
        again = [backward(forward(p)).float() for p in parts]
    return torch.cat(parts).numpy(), torch.cat(again).numpy()


def _chosen(volume: Tensor, slices: Sequence[int] | None) -> Tensor:
    """Slices ``[N, C, H, W]`` of a volume ``[C, D, H, W]``."""
    stacked = volume.movedim(1, 0)
    return stacked if slices is None else stacked[list(slices)]
