"""register: a model that passed the gate becomes an MLflow version whose tags lead back to its data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import GateFailed, InputError, without_secrets
from ctmr.imaging.origin import PHANTOMS_ONLY
from ctmr.networks.model_folder import Description
from ctmr.pipeline.promotion import registry_lock
from ctmr.pipeline.stage import Context, Stage, read_record
from ctmr.pipeline.stages.evaluate import model_run
from ctmr.system.digest import content_digest
from ctmr.tracking.names import model_name

if TYPE_CHECKING:
    from ctmr.serving.export import ServedSpec
    from ctmr.tracking.mlflow import Tracking, Version

VERSION = "version.json"
_DECIDED = ("replaces_champion", "compared_with", "uncompared", "stays")
"""What deploy needs of evaluate's decision."""


def run(context: Context) -> dict[str, Any]:
    """Write ``version.json`` and ``release/<direction>/``, what Triton serves, with lineage in its spec.

    A model that is registered already (same content) keeps its version and the lineage that it was registered with.
    Nobody becomes champion here: that is deploy's, once the rollout is proven.

    Raises
    ------
    GateFailed
        The verdict is not a pass; nothing is registered.
    """
    from ctmr.tracking.attended import attended
    from ctmr.tracking.mlflow import Tracking

    decision = json.loads(context.inputs["decision"].read_text())
    if not decision["passed"]:
        raise GateFailed("the model did not pass the gate, so it cannot be registered; its verdict says why")
    if strange := sorted(set(_DECIDED) - set(decision)):
        raise InputError(
            f"{context.inputs['decision']} does not say {', '.join(strange)}: an earlier ctmr wrote it; run "
            "`ctmr evaluate` again"
        )
    model, section = context.inputs["model"], context.recipe.register_
    tracking = Tracking(context.home)
    with registry_lock(context.home):
        run_id = model_run(model, context.home, context.recipe.name)
        lineage = _lineage(context, run_id)
        name, digest = lineage["model_name"], lineage["model_digest"]
        known = _known(tracking, name, section.alias, digest)
        # What a version is served with must not depend on who registers it again.
        first = {k: known.tags.get(k, v) for k, v in lineage.items()} if known else lineage
        specs = _release(context, first, decision)
        hashes = {direction: spec.generator_sha256 for direction, spec in specs.items()}
        tags = {**first, "verdict": "pass", **{f"onnx_sha256.{direction}": sha for direction, sha in hashes.items()}}
        card = context.out / "model_card.md"
        card.write_text(_card(name, first, specs), encoding="utf-8")
        with attended(tracking, run_id):
            if known:
                version = known.version
            else:
                context.report(f"registering {name}", 0.3)
                version = tracking.register(name, run_id, context.out / "release", model, card, tags)
            tracking.tag(run_id, {**lineage, "model_version": version})
    tree = {
        "name": name,
        "version": version,
        "run_id": first["run_id"],
        "model_digest": digest,
        "directions": sorted(specs),
        "alias": section.alias,
        "onnx_sha256": hashes,
        **{key: decision[key] for key in _DECIDED},
    }
    (context.out / VERSION).write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n")
    return {**tree, "tags": len(tags), "tracking": without_secrets(tracking.uri)}


def _known(tracking: Tracking, name: str, alias: str, digest: str) -> Version | None:
    """Return the version that holds this model already: the champion before others, then the newest."""
    champion = tracking.champion(name, alias)
    return next((v for v in (champion, *tracking.versions(name)) if v and v.digest == digest), None)


def _lineage(context: Context, run_id: str) -> dict[str, str]:
    """Return what leads from a served model back to its data."""
    from ctmr.system.home import Code

    dataset = json.loads(context.inputs["dataset"].read_text())
    validation = json.loads(context.inputs["validation"].read_text())
    recipe, model = context.recipe, context.inputs["model"]
    # As little as possible: a model of patients says nothing here, so that its versions keep their bytes.
    warned = {"warning": PHANTOMS_ONLY} if validation.get("phantoms_only") else {}
    return {
        **warned,
        "model_name": model_name(recipe.register_.name, recipe.name, dataset["name"]),
        "model_digest": content_digest(model),
        "run_id": run_id,
        "recipe": recipe.name,
        "dataset": dataset["name"],
        "dataset_revision": dataset["revision"],
        "dataset_md5": dataset["md5"],
        "validation": f"{validation['outcome']}: {validation['used']} of {validation['images']} images used, "
        f"Great Expectations {validation['expectations']}",
        "code_revision": (read_record(model) or {}).get("code_revision") or Code().revision,
    }


def _release(context: Context, lineage: Mapping[str, str], decision: Mapping[str, Any]) -> dict[str, ServedSpec]:
    """Write ``release/<direction>/``, the graphs and a spec that holds lineage and calibration; return the specs."""
    from ctmr.imaging.calibration import Calibration
    from ctmr.serving.export import ServedSpec, ServedUncertainty

    model, specs = context.inputs["model"], dict[str, ServedSpec]()
    for direction in Description.read(model).directions:
        source, target = model / "onnx" / direction.value, context.out / "release" / direction.value
        target.mkdir(parents=True)
        for file in ("generator.onnx", "range.onnx"):
            shutil.copyfile(source / file, target / file)
        measured = decision.get("calibration") if direction.value == decision.get("direction") else None
        meant = ServedUncertainty(calibration=measured and Calibration.model_validate(measured))
        spec = ServedSpec.from_json((source / "spec.json").read_text())
        spec = spec.model_copy(update={"lineage": dict(lineage), "uncertainty": meant})
        (target / "spec.json").write_text(spec.to_json())
        specs[direction.value] = spec
    return specs


def still_true(context: Context) -> bool:
    """True while the registered version is there, with this model's digest; an outage is a fault, not a no."""
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
    """Return the registered version and what may become of it, in half a line."""
    may = "may become champion" if summary["replaces_champion"] else f"not champion: {summary['stays']}"
    return f"{summary['name']} version {summary['version']}, {may}"


STAGE = Stage(
    "register",
    help="a model that passed becomes an MLflow version with lineage.",
    takes={
        "model": "train",
        "decision": "evaluate/decision.json",
        "dataset": "fetch/dataset.json",
        "validation": "validate/validation.json",
    },
    sections=("name", "register"),
    run=run,
    summary_line=summary_line,
    side_effects=True,
    still_true=still_true,
    version=3,
)
