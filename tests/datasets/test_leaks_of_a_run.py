"""A whole training run on a dataset with planted names: neither its outputs nor MLflow nor its log hold one of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ctmr.system.home import Home
from ctmr.tracking.mlflow import Tracking

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

RUN = """
import json
import sys
from pathlib import Path
from ctmr.system.home import Home, quiet_libraries
from ctmr.errors import GateFailed
from ctmr.pipeline import stages
from ctmr.pipeline.inline import outputs_below, run_pipeline
from ctmr.pipeline.stage import run_stage
from ctmr.recipe.loading import load
from ctmr.datasets.dvc import resolve

def told(result):
    print(result.name, result.summary, flush=True)

quiet_libraries()
folder, home, recipe = Path("run"), Home.current(), load("default", sys.argv[1:])
try:
    run_pipeline(resolve("repo"), recipe, folder=folder, home=home, on_result=told)
except GateFailed as error:
    # Four steps on noise beat no baseline, so register is told that the gate was passed.
    print(error, flush=True)
decision = json.loads((folder / "evaluate" / "decision.json").read_text())
given = folder / "decision.json"
given.write_text(json.dumps(decision | {"passed": True}))
spec = stages.load("register")
inputs = spec.inputs(outputs_below(folder)) | {"decision": given}
told(run_stage(spec, inputs=inputs, recipe=recipe, out=folder / "register", home=home))
"""
TINY = [
    "name=tiny",
    "direction=mr2ct",
    "data={val_fraction: 0.3, test_fraction: 0.3}",
    "preprocess={size: [48, 48], min_head_fraction: 0}",
    "network.generator={kind: resnet, width: 4, blocks: 1}",
    "network.discriminator={kind: patchgan, width: 4, layers: 1}",
    "train={steps: 4, threads: 1}",
    "tune={trials: 2, steps: 2, reports: 1}",
    "evaluate={kid_subsets: 2, kid_subset_size: 2, bootstrap: 20, other_direction: 0, robustness: {cases: 0}, "
    "uncertainty: {cases: 0}, lesions: {cases: 0}}",
    "gate={cycle_slice: {ssim: {min: -1}}, structure: {nmi: {min: -1}}, unpaired_distribution: {kid: {max: 100}}}",
]


def test_a_run_leaves_no_name_in_its_outputs_its_log_or_mlflow(planted, some_tokens, leaks, tmp_path, monkeypatch):
    source, work = tmp_path / "hospital" / "export", tmp_path / "work"
    for k in range(14):
        modality = "CT" if k % 2 else "MR"
        planted(
            source / some_tokens.name / str(k),
            some_tokens,
            modality,
            patient=f"{some_tokens.number}{k}",
            series="1" * (k + 1),
            slices=4,
        )
    work.mkdir()
    monkeypatch.setenv("CTMR_HOME", str(work / "home"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(work / "dvc-site-cache"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    add = ["-m", "ctmr.cli", "dataset", "add", "heads", str(source), "--repo", "repo"]
    for number, words in enumerate(
        (
            [*add, "--identity-file", str(tmp_path / "hospital" / "ids")],
            ["-m", "ctmr.cli", "dataset", "push", "heads", "--repo", "repo"],
            ["-c", RUN, *TINY],
        )
    ):
        done = subprocess.run([sys.executable, *words], cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (work / f"{number}.log").write_text(done.stdout + done.stderr)
    tracking = Tracking(Home.current())
    runs = tracking.client.search_runs([tracking.experiment_id])
    assert len(runs) >= 3 and tracking.client.search_registered_models()
    assert any(r.data.metrics for r in runs) and (work / "home" / "mlflow.db").is_file()
    assert len(list((work / "home" / "mlartifacts").rglob("*"))) > 5
    assert leaks(some_tokens, source), "the search finds what is there"
    assert leaks(some_tokens, work) == []
