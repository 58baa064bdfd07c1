"""Shared by the tests of the stages: preprocessed data of a few pixels, and a recipe that a study of it needs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ctmr.data.shards import Shard, ShardVolume, write_shard
from ctmr.grid import Plane, volume_grid
from ctmr.manifest import Split
from ctmr.recipe import Recipe, override
from ctmr.volume import Modality, Unit

SIZE, SLICES = 16, 4
SETTINGS = [
    ("preprocess.size", [SIZE, SIZE]), ("network.generator.width", 4), ("network.generator.blocks", 1),
    ("network.discriminator.width", 4), ("network.discriminator.layers", 1), ("train.pool", 2), ("tune.trials", 4),
    ("tune.steps", 2), ("tune.reports", 2), ("tune.workers", 2), ("loss.cycle", 7.0),
]  # fmt: skip


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
                    image=f"{split}{modality}{k}", subject=f"val{k}" if split is Split.VAL else f"{modality}{k}",
                    uid="", first=k * SLICES, count=SLICES, paths=("x",), sequences=("" if ct else "T1",),
                    affine=affine, level=-1.5,
                )
                for k in range(subjects)
            )  # fmt: skip
            unit = Unit.HU if ct else Unit.ARBITRARY
            stored = slices.round().clip(-1024 if ct else 0, 3000).astype(np.int16 if ct else np.uint16)
            write_shard(
                folder / "shards", split, Shard(stored, np.tile(head, (subjects, 1, 1)), volumes, unit, modality)
            )
    grid = volume_grid(Plane.AXIAL, (SIZE, SIZE), (1.0, 1.0))
    (folder / "grid.json").write_text(grid.model_dump_json())
    return folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Address of a PostgreSQL server of our own: a new cluster behind a socket in a temporary folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    programs = found[-1].parent
    if not (programs / "pg_ctl").is_file():
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    who = {}
    # Below pytest's own folder nobody else may look.
    folder = Path(tempfile.mkdtemp(prefix="ctmr-pg-"))
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        who = {"user": "postgres" if "postgres" in {p.pw_name for p in pwd.getpwall()} else "nobody"}
        shutil.chown(folder, **who)

    def run(*words: str | Path) -> None:
        subprocess.run(
            [str(w) for w in words], check=True, timeout=120, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who,
        )  # fmt: skip

    data = folder / "data"
    try:
        run(programs / "initdb", "-D", data, "-U", "ctmr", "--auth=trust", "--no-sync")
        settings = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run(programs / "pg_ctl", "-D", data, "-w", "-o", settings, "start")
        yield f"postgresql://ctmr:secret@/postgres?host={folder}"
        run(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
