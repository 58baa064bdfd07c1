"""The main job: phantom DICOM in DVC to a synthetic DICOM series through Triton, with a study of three steps a trial.

The model is trained as the recipe says: the gate lets no model pass that is worse than a baseline that saw no pairs.
How much better it must be in the demo as a person runs it is measured in `tests/drills/test_full_demo.py`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ctmr.imaging.volume import Unit
from ctmr.io.dicom import read_header, read_series
from ctmr.metrics.cases import CaseMetrics
from ctmr.metrics.protocol import protocol
from ctmr.serving.server import EmbeddedTriton
from ctmr.tracking.mlflow import Tracking
from tests.doors.demo import PROTOCOL, Demo, run_demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SHORT = ("tune.steps=3", "train.threads=1", "evaluate.threads=1")
"""Beside another worker two threads of one step wait for each other most of the time."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, needs_triton: None) -> Iterator[Demo]:
    made = run_demo(tmp_path_factory.mktemp("demo"), *SHORT)
    yield made
    EmbeddedTriton(made.home.triton).stop()


def test_the_dataset_is_pinned_in_a_repository_of_its_own(demo: Demo) -> None:
    fetched = demo.summary("fetch")
    assert len(fetched["revision"]) == 40 and fetched["md5"].endswith(".dir")
    repository = demo.home.demo / "repository"
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert head.stdout.strip() == fetched["revision"]
    assert fetched["md5"] in (repository / "phantom.dvc").read_text()


def test_training_saw_no_subject_in_both_modalities(demo: Demo) -> None:
    import pandas as pd

    manifest = pd.read_parquet(demo.home.runs / "demo-phantom" / "validate" / "manifest.parquet")
    train = manifest[manifest["split"] == "train"]
    assert train.groupby("subject")["modality"].nunique().max() == 1
    assert manifest.groupby("subject")["split"].nunique().max() == 1


def test_at_least_four_trials_were_tried(demo: Demo) -> None:
    assert demo.summary("tune")["trials"] >= 4


def test_the_registered_version_leads_back_to_its_data(demo: Demo) -> None:
    registered = demo.summary("register")
    tags = Tracking(demo.home).version(registered["name"], registered["version"]).tags
    assert tags["dataset_md5"] == demo.summary("fetch")["md5"]
    assert tags["dataset_revision"] == demo.summary("fetch")["revision"]
    assert tags["run_id"] == registered["run_id"] and tags["validation"].startswith("pass")


def test_the_golden_dicom_case_is_served_within_one_hounsfield_unit(demo: Demo) -> None:
    deployed = demo.summary("deploy")
    assert deployed["golden_unit"] == "HU" and deployed["golden_difference"] <= 1.0


def test_the_synthetic_series_is_ct_on_the_sources_voxels_and_says_what_it_is(demo: Demo) -> None:
    folder = Path(demo.tree["synthetic"]["path"])
    made = read_series(folder)
    paths = demo.summary("evaluate")["golden"]["paths"]
    source = read_series(demo.home.runs / "demo-phantom" / "fetch" / "raw" / paths[0])
    assert made.unit is Unit.HU and made.array.shape == source.array.shape
    assert np.allclose(made.require_affine(), source.require_affine(), atol=1e-3)
    header = read_header(sorted(folder.iterdir())[0])
    assert header.SeriesDescription.startswith("SYNTHETIC CT") and header[0x0008, 0x001C].value == "YES"
    assert str(header.PatientName) == ""


def test_the_synthetic_series_is_as_good_as_the_report_says(demo: Demo) -> None:
    from ctmr.imaging.mask import head_mask_ct
    from ctmr.metrics.measurement import measure_paired

    golden = demo.summary("evaluate")["golden"]
    raw = demo.home.runs / "demo-phantom" / "fetch" / "raw"
    truth = read_series(raw / "test" / "CT" / golden["subject"])
    made = read_series(Path(demo.tree["synthetic"]["path"]))
    again: CaseMetrics = measure_paired(
        made.array, truth.array, head_mask_ct(truth.array), protocol(PROTOCOL), case="again", subject=golden["subject"]
    )
    cases = (demo.home.runs / "demo-phantom" / "evaluate" / "cases.csv").read_text().splitlines()
    row = next(r for r in cases if f",{golden['subject']},mae," in r)
    assert again.values["mae"] == pytest.approx(float(row.rsplit(",", 1)[1]), abs=1.0)


def test_lineage_walks_back_to_the_dataset_and_finds_everything(demo: Demo) -> None:
    done = demo.command("lineage", demo.tree["synthetic"]["series_uid"], "--json")
    links = {link["what"]: link for link in json.loads(done.stdout)["links"]}
    assert links["dataset md5"]["value"] == demo.summary("fetch")["md5"]
    assert not [name for name, link in links.items() if link["checked"] is False]
    for name in ("Triton model", "ONNX sha256", "MLflow run", "code revision", "validation", "dataset revision"):
        assert links[name]["value"]


def test_a_second_demo_reuses_every_stage(demo: Demo) -> None:
    again = run_demo(demo.home.root, *SHORT)
    assert all(stage["reused"] for stage in again.tree["stages"].values())


def test_an_unreachable_gate_exits_1_and_leaves_the_served_version_alone(demo: Demo) -> None:
    before = Tracking(demo.home).versions("demo-phantom")
    settings = [word for setting in (*SHORT, f"gate.{PROTOCOL}.psnr.min=99") for word in ("--set", setting)]
    done = demo.command("demo", "--runner", "inline", *settings)
    assert done.returncode == 1
    assert "not at least 99" in done.stderr and "Traceback" not in done.stderr
    assert [v.version for v in Tracking(demo.home).versions("demo-phantom")] == [v.version for v in before]
    assert demo.command("lineage", demo.tree["synthetic"]["series_uid"]).returncode == 0
    assert EmbeddedTriton(demo.home.triton).status() is not None
