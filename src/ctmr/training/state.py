"""State: what a checkpoint holds of optimisers, pools and reports, and the digest of the data it belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ctmr.training.events import StepEvent
from ctmr.training.hardware.speed import like

_CHUNK_SLICES = 256


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Undo `below`."""
    return {f"{prefix}{k}": v for k, v in tensors.items()}


def pack_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's moments by ``<parameter>.<moment>``; rates follow from the step."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{moment}": v for index, moments in state.items() for moment, v in moments.items()}


def unpack_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `pack_optimiser` returned, in the memory format that each parameter has now."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, moment = key.split(".")
        parameter = optimiser.param_groups[0]["params"][int(index)]
        state.setdefault(int(index), {})[moment] = like(value, parameter)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def pack_reports(reports: Sequence[StepEvent]) -> list[list[Any]]:
    """Return reports as plain JSON types; floats survive exactly."""
    return [
        [r.step, dict(r.losses), dict(r.learning_rates), r.seconds_per_step, dict(r.accuracy), dict(r.named)]
        for r in reports
    ]


def unpack_reports(rows: Sequence[Sequence[Any]]) -> list[StepEvent]:
    """Undo `pack_reports`."""
    return [StepEvent(*row) for row in rows]


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in host memory, which training does not change any more."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def data_digest(data: Any) -> str:
    """Return the sha256 over a tree of dataclasses: names, tensors' types, shapes and bytes, everything else's repr."""
    total = hashlib.sha256()
    _add(total, data)
    return total.hexdigest()


def _add(total: Any, node: Any) -> None:
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        total.update(f"{field.name}:".encode())
        if dataclasses.is_dataclass(value):
            _add(total, value)
        elif isinstance(value, Tensor):
            total.update(f"{value.dtype}{tuple(value.shape)}:".encode())
            for part in torch.split(value.detach(), _CHUNK_SLICES):
                total.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            total.update(f"{value!r};".encode())
