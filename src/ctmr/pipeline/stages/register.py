"""register: a model that passed the gate becomes an MLflow version whose tags lead back to its data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctmr.errors import GateFailed
from ctmr.networks.model_folder import Description
from ctmr.pipeline.stage import Context, Stage, read_record
from ctmr.pipeline.stages.evaluate import model_run
from ctmr.system.digest import content_digest

VERSION = "version.json"


def run(context: Context) -> dict[str, Any]:
    """Write ``version.json`` and ``release/<direction>/``, what Triton serves, with lineage in its spec.

    A model that is registered already (same content) keeps its version. The alias moves only when the verdict says
    that the model replaces the champion.

    Raises
    ------
    GateFailed
        The verdict is not a pass; nothing is registered.
    """
    from ctmr.serving.export import ServedSpec
    from ctmr.system.home import Code
    from ctmr.tracking.mlflow import Tracking

    decision = json.loads(context.inputs["decision"].read_text())
    if not decision["passed"]:
        raise GateFailed("the model did not pass the gate, so it cannot be registered; its verdict says why")
    model = context.inputs["model"]
    dataset = json.loads(context.inputs["dataset"].read_text())
    validation = json.loads(context.inputs["validation"].read_text())
    recipe, section = context.recipe, context.recipe.register_
    name = section.name or f"{recipe.name}-{dataset['name']}"
    tracking = Tracking(context.home)
    run_id = model_run(model, context.home, recipe.name)
    digest = content_digest(model)
    trained_with = (read_record(model) or {}).get("code_revision")
    lineage = {
        "model_name": name,
        "model_digest": digest,
        "run_id": run_id,
        "recipe": recipe.name,
        "dataset": dataset["name"],
        "dataset_revision": dataset["revision"],
        "dataset_md5": dataset["md5"],
        "validation": f"{validation['outcome']}: {validation['used']} of {validation['images']} images used, "
        f"Great Expectations {validation['expectations']}",
        "code_revision": trained_with or Code().revision,
    }
    specs: dict[str, ServedSpec] = {}
    for direction in Description.read(model).directions:
        source, target = model / "onnx" / direction.value, context.out / "release" / direction.value
        target.mkdir(parents=True)
        for file in ("generator.onnx", "range.onnx"):
            shutil.copyfile(source / file, target / file)
        spec = ServedSpec.from_json((source / "spec.json").read_text()).model_copy(
            update={"lineage": lineage, "chunk": recipe.deploy.chunk, "max_voxels": recipe.deploy.max_voxels}
        )
        (target / "spec.json").write_text(spec.to_json())
        specs[direction.value] = spec
    tags = {
        **lineage,
        "verdict": "pass",
        **{f"onnx_sha256.{d}": s.generator_sha256 for d, s in specs.items()},
    }
    card = context.out / "model_card.md"
    card.write_text(_card(name, lineage, specs), encoding="utf-8")
    known = [v for v in tracking.versions(name) if v.digest == digest]
    if known:
        version = known[0].version
    else:
        context.report(f"registering {name}", 0.3)
        version = tracking.register(name, run_id, context.out / "release", model, card, tags)
    if decision["replaces_champion"]:
        tracking.alias(name, section.alias, version)
    tracking.tag(run_id, {**lineage, "model_version": version})
    tracking.end(run_id)
    tree = {
        "name": name,
        "version": version,
        "run_id": run_id,
        "model_digest": digest,
        "directions": sorted(specs),
        "alias": section.alias if decision["replaces_champion"] else "",
        "onnx_sha256": {d: s.generator_sha256 for d, s in specs.items()},
    }
    (context.out / VERSION).write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    return {**tree, "tags": len(tags), "tracking": tracking.uri}


def still_true(context: Context) -> bool:
    """True while the registered version is there, with this model's digest; an outage is a fault, not a no."""
    from ctmr.errors import InputError
    from ctmr.tracking.mlflow import Tracking

    tree = json.loads((context.out / VERSION).read_text())
    try:
        found = Tracking(context.home).version(tree["name"], tree["version"])
    except InputError:
        return False
    return found.digest == str(tree["model_digest"])


def read_version(folder: Path) -> dict[str, Any]:
    """Return ``version.json`` of a register output."""
    tree: dict[str, Any] = json.loads((folder / VERSION).read_text())
    return tree


def _card(name: str, lineage: dict[str, str], specs: dict[str, Any]) -> str:
    lines = [
        f"# {name}",
        "",
        "Research use only: not a medical device. Outputs are synthetic images and are marked so.",
        "",
    ]
    for direction, spec in specs.items():
        grid = spec.grid
        where = "pictures" if grid.spacing_mm is None else f"{grid.plane} slices at {grid.spacing_mm} mm"
        lines.append(
            f"- `{direction}`: {spec.source.unit} {spec.source.modality} to {spec.target.unit} {spec.target.modality}, "
            f"{where}, {grid.size[0]}×{grid.size[1]} pixels"
        )
    lines += ["", "| lineage | |", "|---|---|", *(f"| {k} | `{v}` |" for k, v in lineage.items()), ""]
    return "\n".join(lines)


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return the registered version, in half a line."""
    return f"{summary['name']} version {summary['version']}"


STAGE = Stage(
    "register",
    help="a model that passed becomes an MLflow version with lineage.",
    takes={
        "model": "train",
        "decision": "evaluate/decision.json",
        "dataset": "fetch/dataset.json",
        "validation": "validate/validation.json",
    },
    sections=("name", "register", "deploy"),
    run=run,
    summary_line=summary_line,
    side_effects=True,
    still_true=still_true,
)
