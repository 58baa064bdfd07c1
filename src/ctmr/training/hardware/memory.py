"""Memory of the device: what a step that does not fit is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

_ON_CPU = "can't allocate memory"
"""How PyTorch says it on a CPU, where there is no class of errors for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch says that the device has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _ON_CPU in str(error)


def words_of_lack(step: Callable[[], None]) -> str:
    """Take a step and return PyTorch's words where memory was too small for it, else nothing.

    When this has returned nothing holds the step's images any more, as an error would.
    """
    try:
        step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def sentence(batch: int, device: torch.device, words: str, attempt: Callable[[int], None] | None) -> str:
    """Say that a batch does not fit, and which one does.

    Parameters
    ----------
    words
        PyTorch's own.
    attempt
        As `largest_batch` takes it; ``None`` where smaller batches cannot be tried.
    """
    what = f"the memory of {_size_of(device)} is too small for a step with train.batch {batch}"
    less = "lower network.generator.width or the size of the slices, or set train.precision to bf16"
    if attempt is None:
        return f"{what} on several processes; lower it, or {less}"
    fits = largest_batch(attempt, batch)
    return f"{what}; {fits} fits, set train.batch to it" if fits else f"{what}, and for any ({words}); {less}"


def largest_batch(attempt: Callable[[int], None], above: int) -> int:
    """Return the largest batch below `above` that `attempt` has memory for; 0: not even 1.

    Parameters
    ----------
    attempt
        Takes a step with so many images of each modality. What fits for one batch fits for smaller ones.
    above
        Is known not to fit.
    """
    fits = 0
    while above - fits > 1:
        batch = (fits + above) // 2
        if words_of_lack(partial(attempt, batch)):
            above = batch
        else:
            fits = batch
    return fits


def _size_of(device: torch.device) -> str:
    """Return the device and its memory in words."""
    if device.type != "cuda":
        return "this machine"
    about = torch.cuda.get_device_properties(device)
    return f"{about.name} ({about.total_memory / 2**30:.0f} GiB)"
