"""A dataset pinned to one state, and how to get it: resolve finds the pin, materialise copies and checks."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ctmr.datasets.dvc.archives import unpack
from ctmr.datasets.dvc.commands import TRANSFER_LIMIT_S, CommandFailed, dvc, first_line, git, guarded
from ctmr.datasets.dvc.folders import copy_folder, file_md5, folder_md5
from ctmr.datasets.dvc.remotes import preflight_of, refuse_programs
from ctmr.errors import EnvironmentFault, InputError
from ctmr.system.environment import HOME
from ctmr.system.git import refuse_option
from ctmr.system.progress import Progress, silent
from ctmr.system.walk import files_of_images


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
class DatasetSource:
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
    def from_option(text: str) -> DatasetSource:
        """Read `to_option`'s text."""
        tree: dict[str, str] = json.loads(text)
        address, path = tree.pop("address"), tree.pop("path")
        _refuse_options(address, path, tree.get("revision", ""))
        return DatasetSource(Dataset(**tree), address, path)


def resolve(address: str, *, path: str = "", revision: str = "") -> DatasetSource:
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
    _refuse_options(address, path, revision)
    local = Path(address)
    is_url = _is_url(address)
    if re.match(r"https?://[^/]*@", address):
        raise InputError(
            "the dataset's address holds a user name or token; give it without, and let git's credential helper log in"
        )
    if not is_url and not local.exists():
        raise InputError(f"there is no dataset at {address}; give a folder of images or a git + DVC repository")
    if not is_url and not local.is_dir():
        raise InputError(f"{address} is a file; a dataset is a folder of images or a git + DVC repository")
    if is_url or (local / ".dvc").is_dir():
        return _resolve_dvc(address if is_url else str(local.resolve()), path, revision)
    if path or revision:
        raise InputError(f"{address} is a plain folder without .dvc; --path and --revision belong to a DVC repository")
    md5 = folder_md5(local)
    return DatasetSource(Dataset(_short_name(local.resolve().name), "folder", "", md5), str(local.resolve()))


def materialise(source: DatasetSource, target: Path, report: Progress) -> None:
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
                f"give the folder of images alone, or put ctmr's state elsewhere with {HOME} or --out"
            )
        copy_folder(Path(source.address), target)
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
    archives = [p for p in files_of_images(target) if p.suffix.lower() == ".zip"]
    for k, archive in enumerate(archives):
        unpack(archive, archive.with_suffix(""))
        archive.unlink()
        report(f"unpacked {archive.relative_to(target)}", (k + 1) / len(archives))


def _refuse_options(address: str, path: str, revision: str) -> None:
    for what, text in (("the dataset's address", address), ("--path", path), ("--revision", revision)):
        refuse_option(what, text)


def _is_url(address: str) -> bool:
    return "://" in address or address.startswith("git@")


def _short_name(name: str) -> str:
    clean = "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")
    return clean or "dataset"


def _resolve_dvc(address: str, path: str, revision: str) -> DatasetSource:
    if _is_url(address):
        try:
            # Not in the working directory, which may be a repository with a configuration of its own.
            git(Path("/"), "ls-remote", "--quiet", "--end-of-options", address, "HEAD")
        except CommandFailed as error:
            raise InputError(f"dataset {address} at revision {revision or 'HEAD'}: {error.reason}") from None
    else:
        refuse_programs(Path(address))
    with guarded():
        return _pinned(address, path, revision)


def _pinned(address: str, path: str, revision: str) -> DatasetSource:
    repo, errors = _open_dvc(address, revision or ("" if _is_url(address) else "HEAD"))
    try:
        with repo:
            outputs = {str(out.fs.relpath(out.fs_path, repo.root_dir)): out for out in repo.index.outs if out.hash_info}
            if not path and len(outputs) == 1:
                path = next(iter(outputs))
            if path.rstrip("/") not in outputs:
                tracked = ", ".join(sorted(outputs)) or "nothing"
                wrong = f"does not track {path!r}" if path else "tracks no single dataset"
                raise InputError(f"DVC repository {address} {wrong}; it tracks {tracked}: choose with --path")
            out = outputs[path.rstrip("/")]
            rev = repo.get_rev()
            return DatasetSource(
                Dataset(_short_name(Path(path).name), "dvc", str(rev), str(out.hash_info.value)), address, path
            )
    except errors as error:
        raise InputError(f"dataset {address} at revision {revision or 'HEAD'}: {first_line(error)}") from None


def _open_dvc(address: str, revision: str) -> tuple[Any, tuple[type[Exception], ...]]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    errors = (DvcException, SCMError)
    try:
        return Repo.open(address, rev=revision or None), errors
    except errors as error:
        raise InputError(f"dataset {address} at revision {revision or 'HEAD'}: {first_line(error)}") from None


def _pull(source: DatasetSource, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _is_url(source.address):
        refuse_programs(Path(source.address))
    words = ("get", "--quiet", "--rev", source.dataset.revision, "--out", str(target.absolute()))
    try:
        dvc(target.parent, *words, "--", source.address, source.path, limit_s=TRANSFER_LIMIT_S)
    except CommandFailed as error:
        what = f"dataset {source.dataset.name} at revision {source.dataset.revision[:12]} could not be fetched"
        try:
            preflight_of(source.address, write=False)
        except EnvironmentFault as fault:
            raise EnvironmentFault(f"{what}: {fault}") from None
        lacking = _lacking(source)
        if lacking:
            raise EnvironmentFault(f"{what}: {lacking}; push it again from a copy that is whole") from None
        raise EnvironmentFault(f"{what} from {source.address}: {error.reason}") from None


def _lacking(source: DatasetSource) -> str:
    """Return which object of a local repository is neither in its cache nor in its remote, empty when none is."""
    from ctmr.datasets.dvc.objects import Objects, Pinned, Where, sentence

    md5 = source.dataset.md5
    if not Path(source.address, ".dvc").is_dir() or not md5.endswith(".dir"):
        return ""
    objects = Objects(Path(source.address), Pinned(md5, 0, 0))
    cache, remote = (objects.check(where, silent, content=False) for where in Where)
    listing_is_gone = any(f.path == "." for f in cache)
    faults = [f for f in remote if listing_is_gone or f.path in {c.path for c in cache}]
    return sentence(source.dataset.name, faults) if faults else ""


def _damaged(source: DatasetSource, target: Path) -> str:
    """Return the first file whose md5 is not the pinned one, relative to the dataset."""
    from dvc.api import DVCFileSystem

    with guarded():
        pinned = DVCFileSystem(source.address, rev=source.dataset.revision).find(source.path, detail=True)
    for path, info in sorted(pinned.items()):
        relative = PurePosixPath(path).relative_to(source.path)
        file = target / relative
        if not file.is_file() or file_md5(file) != info["dvc_info"]["md5"]:
            return relative.as_posix()
    return ""
