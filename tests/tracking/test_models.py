"""What comes back from a registry is loaded only when it is what was registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ctmr.errors import EnvironmentFault
from ctmr.system.digest import combined, content_digest, content_digests
from ctmr.tracking import models
from ctmr.tracking.mlflow import Tracking

pytestmark = pytest.mark.slow

WEIGHTS = "mr2ct.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "trained"
    (folder / "onnx" / "mr2ct").mkdir(parents=True)
    (folder / "provenance").mkdir()
    for name in ("model.json", WEIGHTS, "ct2mr.safetensors", "curves.csv", "onnx/mr2ct/spec.json", "provenance/x.json"):
        (folder / name).write_text(name)
    return folder


def kept(tracking: Tracking, model: Path) -> tuple[str, Path]:
    """Keep a model under a run of its own; return the run and where MLflow has the files."""
    run_id = tracking.start("a", tags={})
    models.keep(tracking, run_id, model)
    (there,) = tracking.home.artifacts.glob(f"**/{run_id}/**/{models.FOLDER}")
    return run_id, there


def test_a_folder_digest_follows_from_the_digests_of_its_files(model: Path) -> None:
    assert combined(content_digests(model)) == content_digest(model)
    assert "onnx/mr2ct/spec.json" in content_digests(model) and "provenance/x.json" not in content_digests(model)


def test_what_was_kept_comes_back(tracking: Tracking, model: Path, tmp_path: Path) -> None:
    run_id, _ = kept(tracking, model)
    found = models.fetch(tracking, run_id, content_digest(model), tmp_path)
    assert found is not None and (found / WEIGHTS).read_text() == WEIGHTS


def swap_entry(there: Path) -> None:
    listed = json.loads((there / models.DIGESTS).read_text())
    (there / WEIGHTS).write_text("other weights")
    listed[WEIGHTS] = content_digest(there / WEIGHTS)
    (there / models.DIGESTS).write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda there: (there / WEIGHTS).write_text("other weights"), WEIGHTS),
        (lambda there: (there / "model.json").write_text("{}"), "model.json"),
        (lambda there: (there / WEIGHTS).unlink(), WEIGHTS),
        (lambda there: (there / "more.json").write_text("{}"), "more.json"),
        (lambda there: (there / "more").mkdir(), "more"),
        (swap_entry, models.DIGESTS),
        (lambda there: (there / models.DIGESTS).write_text("[1]"), models.DIGESTS),
        (lambda there: (there / models.DIGESTS).write_text('{"model.json": "no digest"}'), models.DIGESTS),
    ],
)
def test_other_bytes_than_were_registered_are_refused(
    tracking: Tracking, model: Path, tmp_path: Path, change: Callable[[Path], object], named: str
) -> None:
    run_id, there = kept(tracking, model)
    change(there)
    if named == "more":
        (there / "more" / "file").write_text("x")
    with pytest.raises(EnvironmentFault, match=f"^{named} of model .* is not what was registered, so nothing of it"):
        models.fetch(tracking, run_id, content_digest(model), tmp_path)


def test_a_model_without_digests_is_not_given_out(tracking: Tracking, model: Path, tmp_path: Path) -> None:
    run_id, there = kept(tracking, model)
    (there / models.DIGESTS).unlink()
    assert models.fetch(tracking, run_id, content_digest(model), tmp_path) is None
