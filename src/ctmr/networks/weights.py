"""Files of trained weights: read without running anything, and checked against the network they are for."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ctmr.errors import InputError


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of a ``.pth`` file that holds nothing but tensors.

    Raises
    ------
    InputError
        No such file, or one that is neither.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(path)
    if not file.is_file():
        raise InputError(f"there is no file of weights at {file}; give a safetensors or .pth file, or null")
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        tree = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"weights {file} cannot be read ({reason}); give safetensors or a .pth of tensors") from None
    if not isinstance(tree, Mapping) or not all(isinstance(v, Tensor) for v in tree.values()):
        raise InputError(f"weights {file} hold more than named tensors; give the file of a state_dict")
    return {str(k): cast(Tensor, v) for k, v in tree.items()}


def require_fit(what: str, path: Path | str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise InputError unless a file holds every wanted parameter in its shape."""
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise InputError(
            f"weights {path} are not those of {what}: {len(missing)} of {len(wanted)} parameters are missing, first "
            f"{missing[0]!r}; give weights with torchvision's names"
        )
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            raise InputError(
                f"weights {path} are not those of {what}: {name} has shape {tuple(given[name].shape)}, not "
                f"{tuple(tensor.shape)}; give weights with torchvision's names"
            )
