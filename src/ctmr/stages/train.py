"""train: the CycleGAN with the best settings found, exported to ONNX; every run is one model in MLflow."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import yaml

from ctmr.digest import content_digest
from ctmr.recipe import Recipe, Term, override
from ctmr.stages import model_folder
from ctmr.stages.contract import Context, Stage, read_record
from ctmr.volume import Direction

if TYPE_CHECKING:
    from ctmr.gan.events import SampleEvent
    from ctmr.tracking import Tracking

RUN_RECORD = "provenance/run.json"
"""Names the MLflow run of a trained model."""

_TOTALS = (Term.GENERATOR, Term.DISCRIMINATOR)
_NAMED = "paper."
"""Before the names that ``loss.log_as`` gives, so that they never meet a loss of that name."""


def run(context: Context) -> dict[str, Any]:
    """Write the model folder, curves and measures, sample grids (provenance) and, per direction, the ONNX graphs."""
    from ctmr.gan import events
    from ctmr.gan.trainer import Trainer
    from ctmr.reports.figures import loss_curves
    from ctmr.stages.training import describe, training_data
    from ctmr.tracking import Tracking

    best = yaml.safe_load(context.inputs["best"].read_text()) or {}
    recipe = override(context.recipe, list(best.items()), source="best.yaml")
    preprocessed = context.inputs["preprocessed"]
    description = describe(preprocessed, recipe)
    data = training_data(preprocessed / "shards", recipe)
    trainer = Trainer(
        recipe.network, recipe.loss, recipe.train, data, checkpoints=context.work / "checkpoints",
        # No shorter than the rarest update, so that every report holds every loss.
        report_every=max(
            recipe.train.generator_every, recipe.train.discriminator_every, min(50, recipe.train.steps // 20)
        ),
    )  # fmt: skip
    tracking = Tracking(context.home)
    provenance = context.out / "provenance"
    (provenance / "samples").mkdir(parents=True)
    run_id = _open_run(context, tracking, recipe)
    curves = _Curves(context)
    if trainer.resume():
        context.report(f"resumed at step {trainer.step}", trainer.step / recipe.train.steps)
    for event in trainer.run():
        if isinstance(event, events.StepEvent):
            measures = {**event.losses, **{f"accuracy_{k}": v for k, v in event.accuracy.items()}}
            curves.add(event.step, {**measures, **{f"{_NAMED}{k}": v for k, v in event.named.items()}})
            tracking.metrics(run_id, {f"train.{k}": v for k, v in measures.items()}, event.step)
            tracking.metrics(run_id, {f"{_NAMED}{k}": v for k, v in event.named.items()}, event.step)
            totals = ", ".join(f"{k} {event.losses[k]:.2f}" for k in _TOTALS if k in event.losses)
            context.report(
                f"step {event.step} of {recipe.train.steps}: {totals}", event.step / recipe.train.steps
            )
        elif isinstance(event, events.SampleEvent):
            path = provenance / "samples" / f"step_{event.step:07d}.png"
            path.write_bytes(_sample_grid(event))
        elif isinstance(event, events.NoticeEvent):
            context.report(event.message)
    model_folder.save(context.out, description, {d: trainer.generator(d) for d in Direction})
    differences = _export(context, description, {d: trainer.generator(d) for d in recipe.directions})
    curves.write()
    (provenance / "losses.png").write_bytes(loss_curves(curves.history(), curves.steps()))
    (provenance / "run.json").write_text(json.dumps({"run_id": run_id}) + "\n")
    for path, folder in (
        (provenance / "samples", "samples"),
        (provenance / "losses.png", "figures"),
        (context.out / "curves.csv", ""),
        (context.out / "measures.csv", ""),
    ):
        tracking.artifact(run_id, path, folder)
    tracking.metrics(run_id, {f"export.{k}_onnx_difference": v for k, v in differences.items()})
    # So that the run is found again where only the content was restored, without provenance.
    tracking.tag(run_id, {"model_digest": content_digest(context.out)})
    return {
        "steps": recipe.train.steps,
        "directions": [d.value for d in recipe.directions],
        "settings": best,
        "onnx_difference": differences,
        "mlflow_run": run_id,
    }


def _open_run(context: Context, tracking: Tracking, recipe: Recipe) -> str:
    """Open the model's run, or go on with that of a killed training."""
    from ctmr.home import Code

    record = context.work / "mlflow.json"
    if record.is_file():
        known = str(json.loads(record.read_text())["run_id"])
        if tracking.exists(known):
            return known
    run_id = tracking.start(
        f"{recipe.name}", tags={"stage": "train", "recipe": recipe.name, "code_revision": Code().revision}
    )
    tracking.params(run_id, _settings(context, recipe))
    record.write_text(json.dumps({"run_id": run_id}))
    return run_id


def _settings(context: Context, recipe: Recipe) -> dict[str, Any]:
    """Return the recipe sections that made the model: this stage's, and those that preprocess recorded."""
    own = recipe.dump()
    earlier = (read_record(context.inputs["preprocessed"]) or {}).get("settings", {})
    return {"name": recipe.name, **earlier, **{section: own[section] for section in STAGE.sections}}


class _Curves:
    """Losses by step; kept in the work directory so that a resumed training keeps its beginning."""

    def __init__(self, context: Context) -> None:
        self.path = context.work / "curves.json"
        self.out = context.out
        self.rows: dict[int, dict[str, float]] = {}
        if self.path.is_file():
            self.rows = {int(k): v for k, v in json.loads(self.path.read_text()).items()}

    def add(self, step: int, losses: Any) -> None:
        self.rows[step] = dict(losses)
        self.path.write_text(json.dumps(self.rows))

    def steps(self) -> list[int]:
        return sorted(self.rows)

    def history(self) -> dict[str, list[float]]:
        """Return the terms by name, without the totals."""
        names = sorted({n for row in self.rows.values() for n in row} & set(Term) - set(_TOTALS))
        return {n: [self.rows[s].get(n, 0.0) for s in self.steps()] for n in names}

    def write(self) -> None:
        """Write the losses, and beside them what is no loss of its own: accuracies and the papers' names."""
        names = {n for row in self.rows.values() for n in row}
        self._table("curves.csv", sorted(names & set(Term)))
        self._table("measures.csv", sorted(names - set(Term)))

    def _table(self, file: str, names: list[str]) -> None:
        with (self.out / file).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["step", *names])
            writer.writerows([s, *(f"{self.rows[s].get(n, float('nan')):.6g}" for n in names)] for s in self.steps())


def _sample_grid(event: SampleEvent) -> bytes:
    import numpy as np

    from ctmr.reports.figures import image_grid

    columns = {
        "MR": event.mr, "synthetic CT": event.fake_ct, "MR again": event.cycle_mr,
        "CT": event.ct, "synthetic MR": event.fake_mr, "CT again": event.cycle_ct,
    }  # fmt: skip
    images = np.stack([t[:, 0].numpy() for t in columns.values()], axis=1)
    return image_grid(images, columns=list(columns), title=f"step {event.step}")


def _export(context: Context, description: model_folder.Description, generators: dict[Any, Any]) -> dict[str, float]:
    from ctmr.serving.export import ServedSpec, export_translator
    from ctmr.serving.export import Side as ServedSide

    differences = {}
    for direction, generator in generators.items():
        context.report(f"exporting {direction} to ONNX", 1.0)
        source, target = description.sides[direction.source], description.sides[direction.target]
        translator = model_folder.make_translator(description, direction, generator)
        folder = context.out / "onnx" / direction.value
        files = export_translator(translator, source.channels, description.grid.size, folder)
        spec = ServedSpec(
            direction=direction,
            source=ServedSide(
                modality=direction.source, unit=source.unit, sequences=source.sequences if any(source.sequences) else ()
            ),
            target=ServedSide(modality=direction.target, unit=target.unit),
            grid=description.grid,
            channels=source.channels,
            generator_sha256=files.generator_sha256,
            range_sha256=files.range_sha256,
        )
        (folder / "spec.json").write_text(spec.to_json())
        differences[direction.value] = files.difference
    return differences


STAGE = Stage(
    "train",
    takes={"preprocessed": "preprocess", "best": "tune/best.yaml"},
    sections=("directions", "preprocess", "normalise", "network", "loss", "train"),
    run=run,
    version=2,
)
