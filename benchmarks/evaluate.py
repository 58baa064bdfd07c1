"""Time and peak memory of evaluate over the number of held-out volumes: `python benchmarks/evaluate.py [--json]`.

Every number is measured in a process of its own. The volumes are one phantom head, enlarged voxel by voxel, under many
names; the networks are tiny, so what is timed is evaluation and not translation. `--most` says how much of the
default recipe's other measurements comes on top of the comparison with the truth.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd

from ctmr.data.manifest import Split
from ctmr.data.shards import Shard, ShardVolume, write_shard
from ctmr.imaging.grid import volume_grid
from ctmr.imaging.hounsfield import OUTSIDE_VALUE
from ctmr.imaging.volume import Direction, Modality, Unit
from ctmr.phantom import make_head
from ctmr.phantom.cohort import affine_of
from ctmr.recipe.loading import load
from ctmr.recipe.recipe import Recipe
from ctmr.system.home import Home

COUNTS = (5, 10, 20, 40)
SHAPE = (200, 256, 256)
SPACING_MM = 1.0
TRAINING_SLICES = 24
SETTINGS = (
    "name=benchmark",
    "preprocess.slice_spacing_mm=null",
    "network.generator={kind: resnet, width: 4, blocks: 1}",
)
ONLY_THE_COMPARISON = (
    "evaluate.other_direction=0",
    "evaluate.lesions.cases=0",
    "evaluate.robustness.cases=0",
    "evaluate.uncertainty.cases=0",
)


def head(shape: tuple[int, int, int]) -> dict[Modality, np.ndarray]:
    """Return a phantom head of any shape, both modalities, drawn at 8 mm and enlarged."""
    drawn = make_head(3, shape=(24, 28, 24), spacing_mm=8.0)
    index = np.ix_(*(np.arange(n) * small // n for n, small in zip(shape, drawn.ct.shape, strict=True)))
    noise = np.random.default_rng(0).integers(-20, 21, shape)
    return {
        Modality.CT: (drawn.ct[index] + noise).clip(-1024, 3071).astype(np.int16),
        Modality.MR: (drawn.t1[index].astype(np.int32) + np.abs(noise)).astype(np.uint16),
    }


def world(root: Path, count: int, shape: tuple[int, int, int], recipe: Recipe) -> dict[str, Path]:
    """Write the inputs of evaluate for `count` held-out heads and return them."""
    from ctmr.networks import model_folder
    from ctmr.networks.generators import build_generator
    from ctmr.training.setup import describe

    images, affine, rows = head(shape), affine_of(shape, SPACING_MM), []
    preprocessed, raw = root / "preprocess", root / "raw"
    names = {Modality.CT: "CT", Modality.MR: "MR"}
    units = {Modality.CT: Unit.HU, Modality.MR: Unit.ARBITRARY}
    for modality, array in images.items():
        first = raw / names[modality] / "head-000.nii"
        first.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), first)
        paths = []
        for k in range(count):
            path = first.with_name(f"head-{k:03d}.nii")
            if k:
                os.link(first, path)
            paths.append(str(path.relative_to(raw)))
            rows.append(
                {
                    "image": paths[-1],
                    "subject": f"head-{k:03d}",
                    "modality": modality.value,
                    "path": paths[-1],
                    "sequence": "T1" if modality is Modality.MR else "",
                    "format": "nifti",
                    "split": "test",
                    "mask": "",
                }
            )
        depth = shape[0]
        placed = tuple(tuple(float(x) for x in row) for row in affine)
        volumes = tuple(
            ShardVolume(
                p,
                f"head-{k:03d}",
                "",
                k * depth,
                depth,
                (p,),
                ("T1" if modality is Modality.MR else "",),
                placed,
                -(depth - 1) / 2,
            )
            for k, p in enumerate(paths)
        )
        mask = array > OUTSIDE_VALUE[units[modality]] + 300
        _write_test(preprocessed / "shards", modality, units[modality], array, mask, volumes)
        middle = slice((depth - TRAINING_SLICES) // 2, (depth + TRAINING_SLICES) // 2)
        some = tuple(
            ShardVolume(
                f"train-{k}",
                f"train-{modality}-{k}",
                "",
                k * TRAINING_SLICES,
                TRAINING_SLICES,
                (f"{k}",),
                ("",),
                placed,
                -(TRAINING_SLICES - 1) / 2,
            )
            for k in range(2)
        )
        slices = np.concatenate([array[middle, None]] * 2)
        write_shard(
            preprocessed / "shards",
            Split.TRAIN,
            Shard(slices, np.concatenate([mask[middle]] * 2), some, units[modality], modality),
        )
    grid = volume_grid(recipe.preprocess.plane, (shape[1], shape[2]), (SPACING_MM, SPACING_MM))
    (preprocessed / "grid.json").write_text(grid.model_dump_json())
    pd.DataFrame(rows).to_parquet(root / "manifest.parquet")
    description = describe(preprocessed, recipe)
    generators = {d: build_generator(description.generator, 1, 1) for d in Direction}
    model_folder.save(root / "train", description, generators)
    return {"model": root / "train", "preprocessed": preprocessed, "raw": raw, "manifest": root / "manifest.parquet"}


def _write_test(
    shards: Path, modality: Modality, unit: Unit, array: np.ndarray, mask: np.ndarray, volumes: Sequence[ShardVolume]
) -> None:
    """Write a test shard volume by volume, since the whole of it would not fit into a small memory."""
    one = Shard(array[:, None], mask, tuple(volumes[:1]), unit, modality)
    write_shard(shards, Split.TEST, one)
    folder = shards / Split.TEST.value
    for name in (f"{modality}.npy", f"{modality}.head.npy"):
        single = np.load(folder / name)
        whole = np.lib.format.open_memmap(
            folder / f"_{name}", mode="w+", dtype=single.dtype, shape=(len(single) * len(volumes), *single.shape[1:])
        )
        for k in range(len(volumes)):
            whole[k * len(single) : (k + 1) * len(single)] = single
        whole.flush()
        (folder / f"_{name}").replace(folder / name)
    meta = json.loads((folder / f"{modality}.json").read_text())
    meta["volumes"] = [
        meta["volumes"][0] | {"image": v.image, "subject": v.subject, "first": v.first, "paths": v.paths}
        for v in volumes
    ]
    (folder / f"{modality}.json").write_text(json.dumps(meta))


def child(root: Path, settings: list[str]) -> None:
    """Evaluate the world that lies at `root` and print seconds and peak memory as JSON."""
    from ctmr.pipeline.stage import run_stage
    from ctmr.pipeline.stages.evaluate import STAGE

    inputs = {
        "model": root / "train",
        "preprocessed": root / "preprocess",
        "raw": root / "raw",
        "manifest": root / "manifest.parquet",
    }
    began, busy = time.monotonic(), time.process_time()
    run_stage(STAGE, inputs=inputs, recipe=load("default", settings), out=root / "evaluate", home=Home(root / "home"))
    print(
        json.dumps(
            {
                "seconds": round(time.monotonic() - began, 1),
                "cpu_seconds": round(time.process_time() - busy, 1),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
    )


def measure(
    count: int, shape: tuple[int, int, int], settings: list[str], threads: int, scratch: Path
) -> dict[str, Any]:
    """Measure one number of volumes in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="ctmr-evaluate-", dir=scratch) as folder:
        root = Path(folder)
        maker = [sys.executable, __file__, "--world", str(root), "--counts", str(count), "--shape", *map(str, shape)]
        subprocess.run(maker, check=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "CTMR_HOME": str(root / "home")}
        command = [sys.executable, __file__, "--child", str(root), *(f"--set={s}" for s in settings)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {"volumes": count} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--shape", type=int, nargs=3, default=list(SHAPE), metavar=("D", "H", "W"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--most", action="store_true", help="also both directions, lesions, robustness, uncertainty")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the data, 100 MB a volume")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--world", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = tuple(given.shape)
    if given.child:
        child(given.child, given.set)
        return
    if given.world:
        world(given.world, given.counts[0], shape, load("default", list(SETTINGS)))
        return
    settings = [*SETTINGS, *(() if given.most else ONLY_THE_COMPARISON)]
    rows = []
    for count in given.counts:
        rows.append(measure(count, shape, settings, given.threads, given.scratch))
        if not given.json:
            row = rows[-1]
            print(
                f"{row['volumes']:>4} volumes of {'x'.join(map(str, shape))}: {row['seconds']:8.1f} s "
                f"({row['cpu_seconds']:.1f} s CPU), peak {row['peak_mib']} MiB",
                flush=True,
            )
    growth = rows[-1]["peak_mib"] / rows[0]["peak_mib"]
    if given.json:
        print(
            json.dumps(
                {
                    "shape": shape,
                    "threads": given.threads,
                    "most": given.most,
                    "rows": rows,
                    "memory_growth": round(growth, 3),
                }
            )
        )
    else:
        print(f"peak memory of {rows[-1]['volumes']} volumes over that of {rows[0]['volumes']}: {growth:.2f}")


if __name__ == "__main__":
    main()
