"""deploy: a registered version goes live on Triton once its golden inference is proven, or the old one stays live."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ctmr.data import images
from ctmr.data.manifest import Column
from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.imaging.volume import Unit, Volume
from ctmr.pipeline.stage import Context, Stage
from ctmr.pipeline.stages.register import read_version
from ctmr.system.digest import file_digest
from ctmr.system.home import Home

if TYPE_CHECKING:
    from ctmr.serving.client import TritonClient

_UNIT_WORD = {Unit.HU: "HU", Unit.GREY8: "grey levels", Unit.ARBITRARY: "units"}


def run(context: Context) -> dict[str, Any]:
    """Roll the version out and write ``deployment.json``.

    Every direction's golden case starts from the source files (a DICOM series, say), goes through the client, the
    served graphs and back to the native voxels, and must equal evaluate's own answer within
    ``deploy.golden_tolerance_hu``. A version that does not replace the champion is not deployed.
    """
    from ctmr.serving.export import ServedSpec
    from ctmr.serving.model_repository import Release
    from ctmr.serving.rollout import deploy
    from ctmr.serving.server import connect
    from ctmr.tracking.names import served_name

    version = read_version(context.inputs["registered"])
    golden = _Golden.read(context.inputs["golden"], context.inputs["raw"])
    release_folder = context.inputs["registered"] / "release"
    summary: dict[str, Any] = {}
    with connect(context.home, context.recipe.deploy.url) as client:
        for name in version["directions"]:
            folder = release_folder / name
            spec = ServedSpec.from_json((folder / "spec.json").read_text())
            model = served_name(version["name"], spec.direction)
            summary = {"model": model, "grpc": client.url, "golden_unit": _UNIT_WORD[spec.target.unit]}
            if not version["alias"]:
                live = client.live_version(model)
                summary |= {
                    "version": live,
                    "deployed": False,
                    "golden_difference": 0.0,
                    "reason": "it passed the gate but does not beat the champion",
                }
                continue
            differences: list[float] = []

            def prove(name_: str, number: str, differences: list[float] = differences) -> None:
                differences.append(golden.difference(client, name_, number))
                allowed = context.recipe.deploy.golden_tolerance_hu
                if not differences[-1] <= allowed:
                    raise EnvironmentFault(
                        f"golden case {golden.case}: the served answer differs from evaluate's by {differences[-1]:g}, "
                        f"at most {allowed:g} is allowed"
                    )

            _repair(client, context.home, model)
            context.report(f"rolling out {model} version {version['version']}", 0.4)
            release = Release(model, version["version"], folder / "generator.onnx", folder / "range.onnx", spec)
            report = deploy(client, context.home.model_repository, release, prove)
            summary |= {
                "version": report.live,
                "previous": report.previous,
                "deployed": True,
                "golden_case": golden.case,
                "golden_difference": max(differences),
                "onnx_sha256": spec.generator_sha256,
            }
    content = {k: v for k, v in summary.items() if k not in ("grpc", "previous")}
    (context.out / "deployment.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return summary


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
    """True while the server answers with that very version: a canary inference, since 'ready' can be a lie."""
    from ctmr.serving.rollout import canary
    from ctmr.serving.server import connect

    try:
        tree = json.loads((context.out / "deployment.json").read_text())
        if tree["version"] is None:
            return True
        with connect(context.home, context.recipe.deploy.url) as client:
            if canary(client, tree["model"]) != tree["version"]:
                return False
        served = context.home.model_repository / tree["model"] / tree["version"] / "model.onnx"
        return "onnx_sha256" not in tree or file_digest(served) == tree["onnx_sha256"]
    except (CtmrError, OSError, ValueError):
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
    """Return where the model is live and how near evaluate's answer, in half a line."""
    s = summary
    return f"live at {s['grpc']}, golden case within {s['golden_difference']:g} {s['golden_unit']}"


STAGE = Stage(
    "deploy",
    help="the registered version goes live on Triton, proven, or the old one stays.",
    takes={"registered": "register", "golden": "evaluate/golden.npz", "raw": "fetch/raw"},
    sections=("deploy",),
    run=run,
    summary_line=summary_line,
    side_effects=True,
    still_true=still_true,
)
