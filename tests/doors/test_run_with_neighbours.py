"""The whole pipeline with neighbouring slices: tuned, trained, measured both ways, and served as evaluate measured."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from ctmr.datasets.dvc import resolve
from ctmr.errors import GateFailed
from ctmr.networks.model_folder import Description
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of
from ctmr.pipeline import stages
from ctmr.pipeline.inline import outputs_below, run_pipeline
from ctmr.pipeline.stage import Result, run_stage
from ctmr.recipe.loading import load
from ctmr.serving.server import EmbeddedTriton, connect
from ctmr.system.home import Home, quiet_libraries

pytestmark = pytest.mark.slow

SHAPE, SPACING_MM = (24, 28, 24), 8.0
SETTINGS = [
    "name=tiny",
    "validation.min_side=16",
    "direction=mr2ct",
    "preprocess={plane: axial, spacing_mm: [8, 8], slice_spacing_mm: 8, size: [28, 24], min_head_fraction: 0.1}",
    "network={neighbours: 1, generator: {kind: resnet, width: 4, blocks: 1}, "
    "discriminator: {kind: patchgan, width: 4, layers: 1, position: true}}",
    "loss.warmup.weight=1",
    "loss.identity=0.5",
    "train={steps: 4, threads: 1, sample_every: 2}",
    "tune={trials: 2, steps: 2, reports: 1, workers: 1, space: {network.neighbours: {kind: choice, values: [1, 2]}}}",
    "evaluate={bootstrap: 50, kid_subsets: 2, other_direction: 2, robustness: {cases: 1, slices: 2, strengths: [1.0]}, "
    "uncertainty: {cases: 1, slices: 3}, lesions: {cases: 1, radii_mm: [12]}}",
    "deploy.chunk=3",
    "gate={cycle_slice: {ssim: {min: -1}}, structure: {nmi: {min: -1}}, unpaired_distribution: {kid: {max: 1000}}}",
]


def run_to_the_end(heads: Path, folder: Path, home: Home) -> dict[str, Result]:
    """Run all stages. Four steps beat no baseline, so register is told that the gate was passed."""
    recipe, results = load("default", SETTINGS), dict[str, Result]()
    with pytest.raises(GateFailed, match="a baseline that saw no pairs"):
        run_pipeline(
            resolve(str(heads)), recipe, folder=folder, home=home, on_result=lambda r: results.__setitem__(r.name, r)
        )
    decision = json.loads((folder / "evaluate" / "decision.json").read_text())
    given = folder / "decision.json"
    given.write_text(json.dumps(decision | {"passed": True, "replaces_champion": True}))
    for name in ("register", "deploy"):
        spec = stages.load(name)
        inputs = spec.inputs(outputs_below(folder))
        inputs |= {"decision": given} if name == "register" else {}
        results[name] = run_stage(spec, inputs=inputs, recipe=recipe, out=folder / name, home=home)
    return results


def test_a_stack_goes_from_the_data_to_the_server_and_back(tmp_path: Path, home: Home, needs_triton: None) -> None:
    quiet_libraries()
    for seed in range(14):
        split, modality = "train" if seed < 6 else "val" if seed < 10 else "test", "CT" if seed % 2 else "MR"
        head = make_head(seed, shape=SHAPE, spacing_mm=SPACING_MM)
        path = tmp_path / "heads" / split / modality / f"{seed}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(head.ct if modality == "CT" else head.t1, affine_of(SHAPE, SPACING_MM))
        nibabel.save(image, path)
    folder = tmp_path / "run"
    try:
        results = run_to_the_end(tmp_path / "heads", folder, home)
        chosen = results["train"].summary["settings"]["network.neighbours"]
        assert Description.read(folder / "train").neighbours == chosen
        trials = json.loads((folder / "tune" / "trials.json").read_text())["trials"]
        assert trials[0]["params"] == {"network.neighbours": 1} and all(t["score"] is not None for t in trials)
        summary = results["evaluate"].summary
        assert {"cycle_slice", "structure", "unpaired_distribution"} <= set(summary["metrics"])
        verdict = json.loads((folder / "evaluate" / "verdict.json").read_text())
        assert verdict["other_direction"]["direction"] == "ct2mr" and verdict["other_direction"]["summaries"]
        assert results["deploy"].summary["golden_difference"] <= 1.0
        sheets = sorted((folder / "train" / "provenance" / "samples").glob("*.png"))
        assert len(sheets) == 2 and Image.open(sheets[0]).size == Image.open(sheets[1]).size
        with connect(home, None) as client:
            spec, version = client.spec("tiny-heads_mr2ct")
            assert (spec.neighbours, spec.channels, version) == (chosen, 1, "1")
            # A client sends a volume as ever.
            array = np.random.default_rng(0).integers(0, 900, (1, 5, 28, 24)).astype(np.uint16)
            assert client.translate_array("tiny-heads_mr2ct", array, "1").shape == (5, 28, 24)
    finally:
        EmbeddedTriton(home.triton).stop()
