"""Names planted everywhere in a source are nowhere after it was added, pushed, fetched and validated."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ctmr.system.home import Home
from ctmr.tracking.mlflow import Tracking

pytestmark = pytest.mark.slow


def source_with(folder: Path, tokens, planted) -> Path:
    """A hospital's export: series, an archive, NIfTI files and pictures, all with tokens in names and headers."""
    export = folder / f"export {tokens.name}"
    for k, modality in enumerate(("CT", "MR")):
        planted(export / tokens.name / modality, tokens, modality, patient=tokens.number, series=str(k), slices=2)
    files = planted(folder / "packed", tokens, "CT", patient=tokens.given, series="9", slices=2)
    with zipfile.ZipFile(export / f"{tokens.date}.zip", "w") as archive:
        archive.comment = tokens.name.encode()
        for file in files:
            archive.write(file, f"{tokens.address}/{file.name}")
    for name in ("ct", "t1"):
        image = nibabel.Nifti1Image(np.random.default_rng(1).integers(0, 999, (12, 34, 34), dtype=np.int16), np.eye(4))
        image.header["descrip"] = tokens.name.encode("latin-1")
        image.header["db_name"] = tokens.given.encode("latin-1")
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, tokens.address.encode()))
        (export / tokens.number).mkdir(exist_ok=True)
        image.to_filename(export / tokens.number / f"{tokens.name}_{name}.nii.gz")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", tokens.name)
    chunks.add_text(tokens.given, tokens.address, zip=True)
    pixels = np.random.default_rng(2).integers(0, 256, (2, 40, 40), dtype=np.uint8)
    for k, side in enumerate(("CT", "MR")):
        (export / side).mkdir()
        Image.fromarray(pixels[k]).save(export / side / f"{tokens.name}{k}.png", pnginfo=chunks)
    # Files that are no image stay behind.
    (export / f"{tokens.name}.txt").write_text(tokens.address)
    (export / "report.json").write_text(f'{{"PatientName": "{tokens.name}"}}')
    return export


@settings(
    max_examples=1,
    phases=[Phase.generate],
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_token_is_found_anywhere(data, tokens_of, planted, leaks, tmp_path_factory, monkeypatch):
    tokens = data.draw(tokens_of)
    base = tmp_path_factory.mktemp("leaks")
    source = source_with(base / "hospital", tokens, planted)
    work = base / "work"
    work.mkdir()
    monkeypatch.setenv("CTMR_HOME", str(work / "home"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(work / "dvc-site-cache"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(work / "dvc-global"))
    printed = []

    def ctmr(*words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "ctmr.cli", *words], cwd=work, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr[-3000:]
        printed.append(done.stdout + done.stderr)
        return printed[-1]

    identities = base / "hospital" / "ids"
    ctmr("dataset", "add", "heads", str(source), "--repo", "repo", "--identity-file", str(identities), "--json")
    ctmr("dataset", "push", "heads", "--repo", "repo")
    ctmr("dataset", "list", "--repo", "repo")
    ctmr("dataset", "show", "heads", "--repo", "repo")
    ctmr("dataset", "verify", "heads", "--repo", "repo")
    ctmr("fetch", "--dataset", "repo", "--out", "run")
    ctmr("validate", "--out", "run", "--json")
    (work / "log.txt").write_text("\n".join(printed))
    everything = subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch", "--unordered"],
        cwd=work / "repo",
        capture_output=True,
        check=True,
    )
    (work / "objects").write_bytes(everything.stdout)
    tracking = Tracking(Home.current())
    run = tracking.client.create_run(tracking.experiment_id)
    for file in sorted((work / "run").rglob("*")):
        if file.suffix in (".json", ".csv", ".parquet"):
            tracking.client.log_artifact(run.info.run_id, str(file))

    import pandas as pd

    inventory = pd.read_parquet(work / "run" / "fetch" / "inventory.parquet")
    assert len(inventory) == 7 and set(inventory["error"]) == {""}
    assert set(inventory["identity"]) <= {"", "RecognizableVisualFeatures"}
    assert inventory.groupby("subject")["modality"].agg(set).map(len).max() == 2
    assert leaks(tokens, source), "the search finds what is there"
    assert tokens.name in identities.read_text() or tokens.number in identities.read_text()
    assert leaks(tokens, work) == []


def test_what_was_not_taken_in_by_ctmr_is_refused_by_validate(planted, some_tokens, tmp_path, home):
    for k, modality in enumerate(("CT", "MR")):
        files = planted(
            tmp_path / "raw" / modality, some_tokens, modality, patient="4711", series=str(k), everywhere=False
        )
        for file in files:
            image = pydicom.dcmread(file)
            image.PatientName = f"{some_tokens.name}^{some_tokens.given}"
            image.save_as(file)
    for words in (["fetch", "--dataset", str(tmp_path / "raw")], ["validate"]):
        subprocess.run(
            [sys.executable, "-m", "ctmr.cli", *words, "--out", str(tmp_path / "run")], check=True, capture_output=True
        )
    outcome = json.loads((tmp_path / "run" / "validate" / "validation.json").read_text())
    assert outcome["outcome"] == "refuse"
    for words in ("the patient in", "PatientName", "ctmr dataset add"):
        assert words in outcome["reason"]
    findings = (tmp_path / "run" / "validate" / "findings.csv").read_text()
    assert some_tokens.name not in findings and some_tokens.given not in findings
