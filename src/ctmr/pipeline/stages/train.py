"""train: the CycleGAN with the best settings found, exported to ONNX; every run is one model in MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ctmr.imaging.volume import Direction
from ctmr.networks import model_folder
from ctmr.pipeline import torchrun
from ctmr.pipeline.stage import Context, Stage, read_record
from ctmr.recipe.loading import override
from ctmr.recipe.recipe import Recipe, section_tree
from ctmr.system.digest import content_digest
from ctmr.system.files import write_file
from ctmr.training.run_log import TOTALS, RunLog, history, write_tables

if TYPE_CHECKING:
    from ctmr.data.sampling import TrainingData
    from ctmr.tracking.mlflow import Tracking
    from ctmr.training.hardware.distributed import Team
    from ctmr.training.samples import Samples
    from ctmr.training.trainer import Trainer

RUN_RECORD = "provenance/run.json"
"""Names the MLflow run of a trained model."""


def run(context: Context) -> dict[str, Any]:
    """Write the model folder, curves and measures, sample grids (provenance) and, per direction, the ONNX graphs."""
    processes = torchrun.wanted()
    if processes > 1:
        return torchrun.run(context, processes)

    from ctmr.reports.charts import loss_chart
    from ctmr.tracking.attended import attended
    from ctmr.tracking.mlflow import Tracking
    from ctmr.training.hardware.distributed import team
    from ctmr.training.setup import describe

    recipe, best = _tuned(context)
    description = describe(context.inputs["preprocessed"], recipe)
    provenance = context.out / "provenance"
    provenance.mkdir()
    with ExitStack() as attending:
        with team() as found:
            data, samples = _data(context, recipe, description)
            trainer = _trainer(context, recipe, data, samples, found)
            tracking = Tracking(context.home)
            run_id = open_run(context, tracking, recipe)
            attending.enter_context(attended(tracking, run_id))
            if trainer.resume():
                context.report(f"resumed at step {trainer.step}", trainer.step / recipe.train.steps)
            with RunLog(tracking, run_id, trainer.reports, trainer.readings) as log:
                _train(context, recipe, trainer, samples, log)
        model_folder.save(context.out, description, {d: trainer.generator(d) for d in Direction})
        differences = export(context, description, {recipe.direction: trainer.generator(recipe.direction)})
        write_tables(context.out, trainer.reports, trainer.readings)
        shutil.copytree(_sheets(context), provenance / "samples", ignore=shutil.ignore_patterns(".*"))
        losses = loss_chart(history(trainer.reports), [r.step for r in trainer.reports])
        (provenance / "losses.png").write_bytes(losses.png)
        (provenance / "run.json").write_text(json.dumps({"run_id": run_id}) + "\n")
        for path, folder in (
            (provenance / "samples", "samples"),
            (provenance / "losses.png", "figures"),
            (context.out / "curves.csv", ""),
            (context.out / "measures.csv", ""),
            (context.out / "alarms.csv", ""),
        ):
            tracking.artifact(run_id, path, folder)
        tracking.metrics(run_id, {f"export.{k}_onnx_difference": v for k, v in differences.items()})
        # So that the run is found again where only the content was restored, without provenance.
        tracking.tag(run_id, {"model_digest": content_digest(context.out)})
    return {
        "steps": recipe.train.steps,
        "directions": [recipe.direction.value],
        "settings": best,
        "onnx_difference": differences,
        "alarms": sorted({name for _, name in trainer.sounded}),
        "mlflow_run": run_id,
        "computed": trainer.cyclegan.plan.record(),
    }


def assist(context: Context) -> None:
    """Train as one of the processes that do not lead; nothing is written."""
    from ctmr.training.hardware.distributed import team
    from ctmr.training.setup import describe

    recipe, _ = _tuned(context)
    description = describe(context.inputs["preprocessed"], recipe)
    with team() as processes:
        trainer = _trainer(context, recipe, *_data(context, recipe, description), processes)
        trainer.resume()
        for _ in trainer.run():
            pass


def _tuned(context: Context) -> tuple[Recipe, dict[str, Any]]:
    best = yaml.safe_load(context.inputs["best"].read_text()) or {}
    return override(context.recipe, list(best.items()), source="best.yaml"), best


def _data(context: Context, recipe: Recipe, description: model_folder.Description) -> tuple[TrainingData, Samples]:
    """Return what is trained on, and the slices of the sample sheets."""
    from ctmr.training.samples import Samples
    from ctmr.training.setup import training_data

    shards = context.inputs["preprocessed"] / "shards"
    data = training_data(shards, recipe)
    return data, Samples.choose(shards, recipe, description, device=data.mr.images.device)


def _trainer(context: Context, recipe: Recipe, data: TrainingData, samples: Samples, processes: Team) -> Trainer:
    from ctmr.training.trainer import Trainer

    return Trainer(
        recipe.network,
        recipe.loss,
        recipe.train,
        data,
        checkpoints=context.work / "checkpoints",
        # No shorter than the rarest update, so that every report holds every loss.
        report_every=max(
            recipe.train.generator_every, recipe.train.discriminator_every, min(50, recipe.train.steps // 20)
        ),
        examples=samples.examples.batch,
        team=processes,
        speeds=context.home.speeds,
    )


def _sheets(context: Context) -> Path:
    """Return the folder of sample grids, which survives a kill as checkpoints do."""
    folder = context.work / "samples"
    folder.mkdir(exist_ok=True)
    return folder


def _train(context: Context, recipe: Recipe, trainer: Trainer, samples: Samples, log: RunLog) -> None:
    from ctmr.training import events

    folder = _sheets(context)
    for event in trainer.run():
        if isinstance(event, events.StepEvent):
            log.report(event)
            totals = ", ".join(f"{k} {event.losses[k]:.2f}" for k in TOTALS if k in event.losses)
            context.report(f"step {event.step} of {recipe.train.steps}: {totals}", event.step / recipe.train.steps)
        elif isinstance(event, events.SampleEvent):
            write_file(folder / f"step_{event.step:07d}.png", samples.draw(event), replace=True)
        elif isinstance(event, events.ReadingEvent):
            log.readings(event.step, event.readings)
        elif isinstance(event, events.AlarmEvent):
            log.alarm(event)
            context.report(event.message)
        elif isinstance(event, events.NoticeEvent):
            context.report(event.message)


def open_run(context: Context, tracking: Tracking, recipe: Recipe) -> str:
    """Open the model's run, or go on with that of a killed training."""
    from ctmr.system.home import Code

    record = context.work / "mlflow.json"
    if record.is_file():
        known = str(json.loads(record.read_text())["run_id"])
        if tracking.exists(known):
            return known
    run_id = tracking.start(
        f"{recipe.name}", tags={"stage": "train", "recipe": recipe.name, "code_revision": Code().revision}
    )
    tracking.params(run_id, _settings(context, recipe))
    write_file(record, json.dumps({"run_id": run_id}).encode(), replace=True)
    return run_id


def _settings(context: Context, recipe: Recipe) -> dict[str, Any]:
    """Return the recipe sections that made the model: this stage's, and those that preprocess recorded."""
    earlier = (read_record(context.inputs["preprocessed"]) or {}).get("settings", {})
    return {"name": recipe.name, **earlier, **section_tree(recipe, STAGE.sections)}


def export(context: Context, description: model_folder.Description, generators: dict[Any, Any]) -> dict[str, float]:
    """Write the ONNX graphs of each direction and return how far they are from PyTorch."""
    from ctmr.serving.export import ServedModality, ServedSpec, export_translator

    differences = {}
    for direction, generator in generators.items():
        context.report(f"exporting {direction} to ONNX", 1.0)
        source, target = description.sides[direction.source], description.sides[direction.target]
        translator = model_folder.make_translator(description, direction, generator)
        folder = context.out / "onnx" / direction.value
        files = export_translator(translator, source.channels, description.grid.size, folder)
        spec = ServedSpec(
            direction=direction,
            source=ServedModality(
                modality=direction.source, unit=source.unit, sequences=source.sequences if any(source.sequences) else ()
            ),
            target=ServedModality(modality=direction.target, unit=target.unit),
            grid=description.grid,
            channels=source.channels,
            neighbours=description.neighbours,
            generator_sha256=files.generator_sha256,
            range_sha256=files.range_sha256,
        )
        (folder / "spec.json").write_text(spec.to_json())
        differences[direction.value] = files.difference
    return differences


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return steps, the export's precision and alarms, in half a line."""
    s = summary
    alarms = f", alarms: {', '.join(s['alarms'])}" if s.get("alarms") else ""
    return f"{s['steps']} steps, ONNX within {max(s['onnx_difference'].values()):.2g} of PyTorch{alarms}"


STAGE = Stage(
    "train",
    help="CycleGAN training, export to ONNX.",
    takes={"preprocessed": "preprocess", "best": "tune/best.yaml"},
    sections=("direction", "preprocess", "normalise", "network", "loss", "train"),
    run=run,
    summary_line=summary_line,
    version=4,
    assist=assist,
)
