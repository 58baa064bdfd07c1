"""The objects that a revision pins, looked at one by one in DVC's cache and in the remote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from ctmr.datasets.dvc.commands import CommandFailed, first_line, git, guarded
from ctmr.datasets.dvc.remotes import preflight, refuse_programs, remote_of
from ctmr.errors import EnvironmentFault, InputError
from ctmr.system import strict_yaml
from ctmr.system.git import refuse_option
from ctmr.system.progress import Progress

_CHUNK_BYTES = 1 << 20
_AT_ONCE = 8


class Where(StrEnum):
    """Place where an object should lie."""

    CACHE = "cache"
    REMOTE = "remote"


class ObjectState(StrEnum):
    """Fault of an object."""

    MISSING = "missing"
    CORRUPTED = "corrupted"


@dataclass(frozen=True)
class Pinned:
    """Contents of a tracked folder at a revision, read from its ``.dvc`` file.

    Attributes
    ----------
    md5
        ``….dir``.
    size
        Bytes of all files; ``files`` of them.
    """

    md5: str
    size: int
    files: int


@dataclass(frozen=True)
class Fault:
    """One object that is missing or not what its md5 says.

    Attributes
    ----------
    path
        File of the dataset, ``.`` for the list of its files.
    object
        Path of the object below the cache or the remote.
    """

    where: Where
    state: ObjectState
    path: str
    object: str

    def to_json(self) -> dict[str, str]:
        """Return plain JSON types."""
        return {"where": self.where.value, "state": self.state.value, "path": self.path, "object": self.object}


def read_pinned(repository: Path, name: str, revision: str = "HEAD") -> Pinned:
    """Return what a revision pins for a tracked folder.

    Raises
    ------
    InputError
        When the revision or the dataset is not there, or was tracked by a DVC older than 3.
    """
    for what, given in (("the dataset's name", name), ("--revision", revision)):
        refuse_option(what, given)
    try:
        text = git(repository, "cat-file", "blob", "--end-of-options", f"{revision}:{name}.dvc")
    except CommandFailed:
        raise InputError(f"{repository} has no dataset {name} at revision {revision}; `ctmr dataset list`") from None
    tree = strict_yaml.read(text, f"{name}.dvc at revision {revision}")
    outs = tree.get("outs") if isinstance(tree, dict) else None
    out = outs[0] if isinstance(outs, list) and outs and isinstance(outs[0], dict) else {}
    if out.get("hash") != "md5" or not str(out.get("md5", "")).endswith(".dir"):
        raise InputError(f"{name}.dvc at revision {revision} is no folder tracked by DVC 3; track it again with it")
    size, files = (out.get(key, 0) for key in ("size", "nfiles"))
    return Pinned(str(out["md5"]), size if isinstance(size, int) else 0, files if isinstance(files, int) else 0)


class Objects:
    """The objects of one pinned folder, in the cache and in the remote.

    Parameters
    ----------
    repository
        Local git + DVC repository.
    pinned
        What to look at.
    """

    def __init__(self, repository: Path, pinned: Pinned) -> None:
        self.repository = repository
        self.pinned = pinned

    def check(self, where: Where, report: Progress, *, content: bool = True) -> list[Fault]:
        """Look at every object and return what is wrong, the list of files first.

        Parameters
        ----------
        content
            Compare md5s too, reading every byte; on S3 the ETag stands for the bytes where it is their md5.

        Raises
        ------
        EnvironmentFault
            The remote cannot be read.
        """
        with self._store(where) as store:
            listing, fault = self._listing(where, store)
            faults = [] if fault is None else [fault]
            if fault is not None and where is Where.REMOTE:
                # The cache may know what else should be there.
                with self._store(Where.CACHE) as cache:
                    listing, _ = self._listing(Where.CACHE, cache)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                states = pool.map(lambda md5: store.state_of(md5, content), listing.values())
                for k, ((path, md5), state) in enumerate(zip(listing.items(), states, strict=True)):
                    if state is not None:
                        faults.append(Fault(where, state, path, store.relative(md5)))
                    report(f"{where}: {path}", (k + 1) / len(listing))
            return faults

    def mend_remote(self, faults: list[Fault], report: Progress) -> None:
        """Put the cache's own copy in place of every missing or corrupted object of the remote."""
        with self._store(Where.CACHE) as cache, self._store(Where.REMOTE) as remote:
            listing, _ = self._listing(Where.CACHE, cache)
            md5s = {**listing, ".": self.pinned.md5}
            # The list of files goes last: where it is, DVC believes that everything is.
            for k, fault in enumerate(sorted(faults, key=lambda f: f.path == ".")):
                remote.put(cache.address(md5s[fault.path]), md5s[fault.path])
                report(f"sent {fault.path}", (k + 1) / len(faults))

    def forget(self, fault: Fault) -> None:
        """Remove a corrupted object from the cache, so that DVC fetches it again."""
        with self._store(Where.CACHE) as cache:
            cache.remove(fault.object)

    def _listing(self, where: Where, store: _Store) -> tuple[dict[str, str], Fault | None]:
        data = store.read(self.pinned.md5)
        if data is None or _md5(data) + ".dir" != self.pinned.md5:
            state = ObjectState.MISSING if data is None else ObjectState.CORRUPTED
            return {}, Fault(where, state, ".", store.relative(self.pinned.md5))
        try:
            return {str(e["relpath"]): str(e["md5"]) for e in json.loads(data)}, None
        except (ValueError, TypeError, KeyError, RecursionError):
            # Its md5 is the pinned one: it was no list when it was pinned.
            return {}, Fault(where, ObjectState.CORRUPTED, ".", store.relative(self.pinned.md5))

    @contextmanager
    def _store(self, where: Where) -> Iterator[_Store]:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        if where is Where.REMOTE:
            preflight(remote_of(self.repository), write=False)
        refuse_programs(self.repository)
        try:
            with guarded(), Repo(str(self.repository)) as repo:
                yield _Store(repo.cloud.get_remote_odb() if where is Where.REMOTE else repo.cache.local)
        except (DvcException, OSError, ImportError) as error:
            # ImportError: a kind of remote, as ssh, whose package is not installed.
            raise EnvironmentFault(f"the {where} of {self.repository} cannot be read: {first_line(error)}") from None


def sentence(name: str, faults: list[Fault]) -> str:
    """Return one sentence that names the first faulty object and says how many there are."""
    first = faults[0]
    what = "the list of its files" if first.path == "." else first.path
    more = f", the first of {len(faults)} faulty objects" if len(faults) > 1 else ""
    return f"dataset {name}: {what} is {first.state} in the {first.where} ({first.object}){more}"


class _Store:
    """DVC's object database, with the few questions that are asked here."""

    def __init__(self, odb: Any) -> None:
        self.fs, self.odb = odb.fs, odb

    def address(self, md5: str) -> str:
        return str(self.odb.oid_to_path(md5))

    def relative(self, md5: str) -> str:
        return str(PurePosixPath("files/md5", md5[:2], md5[2:]))

    def read(self, md5: str) -> bytes | None:
        try:
            with self.fs.open(self.address(md5), "rb") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def state_of(self, md5: str, content: bool) -> ObjectState | None:
        address = self.address(md5)
        try:
            info = self.fs.info(address)
            if not content or str(info.get("ETag", "")).strip('"') == md5:
                return None
            with self.fs.open(address, "rb") as stream:
                digest = hashlib.md5(usedforsecurity=False)
                while block := stream.read(_CHUNK_BYTES):
                    digest.update(block)
        except FileNotFoundError:
            return ObjectState.MISSING
        return None if digest.hexdigest() == md5 else ObjectState.CORRUPTED

    def remove(self, relative: str) -> None:
        # The cache's address ends where an object's path begins.
        address = str(PurePosixPath(self.odb.path, *PurePosixPath(relative).parts[2:]))
        if self.fs.exists(address):
            self.fs.remove(address)

    def put(self, source: str, md5: str) -> None:
        self.fs.makedirs(self.fs.parent(self.address(md5)), exist_ok=True)
        self.fs.put_file(source, self.address(md5))


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
