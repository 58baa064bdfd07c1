"""A few pixels of preprocessed data, a recipe small enough for them, and an empty MLflow database, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctmr.data.manifest import Split
from ctmr.data.shards import Shard, ShardVolume, write_shard
from ctmr.imaging.grid import Plane, volume_grid
from ctmr.imaging.volume import Modality, Unit
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe

SIZE, SLICES = 16, 4
SETTINGS = [
    ("preprocess.size", [SIZE, SIZE]),
    ("network.generator.width", 4),
    ("network.generator.blocks", 1),
    ("network.discriminator.width", 4),
    ("network.discriminator.layers", 1),
    ("train.pool", 2),
    ("tune.trials", 4),
    ("tune.steps", 2),
    ("tune.reports", 2),
    ("tune.workers", 2),
    ("loss.cycle", 7.0),
]


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """Return a recipe whose study has four trials of two steps, in waves of two."""
    return override(Recipe(), SETTINGS)


@pytest.fixture(scope="session")
def preprocessed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs of 16 by 16 pixels: two training and one validation subject of each modality, the latter a pair in HU."""
    folder = tmp_path_factory.mktemp("preprocessed")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    head = np.broadcast_to(x**2 + y**2 < 36, (SLICES, SIZE, SIZE))
    affine = ((0.0, 0.0, -1.0, 8.0), (0.0, -1.0, 0.0, 8.0), (2.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    for split, subjects in ((Split.TRAIN, 2), (Split.VAL, 1)):
        for modality in Modality:
            ct = modality is Modality.CT
            images = np.where(head, 40.0 if ct else 900.0, -1000.0 if ct else 10.0)
            slices = np.concatenate([images + rng.normal(0, 5, images.shape) for _ in range(subjects)])[:, None]
            volumes = tuple(
                ShardVolume(
                    image=f"{split}{modality}{k}",
                    subject=f"val{k}" if split is Split.VAL else f"{modality}{k}",
                    uid="",
                    first=k * SLICES,
                    count=SLICES,
                    paths=("x",),
                    sequences=("" if ct else "T1",),
                    affine=affine,
                    level=-1.5,
                )
                for k in range(subjects)
            )
            unit = Unit.HU if ct else Unit.ARBITRARY
            stored = slices.round().clip(-1024 if ct else 0, 3000).astype(np.int16 if ct else np.uint16)
            write_shard(
                folder / "shards", split, Shard(stored, np.tile(head, (subjects, 1, 1)), volumes, unit, modality)
            )
    grid = volume_grid(Plane.AXIAL, (SIZE, SIZE), (1.0, 1.0))
    (folder / "grid.json").write_text(grid.model_dump_json())
    return folder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an empty MLflow database, made once: its migrations take seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()
