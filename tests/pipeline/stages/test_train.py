"""train: losses and measures in their own tables, notices told, the tuned settings used, MLflow told the same."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest
import torch

from ctmr.errors import CtmrError, InputError
from ctmr.pipeline.stage import Result, run_stage
from ctmr.pipeline.stages import train
from ctmr.recipe.loading import override, render
from ctmr.recipe.recipe import Recipe
from ctmr.recipe.training import Term
from ctmr.system.home import Home
from ctmr.tracking.mlflow import Tracking
from ctmr.training.cyclegan import networks

pytestmark = pytest.mark.slow

SETTINGS = [
    ("train.steps", 8),
    ("train.threads", 1),
    ("train.sample_every", 4),
    ("train.discriminator_every", 4),
    ("network.generator.kind", "unet_resnet18"),
    ("network.generator.blocks", 2),
    ("loss.log_as", {"ABA": ["cycle_mr"], "both": ["cycle_mr", "cycle_ct"]}),
]


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
        "step_0000004.png",
        "step_0000008.png",
    ]
    alarms = table(result.out / "alarms.csv")
    assert set(alarms[0]) == {"step", "alarm", "side", "value", "limit", "beyond"}
    assert {(row["step"], row["alarm"]) for row in alarms} >= {("4", "discriminator_won"), ("8", "identity_shortcut")}
    client = mlflow.MlflowClient(home.tracking_uri)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.data.metrics["paper.ABA"] == pytest.approx(float(curves[-1]["cycle_mr"]), rel=1e-4)
    assert {"train.accuracy_mr", "train.generator", "paper.both", "alarm.identity_shortcut_ct"} <= set(run.data.metrics)


class Scale(torch.nn.Module):
    """Can do nothing but hand its input on, more or less."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.95))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.factor * images


def inputs(preprocessed: Path, tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "best.yaml").write_text("loss.cycle: 9.0\n")
    return {"preprocessed": preprocessed, "best": tmp_path / "best.yaml"}


@pytest.fixture
def ready(home: Home, database: bytes) -> Home:
    torch.set_num_threads(1)
    home.root.mkdir(exist_ok=True)
    (home.root / "mlflow.db").write_bytes(database)
    return home


def test_an_alarm_is_told_tagged_and_ends_the_stage_where_the_recipe_says_so(
    tiny: Recipe, preprocessed: Path, tmp_path: Path, ready: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "build_generator", lambda *args, **kwargs: Scale())
    tag = Tracking.tag

    def slowly(tracking: Tracking, run_id: str, tags: Mapping[str, str]) -> None:
        time.sleep(0.5)  # So that the stage has every chance to end first.
        tag(tracking, run_id, tags)

    monkeypatch.setattr(Tracking, "tag", slowly)
    alarms = {"stop": ["identity_shortcut"], "patience": 2, "after": 0.0}
    settings = [("train.steps", 8), ("train.threads", 1), ("train.sample_every", 2), ("train.alarms", alarms)]
    recipe = override(tiny, settings)
    said: list[str] = []
    with pytest.raises(CtmrError, match=r"stopped by alarm identity shortcut .* at step 4: .*loss\.cycle") as caught:
        run_stage(
            train.STAGE,
            inputs=inputs(preprocessed, tmp_path),
            recipe=recipe,
            out=tmp_path / "out",
            home=ready,
            report=lambda message, *rest: said.append(message),
        )
    assert caught.value.exit_code == 1 and not (tmp_path / "out").exists()
    assert any(message.startswith("alarm identity shortcut") for message in said)
    client = mlflow.MlflowClient(ready.tracking_uri)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert any(name.startswith("ctmr.alarm.identity_shortcut_") for name in run.data.tags)


def test_torchrun_starts_the_command_in_two_processes_that_leave_one_model(
    tiny: Recipe, preprocessed: Path, tmp_path: Path, ready: Home
) -> None:
    recipe = override(tiny, [("train.steps", 6), ("train.batch", 2), ("train.threads", 2)])
    (tmp_path / "recipe.yaml").write_text(render(recipe))
    given = [f"--input={name}={path}" for name, path in inputs(preprocessed, tmp_path).items()]

    def started(*words: str) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ctmr.cli"]
        command = [sys.executable, *launcher, "train", "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "run"]
        return subprocess.run(
            [*map(str, command), *words], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
        )

    done = started(*given, "--json")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1
    assert [row["step"] for row in table(tmp_path / "run" / "train" / "curves.csv")] == [str(n) for n in range(1, 7)]
    client = mlflow.MlflowClient(ready.tracking_uri)
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == 1
    again = started(*given)
    assert again.returncode == 0, again.stderr


def test_the_environment_makes_the_stage_start_torchrun_and_its_errors_stay_one_sentence(
    tiny: Recipe, preprocessed: Path, tmp_path: Path, ready: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTMR_TRAIN_PROCESSES", "2")

    def run(batch: int) -> Result:
        recipe = override(tiny, [("train.steps", 6), ("train.batch", batch), ("train.threads", 2)])
        return run_stage(
            train.STAGE, inputs=inputs(preprocessed, tmp_path), recipe=recipe, out=tmp_path / "out", home=ready
        )

    with pytest.raises(InputError, match=r"^train\.batch 3 cannot be divided among 2 processes"):
        run(3)
    result = run(2)
    assert result.summary["steps"] == 6 and len(table(result.out / "curves.csv")) == 6
    assert (result.out / "onnx" / "mr2ct" / "generator.onnx").is_file()
    assert not list((ready.root / "work" / "train").glob("*/torchrun"))
    monkeypatch.setenv("CTMR_TRAIN_PROCESSES", "two")
    with pytest.raises(InputError, match="CTMR_TRAIN_PROCESSES is 'two'"):
        run(4)
