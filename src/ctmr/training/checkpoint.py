"""Checkpoints: safetensors and JSON, written atomically, verified by sha256, the previous one kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ctmr.errors import EnvironmentFault, InputError
from ctmr.system.digest import file_digest
from ctmr.system.files import new_folder, sweep, write_file

KEPT = 2
"""Checkpoints that stay: the newest, and the one before for when the newest is damaged."""

_FORMAT = 2
_TENSORS, _STATE = "state.safetensors", "state.json"
_STEP = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint.

    Attributes
    ----------
    step
        Steps done.
    tensors
        By name, on the CPU.
    scalars
        Plain JSON types by name.
    damaged
        Newer checkpoints that were passed over because they are incomplete or altered.
    """

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]
    damaged: tuple[Path, ...] = ()


def save(folder: Path, *, step: int, digest: str, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> Path:
    """Write ``<folder>/step-<step>`` and remove all but the `KEPT` newest.

    Parameters
    ----------
    folder
        Made when missing.
    step
        Steps done.
    digest
        Of everything that decides the training; `load` refuses another one.
    tensors, scalars
        The state; scalars are plain JSON types.

    Returns
    -------
    Path
        The checkpoint, complete and flushed to the disk.

    Raises
    ------
    EnvironmentFault
        When the disk cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = folder / f"{_STEP}{step:09d}"
    sweep(folder)
    with new_folder(target, replace=True) as temporary:
        try:
            save_file(_on_cpu(tensors), temporary / _TENSORS)
        except SafetensorError as error:
            # It tells errors of the system so.
            raise EnvironmentFault(f"{target} cannot be written: {error}; free space, then run again") from error
        body = {
            "format": _FORMAT,
            "step": step,
            "digest": digest,
            "tensors_sha256": file_digest(temporary / _TENSORS),
            "scalars": dict(scalars),
        }
        text = json.dumps({"body": body, "sha256": _body_sha256(body)}, sort_keys=True)
        (temporary / _STATE).write_text(text)
    for old in _checkpoints(folder)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def step_of(path: Path) -> int:
    """Return the steps done of a checkpoint, from its name."""
    return int(path.name.removeprefix(_STEP))


def load(folder: Path, digest: str) -> Checkpoint | None:
    """Return the newest intact checkpoint, ``None`` when there is none at all.

    Raises
    ------
    InputError
        When it belongs to another recipe or other data, or when every checkpoint is damaged.
    """
    from safetensors.torch import load_file

    damaged: list[Path] = []
    for path in _checkpoints(folder):
        body = _intact_body(path)
        if body is None:
            damaged.append(path)
            continue
        if body["digest"] != digest:
            raise InputError(
                f"checkpoint {path} was made with digest {body['digest'][:12]} and this training has {digest[:12]}: "
                "recipe or data differ; use the same ones, or another work directory"
            )
        return Checkpoint(body["step"], load_file(path / _TENSORS), body["scalars"], tuple(damaged))
    if damaged:
        raise InputError(
            f"all {len(damaged)} checkpoints in {folder} are damaged (sha256 differs); "
            "delete that folder to train from the start"
        )
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_STEP}*"), reverse=True) if folder.is_dir() else []


def save_batch(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors, with what is known about them in the file's metadata, for a person to look at.

    Raises
    ------
    EnvironmentFault
        When the disk cannot be written.
    """
    from safetensors.torch import save as as_bytes

    write_file(path, as_bytes(_on_cpu(tensors), dict(facts)), replace=True)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _intact_body(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads((path / _STATE).read_text())
        body: dict[str, Any] = document["body"]
        intact = (
            document["sha256"] == _body_sha256(body)
            and body["format"] == _FORMAT
            and body["tensors_sha256"] == file_digest(path / _TENSORS)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return body if intact else None


def _body_sha256(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
