"""train: losses and measures in their own tables, notices told, the tuned settings used, MLflow told the same."""

from __future__ import annotations

import csv
from pathlib import Path

import mlflow
import pytest
import torch

from ctmr.home import Home
from ctmr.recipe import Recipe, Term, override
from ctmr.stages import train
from ctmr.stages.contract import Result, run_stage

pytestmark = pytest.mark.slow

SETTINGS = [
    ("train.steps", 8), ("train.threads", 1), ("train.sample_every", 4), ("train.discriminator_every", 4),
    ("network.generator.kind", "unet_resnet18"), ("network.generator.blocks", 2),
    ("loss.log_as", {"ABA": ["cycle_mr"], "both": ["cycle_mr", "cycle_ct"]}),
]  # fmt: skip


@pytest.fixture
def trained(
    tiny: Recipe, preprocessed: Path, tmp_path: Path, home: Home, database: bytes
) -> tuple[Result, list[str], Home]:
    torch.set_num_threads(1)
    home.root.mkdir(exist_ok=True)
    (home.root / "mlflow.db").write_bytes(database)
    (tmp_path / "best.yaml").write_text("loss.cycle: 9.0\n")
    said: list[str] = []
    result = run_stage(
        train.STAGE,
        inputs={"preprocessed": preprocessed, "best": tmp_path / "best.yaml"},
        recipe=override(tiny, SETTINGS),
        out=tmp_path / "out",
        home=home,
        report=lambda message, *rest: said.append(message),
    )
    return result, said, home


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_losses_measures_samples_and_notices_are_all_there(trained: tuple[Result, list[str], Home]) -> None:
    result, said, home = trained
    curves, measures = table(result.out / "curves.csv"), table(result.out / "measures.csv")
    # The discriminators learn at every fourth step, and no report falls between.
    assert [row["step"] for row in curves] == [row["step"] for row in measures] == ["4", "8"]
    assert set(curves[0]) - {"step"} <= set(Term) and "discriminator_ct" in curves[0]
    assert set(measures[0]) == {"step", "accuracy_ct", "accuracy_mr", "paper.ABA", "paper.both"}
    for losses, named in zip(curves, measures, strict=True):
        assert float(named["paper.ABA"]) == float(losses["cycle_mr"])
        assert float(named["paper.both"]) == pytest.approx(float(losses["cycle_mr"]) + float(losses["cycle_ct"]), 1e-4)
        assert 0 <= float(named["accuracy_ct"]) <= 1
        parts = [float(losses[f"adversarial_{d}"]) for d in ("mr2ct", "ct2mr")]
        parts += [9.0 * float(losses[f"cycle_{m}"]) + 4.5 * float(losses[f"identity_{m}"]) for m in ("mr", "ct")]
        assert float(losses["generator"]) == pytest.approx(sum(parts), rel=1e-4)
    assert any("RANDOM" in message for message in said)
    assert any(message.startswith("step 8 of 8: generator") and "discriminator" in message for message in said)
    assert [p.name for p in sorted((result.out / "provenance" / "samples").iterdir())] == [
        "step_0000004.png", "step_0000008.png"
    ]  # fmt: skip
    client = mlflow.MlflowClient(home.tracking_uri)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.data.metrics["paper.ABA"] == pytest.approx(float(curves[-1]["cycle_mr"]), rel=1e-4)
    assert {"train.accuracy_mr", "train.generator", "paper.both"} <= set(run.data.metrics)
