"""Datasets: where images come from (a DVC repository or a plain folder), pinned to a revision and an md5."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ctmr.errors import EnvironmentFault, InputError

MAX_ARCHIVE_BYTES = 64 * 1024**3
MAX_ARCHIVE_RATIO = 200


@dataclass(frozen=True)
class Dataset:
    """A dataset pinned to one state.

    Attributes
    ----------
    name
        Short name, part of the registered model's name.
    kind
        ``dvc`` or ``folder``.
    revision
        Git revision of the DVC repository; empty for a folder.
    md5
        DVC's md5 of the tracked folder (``….dir``) or file; for a plain folder, the md5 DVC would give it.
    """

    name: str
    kind: str
    revision: str
    md5: str

    def to_json(self) -> dict[str, str]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Source:
    """A dataset and how to get it.

    Attributes
    ----------
    address
        Folder, or path or URL of a DVC repository.
    path
        Path inside the DVC repository; empty for a folder.
    """

    dataset: Dataset
    address: str
    path: str = ""

    def to_option(self) -> str:
        """Return the text that pins this source: a stage option."""
        return json.dumps({"address": self.address, "path": self.path, **self.dataset.to_json()}, sort_keys=True)

    @staticmethod
    def from_option(text: str) -> Source:
        """Read `to_option`'s text."""
        tree: dict[str, str] = json.loads(text)
        address, path = tree.pop("address"), tree.pop("path")
        return Source(Dataset(**tree), address, path)


def resolve(address: str, *, path: str = "", revision: str = "") -> Source:
    """Pin a dataset: find its revision and md5 without copying it.

    Parameters
    ----------
    address
        A plain folder, or the path or URL of a git + DVC repository.
    path
        Path of the tracked data inside the repository; empty when the repository tracks exactly one.
    revision
        Git revision, branch or tag; empty: the current commit.

    Raises
    ------
    InputError
        Nothing there, or path or revision unknown.
    """
    local = Path(address)
    is_url = "://" in address or address.startswith("git@")
    if not is_url and not local.exists():
        raise InputError(f"there is no dataset at {address}; give a folder of images or a git + DVC repository")
    if not is_url and not local.is_dir():
        raise InputError(f"{address} is a file; a dataset is a folder of images or a git + DVC repository")
    if is_url or (local / ".dvc").is_dir():
        return _resolve_dvc(address if is_url else str(local.resolve()), path, revision)
    if path or revision:
        raise InputError(f"{address} is a plain folder without .dvc; --path and --revision belong to a DVC repository")
    md5 = folder_md5(local)
    return Source(Dataset(_short_name(local.resolve().name), "folder", "", md5), str(local.resolve()))


def materialise(source: Source, target: Path, report: Callable[[str, float | None], None]) -> None:
    """Copy a pinned dataset's files into `target`, check them against the md5 and unpack archives.

    Raises
    ------
    InputError
        The files are not those that the md5 names.
    EnvironmentFault
        The remote does not answer or lacks an object.
    """
    if source.dataset.kind == "dvc":
        _pull(source, target)
    else:
        if target.resolve().is_relative_to(Path(source.address).resolve()):
            raise InputError(
                f"dataset {source.address} holds the folder {target.parent.name} that ctmr writes to; "
                "give the folder of images alone, or put ctmr's state elsewhere with CTMR_HOME or --out"
            )
        shutil.copytree(source.address, target)
    found = folder_md5(target)
    if found != source.dataset.md5:
        damaged = _damaged(source, target) if source.dataset.kind == "dvc" else ""
        if damaged:
            raise InputError(
                f"dataset {source.dataset.name}: {damaged} is not what revision {source.dataset.revision[:12]} pins; "
                "its object in the remote is damaged: push it again from a copy that is whole"
            )
        raise InputError(
            f"dataset {source.dataset.name}: its files have md5 {found}, the pinned state is {source.dataset.md5}; "
            "something changed or is damaged: run `dvc status` there, or pin the state again"
        )
    archives = sorted(target.rglob("*.zip"))
    for k, archive in enumerate(archives):
        unpack(archive, archive.with_suffix(""))
        archive.unlink()
        report(f"unpacked {archive.relative_to(target)}", (k + 1) / len(archives))


def folder_md5(folder: Path) -> str:
    """Return the md5 that DVC gives a folder: over the sorted JSON list of its files' md5s."""
    entries = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        entries.append({"md5": _md5(file), "relpath": file.relative_to(folder).as_posix()})
    entries.sort(key=lambda e: e["relpath"])
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip archive of plain files, or raise InputError when it would leave its folder or explode.

    Refused: absolute paths, ``..``, links, more than `MAX_ARCHIVE_BYTES`, a ratio above `MAX_ARCHIVE_RATIO`.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            total = sum(m.file_size for m in members)
            packed = max(1, archive.stat().st_size)
            if total > MAX_ARCHIVE_BYTES or total / packed > MAX_ARCHIVE_RATIO:
                raise InputError(
                    f"archive {archive.name} unpacks to {total} bytes from {packed}; at most {MAX_ARCHIVE_BYTES} bytes "
                    f"and {MAX_ARCHIVE_RATIO} times its size are allowed"
                )
            for member in members:
                parts = PurePosixPath(member.filename).parts
                if PurePosixPath(member.filename).is_absolute() or ".." in parts or "\\" in member.filename:
                    raise InputError(f"archive {archive.name} holds {member.filename!r}, which leaves its folder")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise InputError(
                        f"archive {archive.name} holds the link {member.filename!r}; only plain files may be in it"
                    )
            names = [PurePosixPath(m.filename) for m in members]
            files = set(names)
            clash = next((n for n in names if files.intersection(n.parents)), None)
            if clash is None and len(files) < len(names):
                clash = next(n for k, n in enumerate(names) if n in names[:k])
            if clash is not None:
                raise InputError(f"archive {archive.name} holds {str(clash)!r} twice, or below a file; pack it again")
            for member in members:
                destination = target.joinpath(*PurePosixPath(member.filename).parts)
                destination.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as stream, destination.open("wb") as out:
                    shutil.copyfileobj(stream, out)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise InputError(f"archive {archive.name} is damaged ({error}); fetch it again") from None
    except (RuntimeError, NotImplementedError) as error:
        # zipfile says so of encrypted members and of methods it does not know.
        raise InputError(f"archive {archive.name} cannot be unpacked ({error}); pack it as a plain zip") from None


def _short_name(name: str) -> str:
    clean = "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")
    return clean or "dataset"


def _resolve_dvc(address: str, path: str, revision: str) -> Source:
    repo, errors = _open_dvc(address, revision)
    try:
        with repo:
            outputs = {str(out.fs.relpath(out.fs_path, repo.root_dir)): out for out in repo.index.outs if out.hash_info}
            if not path and len(outputs) == 1:
                path = next(iter(outputs))
            if path.rstrip("/") not in outputs:
                raise InputError(
                    f"DVC repository {address} does not track {path or 'no path'!r}; it tracks {sorted(outputs)}: "
                    "choose one with --path"
                )
            out = outputs[path.rstrip("/")]
            rev = repo.get_rev() if revision else repo.scm.get_rev()
            return Source(
                Dataset(_short_name(Path(path).name), "dvc", str(rev), str(out.hash_info.value)), address, path
            )
    except errors as error:
        raise InputError(f"dataset {address} at revision {revision or 'HEAD'}: {_first_line(error)}") from None


def _open_dvc(address: str, revision: str) -> tuple[Any, tuple[type[Exception], ...]]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    errors = (DvcException, SCMError)
    try:
        return Repo.open(address, rev=revision or None), errors
    except errors as error:
        raise InputError(f"dataset {address} at revision {revision or 'HEAD'}: {_first_line(error)}") from None


def _pull(source: Source, target: Path) -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        Repo.get(source.address, source.path, out=str(target), rev=source.dataset.revision)
    except (DvcException, SCMError, OSError) as error:
        raise EnvironmentFault(
            f"dataset {source.dataset.name} at revision {source.dataset.revision[:12]} could not be fetched from "
            f"{source.address}: {_first_line(error)}"
        ) from None


def _damaged(source: Source, target: Path) -> str:
    """Return the first file whose md5 is not the pinned one, relative to the dataset."""
    from dvc.api import DVCFileSystem

    pinned = DVCFileSystem(source.address, rev=source.dataset.revision).find(source.path, detail=True)
    for path, info in sorted(pinned.items()):
        relative = PurePosixPath(path).relative_to(source.path)
        file = target / relative
        if not file.is_file() or _md5(file) != info["dvc_info"]["md5"]:
            return relative.as_posix()
    return ""


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
