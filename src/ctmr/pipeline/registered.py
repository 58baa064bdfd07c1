"""Registered versions as Triton serves them: from the model repository, or from MLflow where it lacks them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ctmr.errors import EnvironmentFault, InputError
from ctmr.system.home import Home
from ctmr.tracking.names import Part, served_name

if TYPE_CHECKING:
    from ctmr.serving.model_repository import Release
    from ctmr.tracking.mlflow import Tracking, Version

_GRAPH = "onnx_sha256."
"""Prefix of the tags in which a registered version names the graph of each direction."""


def releases_of(home: Home, tracking: Tracking, version: Version, folder: Path) -> list[Release]:
    """Return every direction of a registered version, ready to be served.

    Parameters
    ----------
    folder
        Gets what is downloaded, where the model repository does not have the version any more.

    Raises
    ------
    InputError
        The version does not say which directions it has: an earlier ctmr, or a stranger, registered it.
    EnvironmentFault
        The graph that is found is not the registered one.
    """
    shas = {tag.removeprefix(_GRAPH): sha for tag, sha in version.tags.items() if tag.startswith(_GRAPH)}
    if not shas:
        raise InputError(
            f"{version.name} version {version.version} has no tag ctmr.{_GRAPH}DIRECTION in MLflow, so nobody knows "
            "what to serve; register it again with `ctmr register`"
        )
    found = []
    for direction, sha in sorted(shas.items()):
        release = _in_repository(home, version, direction) or _downloaded(tracking, version, direction, folder)
        if release.spec.generator_sha256 != sha:
            raise EnvironmentFault(
                f"{version.name} version {version.version}: the spec beside {release.generator} names a graph of "
                f"sha256 {release.spec.generator_sha256[:12]}…, the registry says {sha[:12]}…; remove that folder and "
                "try again"
            )
        found.append(release)
    return found


def _in_repository(home: Home, version: Version, direction: str) -> Release | None:
    from ctmr.serving.export import ServedSpec
    from ctmr.serving.model_repository import GRAPH, Release, versions, written_spec

    repository, model = home.model_repository, served_name(version.name, direction)
    spec = written_spec(repository, model, version.version)
    if spec is None or version.version not in versions(repository, model):
        return None
    generator, range_ = (
        repository / f"{model}{part}" / version.version / GRAPH for part in (Part.GENERATOR, Part.RANGE)
    )
    return Release(model, version.version, generator, range_, ServedSpec.from_json(spec.decode()))


def _downloaded(tracking: Tracking, version: Version, direction: str, folder: Path) -> Release:
    from ctmr.serving.export import ServedSpec
    from ctmr.serving.model_repository import Release

    files = tracking.download(version.run_id, f"release/{direction}", folder)
    spec = ServedSpec.from_json((files / "spec.json").read_text())
    served = served_name(version.name, direction)
    return Release(served, version.version, files / "generator.onnx", files / "range.onnx", spec)
