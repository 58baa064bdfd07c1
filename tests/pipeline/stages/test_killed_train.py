"""train, killed again and again, leaves the content and the MLflow run that it leaves when nothing disturbs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from killed_training import KILLS, STEPS, Victim, kill_repeatedly

from ctmr.system.digest import content_digest
from ctmr.system.home import Home

pytestmark = [pytest.mark.drill, pytest.mark.slow]

SETTINGS = [
    ("preprocess.size", [16, 16]),
    ("network.generator.width", 4),
    ("network.generator.blocks", 1),
    ("network.discriminator.width", 4),
    ("network.discriminator.layers", 1),
    ("train.pool", 2),
    ("train.steps", STEPS),
    ("train.threads", 1),
    ("train.sample_every", STEPS // 4),
    ("train.checkpoint_every", 7),
    ("train.ema", 0.9),
]


def metrics(home: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every value of the model's run, by metric."""
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    run = json.loads((home / "out" / "provenance" / "run.json").read_text())["run_id"]
    names = client.get_run(run).data.metrics
    return {name: sorted((m.step, m.value) for m in client.get_metric_history(run, name)) for name in names}


def test_a_killed_train_stage_leaves_the_same_content_and_metrics(
    preprocessed: Path, database: bytes, tmp_path: Path, home: Home
) -> None:
    (tmp_path / "best.yaml").write_text("loss.cycle: 9.0\n")
    victim = Victim("stage", tmp_path / "errors.log")

    def arguments(name: str) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mlflow.db").write_bytes(database)
        return {
            "preprocessed": str(preprocessed),
            "best": str(tmp_path / "best.yaml"),
            "settings": SETTINGS,
            "home": str(tmp_path / name),
            "out": str(tmp_path / name / "out"),
        }

    work = tmp_path / "killed" / "work" / "train"
    try:
        victim.start(**arguments("whole"))
        assert victim.ended() == 0, victim.errors()
        moments = kill_repeatedly(
            victim,
            lambda: {*work.glob("*/checkpoints/*"), *work.glob("*/checkpoints/.step-*")},
            arguments("killed"),
        )
    finally:
        victim.stop()
    print(f"killed {moments}")
    assert sum(moments.values()) == KILLS
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert content_digest(whole / "out") == content_digest(killed / "out")
    rows = (killed / "out" / "curves.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(STEPS // 20, STEPS + 1, STEPS // 20))
    grids = [sorted(p.name for p in (h / "out" / "provenance" / "samples").iterdir()) for h in (whole, killed)]
    assert grids[0] == grids[1] and len(grids[0]) == 4
    assert metrics(whole) == metrics(killed)
