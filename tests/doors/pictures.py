"""A few small pictures, a recipe for them, and the world that a run on them leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ctmr.datasets.dvc import resolve
from ctmr.phantom import make_head
from ctmr.pipeline import stages
from ctmr.pipeline.inline import Run, run_pipeline
from ctmr.recipe.loading import load
from ctmr.recipe.recipe import Recipe
from ctmr.serving.server import connect
from ctmr.system.home import Home
from ctmr.tracking.mlflow import Tracking

WORKSPACE_STAGES = [name for name in stages.names() if name not in ("register", "deploy")]
MODEL = "tiny-small_pictures"
"""Recipe and folder of the pictures: the name under which their model is registered."""
SETTINGS = [
    "name=tiny",
    "direction=ct2mr",
    "preprocess.picture_size=[32, 32]",
    "network.generator={kind: resnet, width: 4, blocks: 1}",
    "network.discriminator={kind: patchgan, width: 4, layers: 1}",
    "train.steps=6",
    "train.threads=1",
    "tune.trials=2",
    "tune.steps=2",
    "tune.reports=1",
    "tune.workers=1",
    "data.val_fraction=0.4",
    "validation.near_duplicate_bits=0",
    "evaluate.kid_subsets=2",
    "evaluate.bootstrap=50",
    "evaluate.other_direction=0",
    "evaluate.robustness.cases=0",
    "evaluate.lesions.cases=1",
    "gate.cycle_slice.ssim.min=-1",
    "gate.structure.nmi.min=-1",
    "gate.unpaired_distribution.kid.max=100",
    "gate.allow_unmeasured_fidelity=true",
]
"""Limits one by one: a recipe's file keeps the default ones, so a replaced gate would differ between doors."""


def recipe(*settings: str) -> Recipe:
    return load("default", [*SETTINGS, *settings])


def write_pictures(folder: Path) -> None:
    """Write 14 unpaired 8-bit slices of phantom heads, ten of them for training.

    The MR images of the test are grey noise, which is what a generator gives after a few steps: the model beats the
    baselines, which take after the images of the training, and no test waits for a real training.
    """
    for seed in range(14):
        head = make_head(seed, shape=(24, 28, 24), spacing_mm=8.0)
        ct = np.clip((head.ct.astype(float) + 1000) / 2000 * 255, 0, 255)
        mr = np.clip(head.t1 / head.t1.max() * 255, 0, 255)
        split = "train" if seed < 10 else "test"
        name, image = ("CT", ct) if seed % 2 else ("MRI", mr)
        if (split, name) == ("test", "MRI"):
            image = np.random.default_rng(seed).normal(127, 30, image.shape).clip(0, 255)
        path = folder / split / name / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[13].astype(np.uint8)).resize((48, 56)).save(path)


def digests(folder: Path, stages: Sequence[str] = WORKSPACE_STAGES) -> dict[str, str]:
    """Stage → content digest of its output below a run folder, whoever made it."""
    return {n: json.loads((folder / n / "provenance" / "stage.json").read_text())["digest"] for n in stages}


@dataclass
class World:
    """A home, a dataset of pictures and the first run on it, with the digests that it left."""

    home: Home
    data: Path
    folder: Path
    first: Run
    digests: dict[str, str]

    def run(self, *settings: str) -> Run:
        """Run the pipeline again with other settings."""
        return run_pipeline(resolve(str(self.data)), recipe(*settings), folder=self.folder, home=self.home)

    def live(self) -> str | None:
        """The version that answers."""
        with connect(self.home, None) as client:
            return client.live_version(f"{MODEL}_ct2mr")

    def versions(self) -> list[str]:
        """The registered versions, newest first."""
        return [v.version for v in Tracking(self.home).versions(MODEL)]
