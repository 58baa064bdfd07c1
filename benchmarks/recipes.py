"""What the settings of a recipe buy, on phantom heads at a small budget: `python benchmarks/recipes.py --home DIR`.

Every variant is the demo's recipe at 3 mm with one thing changed, trained by the stages of the pipeline and measured by
evaluate on the same held-out heads. Variants of all seeds so far are averaged by patient and tested against the base in
pairs of patients. Runs that are there already are reused, so the table can be made in pieces. The papers' recipes run
as well: on phantoms, or on a folder of pictures given with `--pictures`. Numbers of phantoms say nothing of patients.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ctmr.data.manifest import PHANTOM_PREFIX, Split
from ctmr.datasets.dvc import resolve
from ctmr.imaging.volume import Modality
from ctmr.metrics.significance import wilcoxon_p
from ctmr.phantom import make_head
from ctmr.phantom.cohort import CohortPlan, write_cohort
from ctmr.pipeline import stages
from ctmr.pipeline.stage import run_stage
from ctmr.recipe.loading import load
from ctmr.recipe.recipe import Recipe
from ctmr.system.digest import tree_digest
from ctmr.system.home import Home, quiet_libraries
from ctmr.system.processes import share_cores

TRAINED, VALIDATED, TESTED = 24, 2, 6
"""Phantom heads. Half of the first are CT and half MR, or the first half is both."""
FIRST_SEED = 5000
"""Of the heads; no setting of the demo's recipe was chosen on them."""
STEPS = 1000

UNPAIRED, PAIRED, PICTURES, PHANTOM_PICTURES = "unpaired", "paired", "pictures", "phantom-pictures"
PICTURE_LEVELS = slice(24, 84, 6)
"""Of the axial slices, 2 mm apart, those that become phantom pictures: ten a head, 12 mm apart."""
BRAIN_HU = (0.0, 80.0)
"""Window of CT pictures."""

SMALL = (
    "tune.trials=1",
    "tune.steps=1",
    "tune.reports=1",
    "tune.workers=1",
    "train.threads=1",
    "evaluate.threads=1",
    "evaluate.lesions.cases=0",
    "evaluate.robustness.cases=0",
    "evaluate.uncertainty.cases=0",
)
BASE = (
    "data.sequences=[T1]",
    "preprocess.spacing_mm=[3.0, 3.0]",
    "preprocess.slice_spacing_mm=3.0",
    "preprocess.size=[80, 64]",
    "train.shift=2",
    "evaluate.other_direction=0",
)
"""The demo's recipe at 3 mm."""


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes
    ----------
    settings
        What differs from the base, as `--set` takes it.
    data
        Which of the datasets it is trained on.
    recipe
        ``demo``, to which `BASE` is added, or a paper's.
    steps
        ``None``: as many as the base.
    """

    settings: tuple[str, ...] = ()
    data: str = UNPAIRED
    recipe: str = "demo"
    steps: int | None = None


PIECEWISE = "{low: -1024, high: 2000, knots: [[-1024, -1], [-150, -0.45], [150, 0.25], [2000, 1]]}"
NO_CYCLE = ("loss.cycle=0", "loss.warmup.weight=0")

VARIANTS: Mapping[str, Variant] = {
    "base": Variant(),
    "without position": Variant(("network.discriminator.position=false",)),
    "without warm-up": Variant(("loss.warmup.weight=0",)),
    "without both": Variant(("network.discriminator.position=false", "loss.warmup.weight=0")),
    "piecewise CT window": Variant((f"normalise.hu={PIECEWISE}",)),
    "T1 and T2": Variant(("data.sequences=[T1, T2]",)),
    "piecewise window and resize": Variant((f"normalise.hu={PIECEWISE}", "network.generator.upsampling=resize")),
    "resize convolution": Variant(("network.generator.upsampling=resize",)),
    "U-Net": Variant(("network.generator={kind: unet, width: 16, blocks: 4}",)),
    "U-Net on ResNet-18": Variant(("network.generator={kind: unet_resnet18, width: 16, blocks: 3}",)),
    "encoder-decoder": Variant(("network.generator={kind: encoder_decoder, width: 16, blocks: 4}",)),
    "BCE": Variant(("loss.adversarial=bce",)),
    "Wasserstein": Variant(("loss.adversarial=wasserstein",)),
    "identity loss": Variant(("loss.identity=0.5",)),
    "N4 in training": Variant(("preprocess.steps=[{kind: bias_field, modality: MR}]",)),
    "shared patients": Variant(("data.disjoint_training=false",), PAIRED),
    "pix2pix on pairs": Variant((*NO_CYCLE, "data.disjoint_training=false", "loss.supervised.weight=100"), PAIRED),
    "CNN on pairs": Variant(
        (*NO_CYCLE, "data.disjoint_training=false", "loss.supervised.weight=1", "loss.adversarial_weight=0"), PAIRED
    ),
    "CNN on random pairs": Variant(
        (
            *NO_CYCLE,
            "loss.supervised={weight: 1, pairs: random}",
            "loss.adversarial_weight=0",
        ),
        UNPAIRED,
    ),
}

WOLTERINK = (
    "data.sequences=[T1]",
    "preprocess.spacing_mm=[2.0, 2.0]",
    "preprocess.slice_spacing_mm=2.0",
    "preprocess.size=[96, 112]",
    "network.generator.width=16",
    "network.discriminator.width=16",
    "train.shift=6",
)
PICTURE_SIZE = ("preprocess.picture_size=[96, 96]", "network.generator.width=16", "network.discriminator.width=16")
ALIKE = ("validation.near_duplicate_bits=0",)
"""Slices of different phantom heads at one level look alike, and are not one image twice."""
PAPERS: Mapping[str, Variant] = {
    "wolterink2017": Variant(WOLTERINK, PAIRED, "wolterink2017", 1500),
    "wolterink2017, disjoint patients": Variant(
        (*WOLTERINK, "data.disjoint_training=true"), UNPAIRED, "wolterink2017", 1500
    ),
    "wolterink2017, pix2pix baseline": Variant(
        (*WOLTERINK, "loss.cycle=0", "loss.supervised.weight=100"), PAIRED, "wolterink2017", 1500
    ),
    "duval": Variant(
        (
            "data.sequences=[T2]",
            "preprocess.spacing_mm=[3.0, 3.0]",
            "preprocess.slice_spacing_mm=3.0",
            "preprocess.size=[96, 96]",
            "train.shift=5",
        ),
        UNPAIRED,
        "duval",
        600,
    ),
    "nehra": Variant(
        (
            "data.sequences=[T1]",
            "preprocess.slice_spacing_mm=4.0",
            "network.generator.width=32",
            "network.discriminator.width=32",
            "train.batch=16",
        ),
        UNPAIRED,
        "nehra",
        600,
    ),
    "nehra, BCE": Variant(
        (
            "data.sequences=[T1]",
            "preprocess.slice_spacing_mm=4.0",
            "network.generator.width=32",
            "network.discriminator.width=32",
            "train.batch=16",
            "loss.adversarial=bce",
        ),
        UNPAIRED,
        "nehra",
        600,
    ),
    "nehra, Wasserstein": Variant(
        (
            "data.sequences=[T1]",
            "preprocess.slice_spacing_mm=4.0",
            "network.generator.width=32",
            "network.discriminator.width=32",
            "train.batch=16",
            "loss.adversarial=wasserstein",
            "network.discriminator.norm=instance",
        ),
        UNPAIRED,
        "nehra",
        600,
    ),
    "nehra, N4": Variant(
        (
            "data.sequences=[T1]",
            "preprocess.slice_spacing_mm=4.0",
            "network.generator.width=32",
            "network.discriminator.width=32",
            "train.batch=16",
            "preprocess.steps=[{kind: bias_field, modality: MR}]",
        ),
        UNPAIRED,
        "nehra",
        600,
    ),
    "jha_iima": Variant((*PICTURE_SIZE, "data.max_images=300", "train.shift=5"), PICTURES, "jha_iima", 1500),
    "jha_iima, U-Net": Variant(
        (
            *PICTURE_SIZE,
            "data.max_images=300",
            "train.shift=5",
            "network.generator={kind: unet, width: 16, blocks: 5, rgb: true}",
        ),
        PICTURES,
        "jha_iima",
        1500,
    ),
    "jha_iima, CNN on random pairs": Variant(
        (
            *PICTURE_SIZE,
            "data.max_images=300",
            "train.shift=5",
            "loss.cycle=0",
            "loss.adversarial_weight=0",
            "loss.supervised={weight: 1, pairs: random}",
            "loss.log_as={}",
        ),
        PICTURES,
        "jha_iima",
        1500,
    ),
    "shangari": Variant((*PICTURE_SIZE, "data.max_images=300"), PICTURES, "shangari", 1500),
    "jha_iima, phantom pictures": Variant((*PICTURE_SIZE, *ALIKE, "train.shift=5"), PHANTOM_PICTURES, "jha_iima", 1500),
    "jha_iima, U-Net, phantom pictures": Variant(
        (
            *PICTURE_SIZE,
            *ALIKE,
            "train.shift=5",
            "network.generator={kind: unet, width: 16, blocks: 5, rgb: true}",
        ),
        PHANTOM_PICTURES,
        "jha_iima",
        1500,
    ),
    "jha_iima, CNN on random pairs, phantom pictures": Variant(
        (
            *PICTURE_SIZE,
            *ALIKE,
            "train.shift=5",
            "loss.cycle=0",
            "loss.adversarial_weight=0",
            "loss.supervised={weight: 1, pairs: random}",
            "loss.log_as={}",
        ),
        PHANTOM_PICTURES,
        "jha_iima",
        1500,
    ),
    "shangari, phantom pictures": Variant((*PICTURE_SIZE, *ALIKE), PHANTOM_PICTURES, "shangari", 1500),
}


def recipe_of(variant: Variant, seed: int, steps: int) -> Recipe:
    """Return the recipe of a variant, resolved."""
    ours = BASE if variant.recipe == "demo" else ()
    # Sample grids and checkpoints at the end are enough.
    steps = variant.steps or steps
    common = (f"train.steps={steps}", f"train.sample_every={steps}", f"train.checkpoint_every={steps}")
    return load(variant.recipe, [*SMALL, *ours, *common, f"train.seed={seed}", *variant.settings])


def make_datasets(folder: Path) -> None:
    """Write the phantom heads once, as two datasets with the same validation and test."""
    if (folder / PAIRED).is_dir():
        return
    heads = folder / "heads"
    count = TRAINED + VALIDATED + TESTED
    plan = CohortPlan(train_mr=0, train_ct=0, val=count, test=0, sequences=("T1", "T2"), seed=FIRST_SEED)
    write_cohort(heads, plan)
    half = TRAINED // 2
    for name in (UNPAIRED, PAIRED):
        partial = folder / f"{name}.partial"
        for modality in Modality:
            for archive in sorted((heads / Split.VAL.value / modality.value).iterdir()):
                k = int(archive.stem.partition("-")[2].partition("_")[0]) - FIRST_SEED
                split = Split.TRAIN if k < TRAINED else Split.VAL if k < TRAINED + VALIDATED else Split.TEST
                mine = k < half if name == PAIRED or modality is Modality.MR else k >= half
                if split is Split.TRAIN and not mine:
                    continue
                target = partial / split.value / modality.value / archive.name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(archive, target)
        partial.rename(folder / name)


def make_pictures(folder: Path) -> None:
    """Write the phantom heads once as 8-bit pictures, each a subject of its own; only validation and test are pairs."""
    if folder.is_dir():
        return
    partial = folder.with_suffix(".partial")
    for k in range(TRAINED + VALIDATED + TESTED):
        head = make_head(FIRST_SEED + k, shape=CohortPlan.shape, spacing_mm=CohortPlan.spacing_mm)
        split = Split.TRAIN if k < TRAINED else Split.VAL if k < TRAINED + VALIDATED else Split.TEST
        windows = {Modality.MR: (head.t1, (0.0, float(np.percentile(head.t1, 99.5)))), Modality.CT: (head.ct, BRAIN_HU)}
        for modality, (array, (low, high)) in windows.items():
            if split is Split.TRAIN and (k < TRAINED // 2) != (modality is Modality.MR):
                continue
            grey = np.rint(np.clip((array.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
            for level in range(*PICTURE_LEVELS.indices(len(grey))):
                subject = f"sub-{PHANTOM_PREFIX}{FIRST_SEED + k}-{level}"
                target = partial / split.value / modality.value / subject / "slice.png"
                target.parent.mkdir(parents=True)
                Image.fromarray(grey[level]).save(target)
    partial.rename(folder)


def train_and_evaluate(variant: Variant, recipe: Recipe, address: Path, home: Home, out: Path) -> Path:
    """Run the stages up to evaluate and return the run's folder; variants share what they have in common."""
    source = resolve(str(address))
    tree = recipe.dump()
    common = tree_digest({name: tree[name] for name in ("fetch", "data", "validation", "preprocess", "evaluate")})
    shared = home.root / "shared" / f"{variant.data}-{common[:12]}"
    outputs: dict[str, Path] = {}
    options = {"fetch": {"dataset": source.to_option()}, "evaluate": {"champion": ""}}
    for name in ("fetch", "validate", "preprocess", "tune", "train", "evaluate"):
        spec = stages.load(name)
        outputs[name] = (shared if name in ("fetch", "validate", "preprocess") else out) / name
        run_stage(
            spec,
            inputs=spec.inputs(outputs),
            recipe=recipe,
            out=outputs[name],
            home=home,
            options=options.get(name, {}),
        )
    return out


def per_patient(run: Path) -> dict[str, dict[str, float]]:
    """Return ``protocol metric`` → subject → value of the gated direction of a run."""
    found: dict[str, dict[str, list[float]]] = {}
    with (run / "evaluate" / "cases.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["value"]:
                key = f"{row['protocol']} {row['metric']}"
                found.setdefault(key, {}).setdefault(row["subject"] or row["case"], []).append(float(row["value"]))
    return {k: {s: statistics.fmean(v) for s, v in subjects.items()} for k, subjects in found.items()}


@dataclass(frozen=True)
class Row:
    """A variant over its seeds."""

    name: str
    seeds: int
    means: Mapping[str, tuple[float, float]]
    """Mean over patients, then mean and spread (half the range) over seeds."""
    p: Mapping[str, float]
    """Wilcoxon's signed-rank test over patients, each the mean of the seeds that both have, against the base."""
    failed: str


def rows_of(home: Home, names: Sequence[str], seeds: Sequence[int]) -> Iterator[Row]:
    """Yield the rows of what has been run."""
    runs = {n: {s: per_patient(f) for s in seeds if _done(f := _folder(home, n, s))} for n in names}
    base = runs.get("base", {})
    for name in names:
        mine = runs[name]
        if not mine:
            continue
        keys = sorted(set.intersection(*(set(v) for v in mine.values())))
        means, p = {}, {}
        for key in keys:
            by_seed = [statistics.fmean(mine[s][key].values()) for s in mine]
            means[key] = (statistics.fmean(by_seed), (max(by_seed) - min(by_seed)) / 2)
            both = [s for s in mine if s in base and key in base[s] and base[s][key].keys() == mine[s][key].keys()]
            if name != "base" and both:
                differences = [
                    statistics.fmean(mine[s][key][subject] - base[s][key][subject] for s in both)
                    for subject in sorted(mine[both[0]][key])
                ]
                p[key] = wilcoxon_p(np.array(differences))
        verdicts = [json.loads((_folder(home, name, s) / "evaluate" / "verdict.json").read_text()) for s in mine]
        failed = sum(not v["passed"] for v in verdicts)
        yield Row(name, len(mine), means, p, f"{failed} of {len(mine)}" if failed else "")


def _folder(home: Home, name: str, seed: int) -> Path:
    return home.runs / f"{''.join(c if c.isalnum() else '_' for c in name)}-{seed}"


def _done(folder: Path) -> bool:
    return (folder / "evaluate" / "cases.csv").is_file()


def table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Return a Markdown table."""
    lines = ["| variant | seeds | " + " | ".join(keys) + " | failed its gate |", "|---" * (len(keys) + 3) + "|"]
    for row in rows:
        cells = []
        for key in keys:
            if key not in row.means:
                cells.append("–")
                continue
            mean, spread = row.means[key]
            digits = 1 if abs(mean) >= 10 else 3
            text = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if row.seeds > 1 else "")
            cells.append(text + (f" (p {row.p[key]:.2f})" if key in row.p else ""))
        lines.append(f"| {row.name} | {row.seeds} | " + " | ".join(cells) + f" | {row.failed} |")
    return "\n".join(lines)


def main() -> None:
    everything = {**VARIANTS, **PAPERS}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--home", type=Path, required=True, help="folder for data and runs; what is there is reused")
    parser.add_argument("--only", nargs="+", choices=sorted(everything), metavar="VARIANT")
    parser.add_argument("--papers", action="store_true", help="the papers' recipes at small budgets instead")
    parser.add_argument("--pictures", type=Path, help="folder of pictures (train and test, CT and MRI)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--table", action="store_true", help="print what there is, train nothing")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    share_cores()
    quiet_libraries()
    home = Home(given.home.resolve())
    names = given.only or list(PAPERS if given.papers else VARIANTS)
    if not given.table:
        make_datasets(home.root / "datasets")
        if any(everything[name].data == PHANTOM_PICTURES for name in names):
            make_pictures(home.root / "datasets" / PHANTOM_PICTURES)
        # Seed by seed, so that what is there when it is stopped can be compared.
        for seed in given.seeds:
            for name in names:
                variant = everything[name]
                if variant.data == PICTURES and given.pictures is None:
                    print(f"{name} needs --pictures", file=sys.stderr)
                    continue
                address = given.pictures if variant.data == PICTURES else home.root / "datasets" / variant.data
                began = time.monotonic()
                out = _folder(home, name, seed)
                train_and_evaluate(variant, recipe_of(variant, seed, given.steps), address, home, out)
                print(f"{name}, seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    rows = list(rows_of(home, names, given.seeds))
    if given.json:
        print(json.dumps([row.__dict__ for row in rows]))
        return
    keys = sorted({k for row in rows for k in row.means})
    print(table(rows, keys))


if __name__ == "__main__":
    main()
