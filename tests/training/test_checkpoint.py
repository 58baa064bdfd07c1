"""Checkpoints: atomic, verified, the previous kept, other recipes refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ctmr.errors import EnvironmentFault, InputError
from ctmr.training import checkpoint


def write(folder: Path, step: int, digest: str = "d") -> Path:
    return checkpoint.save(
        folder, step=step, digest=digest, tensors={"w": torch.full((3,), float(step))}, scalars={"n": step}
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, 5)
    found = checkpoint.load(tmp_path, "d")
    assert found is not None
    assert (found.step, found.scalars, found.damaged) == (5, {"n": 5}, ())
    assert torch.equal(found.tensors["w"], torch.full((3,), 5.0))


def test_the_newest_two_stay_and_nothing_else(tmp_path: Path) -> None:
    for step in (5, 50, 500):
        write(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000050", "step-000000500"]


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_damage_of_the_newest_falls_back_to_the_previous(tmp_path: Path, file: str, harm: str) -> None:
    write(tmp_path, 1)
    target = write(tmp_path, 2) / file
    content = bytearray(target.read_bytes())
    if harm == "remove":
        target.unlink()
    elif harm == "truncate":
        target.write_bytes(content[: len(content) // 2])
    else:
        content[-20] ^= 1
        target.write_bytes(content)
    found = checkpoint.load(tmp_path, "d")
    assert found is not None
    assert found.step == 1
    assert found.damaged == (target.parent,)


def test_an_altered_step_number_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path, 1) / "state.json"
    document = json.loads(path.read_text())
    document["body"]["step"] = 900
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="all 1 checkpoints"):
        checkpoint.load(tmp_path, "d")


def test_another_digest_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1, digest="a" * 64)
    with pytest.raises(InputError, match="digest aaaaaaaaaaaa and this training has bbbbbbbbbbbb"):
        checkpoint.load(tmp_path, "b" * 64)


def test_a_full_disk_leaves_no_trace_and_the_previous_one(small_disk: Path) -> None:
    write(small_disk, 1)
    large = {"w": torch.zeros(10**6)}
    with pytest.raises(EnvironmentFault, match=r"step-000000002 cannot be written: .*No space left") as caught:
        checkpoint.save(small_disk, step=2, digest="d", tensors=large, scalars={})
    assert "\n" not in str(caught.value)
    with pytest.raises(EnvironmentFault, match=r"step-000000002 cannot be written: No space left"):
        checkpoint.save(small_disk, step=2, digest="d", tensors={}, scalars={"n": "x" * 4_000_000})
    with pytest.raises(EnvironmentFault, match=r"batch\.safetensors cannot be written: No space left"):
        checkpoint.save_batch(small_disk / "batch.safetensors", large, {})
    assert [p.name for p in small_disk.iterdir()] == ["step-000000001"]
    found = checkpoint.load(small_disk, "d")
    assert found is not None and found.step == 1


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, "d") is None
    assert checkpoint.load(tmp_path / "missing", "d") is None


def test_what_killed_processes_left_half_written_is_not_seen_and_cleared_by_the_next_write(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / ".step-000000002.1-0123abcd.partial").mkdir()
    found = checkpoint.load(tmp_path, "d")
    assert found is not None and found.step == 1
    write(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001", "step-000000003"]
