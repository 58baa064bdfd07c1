"""deploy: a registered version goes live and becomes champion once its golden inference is proven."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data import images
from ctmr.data.manifest import Column
from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.imaging.volume import Unit, Volume
from ctmr.pipeline.promotion import (
    REPLACE_UNCOMPARED,
    ROLLED_BACK,
    Contender,
    is_unfinished,
    promote,
    recover,
    registry_lock,
)
from ctmr.pipeline.stage import Context, Stage
from ctmr.pipeline.stages.register import read_version
from ctmr.system.digest import file_digest
from ctmr.system.home import Home

if TYPE_CHECKING:
    from ctmr.recipe.recipe import Deploy
    from ctmr.serving.client import TritonClient
    from ctmr.serving.export import ServedSpec
    from ctmr.serving.model_repository import Release
    from ctmr.tracking.mlflow import Tracking

_UNIT_WORD = {Unit.HU: "HU", Unit.GREY8: "grey levels", Unit.ARBITRARY: "units"}


def run(context: Context) -> dict[str, Any]:
    """Roll the version out, make it champion, and write ``deployment.json``.

    Before it meets a caller it is compared with the version that is live (`ctmr.serving.shadow`).

    Every direction's golden case starts from the source files (a DICOM series, say), goes through the client, the
    served graphs and back to the native voxels, and must equal evaluate's own answer within
    ``deploy.golden_tolerance_hu``. Only then, and in the same lock, the champion's alias moves. A version that does not
    replace the champion is not deployed.
    """
    from ctmr.serving.server import connect
    from ctmr.tracking.mlflow import Tracking

    reason = context.options.get(REPLACE_UNCOMPARED, "").strip()
    tree = read_version(context.inputs["registered"])
    candidate, tracking = _candidate(tree), Tracking(context.home)
    with registry_lock(context.home):
        recover(context.home, tracking)
        champion = tracking.champion(candidate.name, candidate.alias)
        rolled_back = tracking.version(candidate.name, candidate.version).tags.get(ROLLED_BACK, "")
        why_not = candidate.why_not(champion, reason, rolled_back)
        if champion is not None and champion.digest == candidate.digest:
            candidate = replace(candidate, version=champion.version)
        releases = _releases(context, tree["directions"], candidate)
        with connect(context.home, context.recipe.deploy.url, context.recipe.deploy.repository) as client:
            if why_not:
                summary = _left_alone(client, releases[-1]) | {"reason": why_not}
            else:
                summary = _roll_out(context, client, candidate, releases, tracking, reason)
    (context.out / "deployment.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return {**summary, "grpc": client.url}


def _candidate(tree: Mapping[str, Any]) -> Contender:
    names = {field.name for field in fields(Contender)} - {"digest"}
    return Contender(digest=tree["model_digest"], **{name: tree[name] for name in names})


def _releases(context: Context, directions: Sequence[str], candidate: Contender) -> list[Release]:
    """Return each direction of the registered version with today's settings of deployment."""
    from ctmr.serving.export import ServedSpec
    from ctmr.serving.model_repository import Release
    from ctmr.tracking.names import served_name

    found = []
    for name in directions:
        folder = context.inputs["registered"] / "release" / name
        spec = as_deployed(ServedSpec.from_json((folder / "spec.json").read_text()), context.recipe.deploy)
        served = served_name(candidate.name, spec.direction)
        graphs = folder / "generator.onnx", folder / "range.onnx"
        found.append(Release(served, candidate.version, *graphs, spec))
    return found


def as_deployed(spec: ServedSpec, settings: Deploy) -> ServedSpec:
    """Return a registered spec with what a deployment sets: how much at a time, and limits of uncertainty."""
    limits = settings.uncertainty
    sized = spec.model_copy(update={"chunk": settings.chunk, "max_voxels": settings.max_voxels})
    return sized.with_limits(limits.flag_above_hu, limits.refuse_above_hu)


def _left_alone(client: TritonClient, release: Release) -> dict[str, Any]:
    live = client.live_version(release.model)
    unit = _UNIT_WORD[release.spec.target.unit]
    return {
        "model": release.model,
        "version": live,
        "deployed": False,
        "golden_unit": unit,
        "golden_difference": 0.0,
    }


def _roll_out(
    context: Context,
    client: TritonClient,
    candidate: Contender,
    releases: Sequence[Release],
    tracking: Tracking,
    reason: str,
) -> dict[str, Any]:
    from ctmr.serving import shadow
    from ctmr.tracking.names import candidate_name

    golden = _Golden.read(context.inputs["golden"], context.inputs["raw"])
    deploy = context.recipe.deploy
    differences: list[float] = []
    shadows: dict[str, Any] = {}
    served = {candidate_name(release.model): release.model for release in releases}

    def prove(name: str, number: str) -> None:
        differences.append(golden.difference(client, name, number))
        if not differences[-1] <= deploy.golden_tolerance_hu:
            raise EnvironmentFault(
                f"golden case {golden.case}: the served answer differs from evaluate's by {differences[-1]:g}, "
                f"at most {deploy.golden_tolerance_hu:g} is allowed"
            )
        if live := served.get(name):
            found = shadow.compare(client, live, name, number, (golden.case, golden.volumes), deploy.shadow)
            found.require(deploy.shadow)
            shadows[live] = found.to_json()

    for release in releases:
        _repair(client, context.home, release.model)
    context.report(f"rolling out {releases[-1].model} version {candidate.version}", 0.4)
    promote(
        candidate,
        releases,
        prove,
        home=context.home,
        tracking=tracking,
        client=client,
        url=deploy.url or "",
        repository=deploy.repository or "",
        reason=reason,
    )
    spec = releases[-1].spec
    return {
        "model": releases[-1].model,
        "version": candidate.version,
        "deployed": True,
        "registered_model": candidate.name,
        "alias": candidate.alias,
        "replaced_uncompared": reason,
        "golden_case": golden.case,
        "golden_unit": _UNIT_WORD[spec.target.unit],
        "golden_difference": max(differences),
        "shadow": shadows[releases[-1].model],
        "onnx_sha256": spec.generator_sha256,
    }


def _repair(client: TritonClient, home: Home, model: str) -> None:
    """Start a served model's dead process again before anything is rolled out beside it."""
    from ctmr.serving.model_repository import served_versions
    from ctmr.serving.rollout import canary, revive

    if not served_versions(home.model_repository, model):
        return
    try:
        canary(client, model)
    except CtmrError:
        revive(client, home.model_repository, model)


def still_true(context: Context) -> bool:
    """True while the registry calls that very version champion and the server answers with it.

    The server is asked for a canary inference, since 'ready' can be a lie; a registry that does not answer is a fault.
    """
    from ctmr.serving.rollout import canary
    from ctmr.serving.server import connect
    from ctmr.tracking.mlflow import Tracking

    try:
        tree = json.loads((context.out / "deployment.json").read_text())
        if is_unfinished(context.home):
            return False
        if tree["version"] is None:
            return True
        if tree["deployed"]:
            champion = Tracking(context.home).champion(tree["registered_model"], tree["alias"])
            if champion is None or champion.version != tree["version"]:
                return False
        with connect(context.home, context.recipe.deploy.url) as client:
            if canary(client, tree["model"]) != tree["version"]:
                return False
        served = context.home.model_repository / tree["model"] / tree["version"] / "model.onnx"
        return "onnx_sha256" not in tree or file_digest(served) == tree["onnx_sha256"]
    except (CtmrError, OSError, ValueError, KeyError):
        return False


class _Golden:
    """The golden case: source files and evaluate's answer."""

    def __init__(self, case: str, volumes: list[Volume], answer: NDArray[Any]) -> None:
        self.case, self.volumes, self.answer = case, volumes, answer

    @staticmethod
    def read(path: Path, raw: Path) -> _Golden:
        """Read it afresh from the raw files, never from shards."""
        with np.load(path, allow_pickle=False) as stored:
            rows: list[Mapping[str, Any]] = [
                {
                    Column.PATH: str(p),
                    Column.FORMAT: str(f),
                    Column.MODALITY: str(stored["modality"]),
                    Column.SUBJECT: str(stored["subject"]),
                    Column.SEQUENCE: "",
                    Column.UNEVEN_LIMIT: float(limit),
                }
                for p, f, limit in zip(stored["paths"], stored["formats"], stored["uneven_limits"], strict=True)
            ]
            return _Golden(str(stored["case"]), [images.read(raw, row) for row in rows], stored["answer"])

    def difference(self, client: Any, model: str, version: str) -> float:
        """Return the largest difference of the served answer from evaluate's."""
        served = client.translate_volume(model, self.volumes, version).volume.array
        if served.shape != self.answer.shape:
            raise InputError(
                f"golden case {self.case}: the served answer has shape {served.shape}, not {self.answer.shape}"
            )
        return float(np.abs(served.astype(np.float64) - self.answer.astype(np.float64)).max())


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return where the model is live and how near evaluate's answer, or why it is not, in half a line."""
    s = summary
    if not s["deployed"]:
        stays = f"version {s['version']} stays live" if s["version"] else "nothing is live"
        return f"{stays}: {s['reason']}"
    return f"live at {s['grpc']}, golden case within {s['golden_difference']:g} {s['golden_unit']}"


STAGE = Stage(
    "deploy",
    help="the registered version goes live on Triton, proven, or the old one stays.",
    takes={"registered": "register", "golden": "evaluate/golden.npz", "raw": "fetch/raw"},
    options={"replace_uncompared": "Reason, recorded, to replace a champion that the model cannot be compared with."},
    sections=("deploy",),
    run=run,
    summary_line=summary_line,
    side_effects=True,
    still_true=still_true,
    version=3,
)
