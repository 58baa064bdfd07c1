"""Lineage: a ledger of synthetic images, and the walk from one of them back to the data that made it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ctmr.errors import InputError, without_secrets
from ctmr.imaging.volume import Direction
from ctmr.system.files import append_line
from ctmr.system.home import Home
from ctmr.tracking.names import served_name

_DIRECTION = "direction"
_NEEDED = {_DIRECTION, "model_name", "model_version", "onnx_sha256", "series_uid"}
"""Facts without which a file's own statement leads nowhere."""


@dataclass(frozen=True)
class Link:
    """One step of the walk.

    Attributes
    ----------
    checked
        True when the fact was found again where it is claimed to be, False when it is only written in the image, and
        ``None`` where nothing can be checked.
    """

    what: str
    value: str
    where: str
    checked: bool | None = None


def record(home: Home, entry: dict[str, Any]) -> None:
    """Append one synthetic image to the ledger; on disk when it returns."""
    line = json.dumps({**entry, "written": datetime.now(UTC).isoformat(timespec="seconds")}, sort_keys=True)
    append_line(home.ledger, line, mode=0o600)


def trace(uid: str, home: Home) -> list[Link]:
    """Walk from a synthetic image to the data revision.

    Parameters
    ----------
    uid
        Series or SOP instance UID that this machine wrote, or the path of a synthetic image of any format and name.

    Raises
    ------
    InputError
        Unknown UID, or an image without provenance.
    """
    facts, series, where = _facts(uid, home)
    links = [
        Link("synthetic series", series, where, True),
        Link("source series", facts.get("source_uid", "") or "written in the image", "ledger"),
        Link("direction", str(facts["direction"]), where),
    ]
    model = served_name(facts["model_name"], facts["direction"])
    links.append(
        Link(
            "Triton model",
            f"{model} version {facts['model_version']}",
            str(home.model_repository),
            _served(home, model, str(facts["model_version"]), str(facts["onnx_sha256"])),
        )
    )
    links.append(Link("ONNX sha256", str(facts["onnx_sha256"]), "generator.onnx", links[-1].checked))
    return links + _from_tracking(facts, home)


def _facts(uid: str, home: Home) -> tuple[dict[str, Any], str, str]:
    path = Path(uid)
    if path.exists():
        return _facts_of_file(path, home)
    entry = _written_as(home, {uid})
    if entry is not None:
        return entry, str(entry["series_uid"]), str(entry["path"])
    raise InputError(
        f"{uid} is no synthetic image this machine wrote ({len(_entries(home))} in {home.ledger}) and no path; "
        "give the series or SOP instance UID, or the path, of a synthetic image"
    )


def _facts_of_file(path: Path, home: Home) -> tuple[dict[str, Any], str, str]:
    """Find a file by what it carries, then by its UIDs, then by its content: names and headers change on the way."""
    from ctmr.io.content import content_digest, read_whatever
    from ctmr.io.dicom import is_dicom, origin_of, read_header

    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    dicom = next((file for file in files if is_dicom(file)), None)
    if path.is_dir() and dicom is None:
        raise InputError(f"{path} holds no DICOM file; give the folder or a file of a synthetic DICOM series")
    if dicom is not None:
        header = read_header(dicom)
        origin, uid = origin_of(header), str(header.get("SeriesInstanceUID", ""))
        if origin is not None and _DIRECTION in origin.facts:
            return dict(origin.facts), uid, str(path)
        entry = _written_as(home, {uid, str(header.get("SOPInstanceUID", ""))})
        if entry is not None:
            return entry, str(entry["series_uid"]), str(path)
    volume = read_whatever(path)
    told = volume.synthetic.facts if volume.synthetic is not None else {}
    if set(told) >= _NEEDED and told[_DIRECTION] in set(Direction):
        return dict(told), told["series_uid"], str(path)
    entry = _written_as(home, {content_digest(volume.array)})
    if entry is not None:
        return entry, str(entry["series_uid"]), str(path)
    raise InputError(
        f"{path} carries no provenance of ctmr, and its content is none of the {len(_entries(home))} synthetic images "
        f"in {home.ledger}; give a synthetic image that ctmr wrote, or ask on the machine that wrote it"
    )


def _written_as(home: Home, names: set[str]) -> dict[str, Any] | None:
    """Return the latest entry of the ledger with one of these UIDs or content digests."""
    found: dict[str, Any] | None = None
    for entry in _entries(home):
        if names & {entry.get("series_uid"), entry.get("content_sha256"), *entry.get("instance_uids", [])}:
            found = entry
    return found


def _entries(home: Home) -> list[dict[str, Any]]:
    """Return the ledger's lines; one that was torn is passed over and hides no other."""
    found: list[Any] = []
    for line in home.ledger.read_text(errors="replace").splitlines() if home.ledger.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


def _served(home: Home, model: str, version: str, sha256: str) -> bool:
    """True when the model repository holds that version with that very file."""
    path = home.model_repository / model / version / "model.onnx"
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _from_tracking(facts: dict[str, Any], home: Home) -> list[Link]:
    from ctmr.errors import EnvironmentFault
    from ctmr.tracking.mlflow import Tracking

    claimed = {k: str(facts.get(k, "")) for k in ("run_id", "code_revision", "dataset_revision", "dataset_md5")}
    same: dict[str, bool | None]
    silent: list[Link] = []
    where = without_secrets(home.tracking_uri)
    try:
        tracking = Tracking(home)
        version = tracking.version(str(facts["model_name"]), str(facts["model_version"]))
        tags = dict(version.tags)
        same = {k: tags.get(k) == v for k, v in claimed.items()}
        same["run_id"] = version.run_id == claimed["run_id"]
        known, validation = True, tags.get("validation", "")
    except InputError:
        same, known, validation = dict.fromkeys(claimed, False), False, ""
    except EnvironmentFault as error:
        same, known, validation = dict.fromkeys(claimed, None), None, ""
        silent = [Link("MLflow", f"does not answer, so what follows is not verified ({error})", where)]
    return [
        *silent,
        Link("MLflow model", f"{facts['model_name']} version {facts['model_version']}", where, known),
        Link("MLflow run", claimed["run_id"], where, same["run_id"]),
        Link("code revision", claimed["code_revision"], "git", same["code_revision"]),
        Link(
            "validation",
            validation or ("not found" if known is not None else "not known"),
            "Great Expectations, findings",
            None if known is None else bool(validation),
        ),
        Link("dataset revision", claimed["dataset_revision"] or "(plain folder)", "git", same["dataset_revision"]),
        Link("dataset md5", claimed["dataset_md5"], "DVC", same["dataset_md5"]),
    ]
