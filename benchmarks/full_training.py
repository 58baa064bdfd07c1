"""Train a recipe in full on a GPU machine that has the core's packages alone, in pieces, and judge it at home.

    python benchmarks/full_training.py pack RECIPE DATASET --home DIR --out PACK.tar.xz     # at home
    python benchmarks/full_training.py train PACK.tar.xz --work DIR --out DIR --minutes 9    # there, until it says done
    python benchmarks/full_training.py adopt PACK.tar.xz DIR --home DIR                      # at home

`pack` fetches, validates and preprocesses, and packs what is trained on with the resolved recipe. `train` needs
PyTorch, numpy, scipy, pydantic and safetensors, and for KID the package of EfficientNet-Lite0; it goes on from its last
checkpoint until the minutes are over, measures both directions on the validation split as it goes, and at the end
leaves the weights in files small enough to carry, rounded to float16. `adopt` makes a model of them, exports it and
evaluates it. Where all packages are installed on the GPU machine, `ctmr run` does all of this at once.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import platform
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ctmr.imaging.volume import Direction
    from ctmr.pipeline.stage import Context
    from ctmr.recipe.recipe import Recipe
    from ctmr.training.trainer import Trainer
    from ctmr.tuning.objective import Scorer

PIECE_BYTES = 15 * 2**20
PIECE, VALIDATION, RECORD = "weights-{:02d}.part", "validation.csv", "training.json"
STAGES = ("fetch", "validate", "preprocess")


def pack(recipe: Recipe, dataset: str, root: Path, out: Path) -> Path:
    """Run the stages before training and pack what is trained on.

    Parameters
    ----------
    root
        A home; its run folder is named after the recipe, and `adopt` goes on in it.
    """
    from ctmr.datasets.dvc import resolve
    from ctmr.pipeline import stages
    from ctmr.pipeline.stage import run_stage
    from ctmr.system.home import Home, quiet_libraries

    quiet_libraries()
    home = Home(root.resolve())
    folder = home.runs / recipe.name
    outputs = {name: folder / name for name in STAGES}
    for name in STAGES:
        options = {"dataset": resolve(dataset).to_option()} if name == "fetch" else {}
        spec = stages.load(name)
        run_stage(spec, inputs=spec.inputs(outputs), recipe=recipe, out=outputs[name], home=home, options=options)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_file = out.with_name(out.name + ".partial")
    with tarfile.open(partial_file, "w:xz") as archive:
        text = json.dumps(recipe.dump(), indent=1).encode()
        entry = tarfile.TarInfo("recipe.json")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
        archive.add(folder / "preprocess" / "grid.json", "preprocess/grid.json")
        archive.add(folder / "preprocess" / "shards", "preprocess/shards")
    partial_file.replace(out)
    return out


def unpack(archive: Path, folder: Path) -> Recipe:
    """Unpack once and return the recipe."""
    from ctmr.recipe.recipe import Recipe

    if not folder.is_dir():
        partial_folder = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial_folder, ignore_errors=True)
        with tarfile.open(archive) as opened:
            opened.extractall(partial_folder, filter="data")
        partial_folder.rename(folder)
    return Recipe.model_validate(json.loads((folder / "recipe.json").read_text()))


def train(archive: Path, work: Path, out: Path, minutes: float, measurements: int) -> bool:
    """Train until done or the time is over, and write what can be carried home; True when done.

    Parameters
    ----------
    work
        Keeps the checkpoints and what was measured so far.
    out
        Gets tables, the newest sample sheet (where matplotlib is there) and, at the end, the weights.
    measurements
        About how often the validation split is measured over the whole training; always at checkpoints.
    """
    from ctmr.imaging.volume import Direction
    from ctmr.training.events import AlarmEvent, NoticeEvent, SampleEvent, StepEvent
    from ctmr.training.run_log import write_tables
    from ctmr.training.samples import Samples
    from ctmr.training.setup import describe, training_data
    from ctmr.training.trainer import Trainer
    from ctmr.tuning.objective import Scorer

    began = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    recipe = unpack(archive, work / "pack")
    preprocessed = work / "pack" / "preprocess"
    description = describe(preprocessed, recipe)
    steps, save = recipe.train.steps, recipe.train.checkpoint_every
    # A piece ends at a checkpoint, so nothing is trained twice.
    every = save * max(1, round(steps / measurements / save))
    data = training_data(preprocessed / "shards", recipe)
    samples = Samples.choose(preprocessed / "shards", recipe, description, device=data.mr.images.device)
    trainer = Trainer(
        recipe.network,
        recipe.loss,
        recipe.train,
        data,
        checkpoints=work / "checkpoints",
        report_every=max(1, min(50, recipe.train.steps // 20)),
        examples=samples.examples.batch,
    )
    resumed = trainer.resume()
    print(f"{recipe.name}: {f'goes on from step {trainer.step}' if resumed else 'begins'}", flush=True)
    # Both directions: the description may name one.
    both = description.model_copy(update={"directions": tuple(Direction)})
    scorers = {d: Scorer.make(preprocessed / "shards", recipe, both, d) for d in Direction}
    draws = importlib.util.find_spec("matplotlib") is not None
    with Times(work / "times.json") as times:
        while trainer.step < steps:
            for event in trainer.run(trainer.step + save - trainer.step % save):
                if isinstance(event, StepEvent):
                    times.step(event)
                elif isinstance(event, SampleEvent) and draws:
                    (out / "samples.png").write_bytes(samples.draw(event))
                elif isinstance(event, AlarmEvent | NoticeEvent):
                    print(event.message, flush=True)
            if trainer.step % every == 0 or trainer.step == steps:
                measured = measure(trainer, scorers)
                add_rows(work / VALIDATION, trainer.step, measured)
                words = "; ".join(f"{r['direction']} " + numbers(r) for r in measured)
                print(f"step {trainer.step} of {steps}: {words}", flush=True)
            if time.monotonic() - began > 60 * minutes:
                break
    write_tables(out, trainer.reports, trainer.readings)
    if (work / VALIDATION).is_file():
        shutil.copyfile(work / VALIDATION, out / VALIDATION)
    done = trainer.step == steps
    about = {
        "recipe": recipe.name,
        "step": trainer.step,
        "steps": steps,
        "done": done,
        "seconds_per_step": times.median(),
        "alarms": sorted({name for _, name in trainer.sounded}),
        "computed": trainer.cyclegan.plan.record(),
        "machine": machine(),
    }
    (out / RECORD).write_text(json.dumps(about, indent=1) + "\n")
    if done:
        write_pieces(out, {d: trainer.generator(d) for d in Direction})
    print(f"{recipe.name}: {'done' if done else 'not done'} at step {trainer.step} of {steps}", flush=True)
    return done


class Times:
    """Seconds a step of every report, kept over the pieces of a training."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: list[float] = json.loads(path.read_text()) if path.is_file() else []

    def __enter__(self) -> Times:
        return self

    def __exit__(self, *error: object) -> None:
        self._path.write_text(json.dumps(self._values))

    def step(self, event: Any) -> None:
        """Add a report's."""
        self._values.append(event.seconds_per_step)

    def median(self) -> float:
        """Return the median: the first reports hold what warms up."""
        return sorted(self._values)[len(self._values) // 2] if self._values else 0.0


def measure(trainer: Trainer, scorers: Mapping[Direction, Scorer]) -> list[dict[str, Any]]:
    """Return KID, NMI and cycle SSIM of both directions on the validation split, and the paired error where it is."""
    generators = {d: trainer.generator(d) for d in scorers}
    rows = []
    for direction, scorer in scorers.items():
        back = next(d for d in scorers if d is not direction)
        forward, backward = generators[direction], generators[back]
        row = {"direction": direction.value, **asdict(scorer.unpaired(forward, backward))}
        if scorer.protocol is not None:
            row[f"{scorer.protocol.name} mae"] = scorer(forward, backward)
        rows.append(row)
    return rows


def numbers(row: Mapping[str, Any]) -> str:
    """Return a measurement in words."""
    return ", ".join(f"{name} {value:.3f}" for name, value in row.items() if isinstance(value, float))


def add_rows(path: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append measurements, once a step: a killed training measures again."""
    columns = ["step", *dict.fromkeys(name for row in rows for name in row)]
    known = []
    if path.is_file():
        with path.open(newline="") as stream:
            known = [row for row in csv.DictReader(stream) if int(row["step"]) < step]
            columns += [name for row in known for name in row if name not in columns]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows([*known, *({"step": step, **row} for row in rows)])
    temporary.replace(path)


def machine() -> dict[str, Any]:
    """Return what the times depend on, without names of hosts or paths."""
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    return {
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%F"),
    }


def write_pieces(out: Path, generators: Mapping[Direction, torch.nn.Module]) -> None:
    """Write all weights in float16 as files of at most `PIECE_BYTES`; numbers that count stay as they are."""
    import torch
    from safetensors.torch import save

    tensors = {}
    for direction, generator in generators.items():
        for name, value in generator.state_dict().items():
            small = value.half() if value.is_floating_point() else value
            if not torch.isfinite(small).all():
                raise ValueError(f"{direction} {name} has values that float16 cannot hold")
            tensors[f"{direction.value}.{name}"] = small.cpu().contiguous()
    data = save(tensors)
    for k, first in enumerate(range(0, len(data), PIECE_BYTES)):
        (out / PIECE.format(k)).write_bytes(data[first : first + PIECE_BYTES])


def read_pieces(folder: Path) -> dict[str, torch.Tensor]:
    """Return all weights in float32."""
    from safetensors.torch import load

    def pieces() -> Iterator[bytes]:
        k = 0
        while (piece := folder / PIECE.format(k)).is_file():
            yield piece.read_bytes()
            k += 1

    data = b"".join(pieces())
    if not data:
        raise SystemExit(f"{folder} holds no {PIECE.format(0)}: the training is not done, or its weights were left")
    return {name: value.float() if value.is_floating_point() else value for name, value in load(data).items()}


def adopt(archive: Path, folder: Path, root: Path) -> Path:
    """Make a trained model of the pieces, as the stage train would have left it, evaluate it and return its folder."""
    from ctmr.pipeline import stages
    from ctmr.pipeline.stage import run_stage
    from ctmr.system.home import Home, quiet_libraries

    quiet_libraries()
    home = Home(root.resolve())
    with tarfile.open(archive) as opened:
        text = opened.extractfile("recipe.json")
        assert text is not None
        from ctmr.recipe.recipe import Recipe

        recipe = Recipe.model_validate(json.load(text))
    run = home.runs / recipe.name
    if not (run / "preprocess").is_dir():
        raise SystemExit(f"{run} holds no preprocessed data; run `pack` with this --home first")
    best = run / "tune" / "best.yaml"
    best.parent.mkdir(exist_ok=True)
    best.write_text("{}\n")
    outputs = {name: run / name for name in (*STAGES, "tune", "train", "evaluate")}
    # Other pieces for the same data and recipe are another model.
    shutil.rmtree(outputs["train"], ignore_errors=True)
    trained = replace(stages.load("train"), run=partial(_adopted, folder=folder))
    for spec, options in ((trained, {}), (stages.load("evaluate"), {"champion": ""})):
        run_stage(spec, inputs=spec.inputs(outputs), recipe=recipe, out=outputs[spec.name], home=home, options=options)
    return run


def _adopted(context: Context, folder: Path) -> dict[str, Any]:
    from ctmr.imaging.volume import Direction
    from ctmr.networks import model_folder
    from ctmr.networks.generators import build_generator
    from ctmr.networks.stacks import stack_size
    from ctmr.pipeline.stages import train
    from ctmr.tracking.mlflow import Tracking
    from ctmr.training.setup import describe

    recipe, tensors = context.recipe, read_pieces(folder)
    description = describe(context.inputs["preprocessed"], recipe)
    slices = stack_size(description.neighbours)
    generators = {}
    for direction in Direction:
        channels = [slices * description.sides[m].channels for m in (direction.source, direction.target)]
        generator = build_generator(description.generator, *channels)
        first = f"{direction.value}."
        generator.load_state_dict({k.removeprefix(first): v for k, v in tensors.items() if k.startswith(first)})
        generators[direction] = generator.eval().requires_grad_(False)
    model_folder.save(context.out, description, generators)
    differences = train.export(context, description, {recipe.direction: generators[recipe.direction]})
    provenance = context.out / "provenance"
    provenance.mkdir(exist_ok=True)
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".csv", ".json")):
        shutil.copyfile(path, (context.out if path.suffix == ".csv" else provenance) / path.name)
    run_id = train.open_run(context, Tracking(context.home), recipe)
    (provenance / "run.json").write_text(json.dumps({"run_id": run_id}) + "\n")
    return {"steps": recipe.train.steps, "onnx_difference": differences, "mlflow_run": run_id}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 4 when a training is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    one = steps.add_parser("pack")
    one.add_argument("recipe")
    one.add_argument("dataset")
    one.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    two = steps.add_parser("train")
    two.add_argument("--work", type=Path, required=True)
    two.add_argument("--minutes", type=float, default=9.0)
    two.add_argument("--measurements", type=int, default=50, help="of the validation split, over the whole training")
    three = steps.add_parser("adopt")
    three.add_argument("folder", type=Path)
    for parser_of_one in (one, two):
        parser_of_one.add_argument("--out", type=Path, required=True)
    for parser_of_one in (one, three):
        parser_of_one.add_argument("--home", type=Path, required=True)
    for parser_of_one in (two, three):
        parser_of_one.add_argument("pack", type=Path)
    given = parser.parse_args(arguments)
    if given.step == "pack":
        from ctmr.recipe.loading import load

        print(pack(load(given.recipe, given.set), given.dataset, given.home, given.out))
        return 0
    if given.step == "train":
        return 0 if train(given.pack, given.work, given.out, given.minutes, given.measurements) else 4
    print(adopt(given.pack, given.folder, given.home))
    return 0


if __name__ == "__main__":
    sys.exit(main())
