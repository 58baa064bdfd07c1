"""Translating whole volumes with a translator: the path evaluate and tuning measure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

    from ctmr.networks.translator import Translator

CHUNK_SLICES = 8


def translate_array(translator: Translator, array: NDArray[Any]) -> NDArray[np.float32]:
    """Translate one volume on the model's grid.

    Parameters
    ----------
    array
        ``[C, D, H, W]`` in the storage type of the source unit.

    Returns
    -------
    NDArray
        ``[D, H, W]`` float32, physical units of the target.
    """
    import torch

    device = translator.target_range.device
    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)
    with torch.inference_mode():
        limits = translator.source.measure(volume)[None]
        chunks = [
            translator(part, limits.expand(len(part), -1, -1))[:, 0]
            for part in torch.split(volume.movedim(1, 0), CHUNK_SLICES)
        ]
    out: NDArray[np.float32] = torch.cat(chunks).cpu().numpy()
    return out


def cycle_slices(
    source_side: nn.Module, forward: nn.Module, backward: nn.Module, array: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return slices as trained, ``[D, C, H, W]`` in [-1, 1], and their reconstructions through both generators."""
    import torch

    volume = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    with torch.inference_mode():
        limits = source_side.measure(volume)[None]  # type: ignore[operator]
        parts = [source_side(p, limits.expand(len(p), -1, -1)) for p in torch.split(volume.movedim(1, 0), CHUNK_SLICES)]
        again = [backward(forward(p)).float() for p in parts]
    return torch.cat(parts).numpy(), torch.cat(again).numpy()
