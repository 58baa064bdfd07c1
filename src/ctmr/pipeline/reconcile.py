"""Reconciliation: Triton and the record are brought to what MLflow's alias says, whatever stopped half-way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctmr.errors import CtmrError
from ctmr.pipeline.promotion import latest_promotions, record, recover, registry_lock, server_of
from ctmr.pipeline.registered import releases_of
from ctmr.system.home import Home

if TYPE_CHECKING:
    from ctmr.serving.client import TritonClient
    from ctmr.serving.model_repository import Release
    from ctmr.tracking.mlflow import Tracking, Version

DEFAULT_ALIAS = "champion"
"""Of models that are served and that no record knows: the recipe's default."""


def reconcile(home: Home) -> list[dict[str, Any]]:
    """Make Triton serve, and the record name, every model's champion; the alias itself is never moved.

    A promotion that did not end is finished or undone first. Without a champion nothing is taken from Triton: whoever
    removed an alias did not ask for hospitals to go without answers.

    Returns
    -------
    list of dict
        One a model: model, alias, champion (``None``: there is none), what was done in sentences.

    Raises
    ------
    EnvironmentFault
        MLflow or Triton do not answer, or the champion could not be brought live; run it again.
    """
    from ctmr.tracking.mlflow import Tracking

    tracking, rows = Tracking(home), []
    with registry_lock(home), tempfile.TemporaryDirectory(prefix="ctmr-") as folder:
        ended = recover(home, tracking)
        for name, line in sorted(_known(home).items()):
            champion = tracking.champion(name, line["alias"])
            did = list(_converge(home, tracking, line, champion, Path(folder)))
            rows.append(
                {
                    "model": name,
                    "alias": line["alias"],
                    "champion": champion.version if champion else None,
                    "did": ([ended] if f" {name} " in ended else []) + did,
                }
            )
    return rows


def _known(home: Home) -> dict[str, dict[str, Any]]:
    """Return registered model → its latest line, also of models that are served and stand in no record."""
    from ctmr.serving.export import ServedSpec
    from ctmr.serving.model_repository import served_models, versions, written_spec

    found: dict[str, dict[str, Any]] = {}
    for model in served_models(home.model_repository):
        for version in versions(home.model_repository, model):
            spec = written_spec(home.model_repository, model, version)
            if spec and (name := ServedSpec.from_json(spec.decode()).lineage.get("model_name")):
                found[name] = {"model": name, "alias": DEFAULT_ALIAS, "version": "", "url": ""}
    return found | latest_promotions(home)


def _converge(
    home: Home, tracking: Tracking, line: dict[str, Any], champion: Version | None, folder: Path
) -> Iterator[str]:
    from ctmr.serving.server import connect

    name, where = line["model"], server_of(line)
    if champion is None:
        yield f"MLflow has no {line['alias']} of {name}; what Triton serves of it stays"
        return
    releases = releases_of(home, tracking, champion, folder)
    with connect(home, **where) as client:
        for release in releases:
            yield from _serve(home, client, release)
    if line["version"] != champion.version:
        entry = {"model": name, "alias": line["alias"], "version": champion.version, "digest": champion.digest}
        record(home, {**entry, "previous": line["version"], "uncompared": "", **where, "reconciled": "true"})
        yield f"the record says version {champion.version} instead of {line['version'] or 'nothing'}"


def _serve(home: Home, client: TritonClient, release: Release) -> Iterator[str]:
    """Bring the champion's direction live, and away what a killed rollout left."""
    from ctmr.serving.model_repository import served_versions
    from ctmr.serving.rollout import canary, canary_proof, clear_candidates, deploy, revive

    model, repository = release.model, home.model_repository
    for left in clear_candidates(client, repository, model):
        yield f"{left}, left by a rollout that was stopped, was removed"
    live: str | None = None
    try:
        live = canary(client, model)
    except CtmrError:
        if served_versions(repository, model):
            with suppress(CtmrError):
                live = revive(client, repository, model)
                yield f"{model} version {live} did not answer and was started again"
    if live != release.version:
        deploy(client, repository, release, canary_proof(client, [release]), reshape=True)
        yield f"{model} serves version {release.version} instead of {live or 'none'}"
