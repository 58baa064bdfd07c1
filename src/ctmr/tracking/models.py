"""Models in MLflow: the files of a registered one, and proof that what comes back is what was kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ctmr.errors import EnvironmentFault
from ctmr.system.digest import combined, content_digests, file_digest

if TYPE_CHECKING:
    from ctmr.tracking.mlflow import Tracking

FOLDER = "model"
DIGESTS = "digests.json"
"""What a model's content digest is made of: path → sha256; most of these files are kept elsewhere, or not at all."""
_KEPT = (".safetensors", ".json")


def keep(tracking: Tracking, run_id: str, model: Path) -> None:
    """Store under a run what rebuilds a model's translators, and the digests of the whole model folder."""
    tracking.client.log_dict(run_id, content_digests(model), f"{FOLDER}/{DIGESTS}")
    for file in sorted(f for f in model.iterdir() if f.suffix in _KEPT):
        tracking.artifact(run_id, file, FOLDER)


def fetch(tracking: Tracking, run_id: str, digest: str, target: Path) -> Path | None:
    """Copy a kept model below `target` and return its folder, once each file is what was registered.

    Parameters
    ----------
    digest
        Content digest of the model folder.

    Returns
    -------
    Path | None
        ``None`` when an earlier ctmr registered it, without the digests of its files: nothing can be checked.

    Raises
    ------
    EnvironmentFault
        MLflow gave other bytes than were registered, or not all of them.
    """
    folder = tracking.download(run_id, FOLDER, target)
    if not (folder / DIGESTS).is_file():
        return None
    try:
        listed = {str(name): str(sha) for name, sha in json.loads((folder / DIGESTS).read_bytes()).items()}
        agrees = combined(listed) == digest
    except (ValueError, AttributeError, RecursionError):
        listed, agrees = {}, False
    wanted = {name: sha for name, sha in listed.items() if "/" not in name and Path(name).suffix in _KEPT}
    entries = [p for p in folder.iterdir() if p.name != DIGESTS]
    found = {p.name: file_digest(p) if p.is_file() and not p.is_symlink() else "" for p in entries}
    if not agrees or found != wanted:
        odd = DIGESTS if not agrees else min(n for n in wanted | found if wanted.get(n) != found.get(n))
        raise EnvironmentFault(
            f"{odd} of model {digest[:12]}…, which MLflow at {tracking.uri} keeps for run {run_id}, is not what was "
            "registered, so nothing of it was loaded; restore the run's artifacts, or ask who changed them"
        )
    return folder
