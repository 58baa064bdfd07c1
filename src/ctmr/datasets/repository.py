"""The data repository, git + DVC: making it, and committing a dataset to it wholly or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmr.datasets.dvc.commands import TRANSFER_LIMIT_S, CommandFailed, author_environment, dvc, git
from ctmr.datasets.dvc.remotes import check_address, remote_of
from ctmr.errors import CtmrError, EnvironmentFault, InputError
from ctmr.system.git import refuse_option
from ctmr.system.locks import locked

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_REMOTE = "storage"


@dataclass(frozen=True)
class DataRepository:
    """A git + DVC repository of datasets: ``NAME/`` tracked by ``NAME.dvc``, described by ``NAME.json``.

    Attributes
    ----------
    root
        Its folder.
    author
        Environment of commits; empty: what git knows, else a neutral author.
    """

    root: Path
    author: Mapping[str, str]

    @staticmethod
    def open(root: Path, author: Mapping[str, str] | None = None) -> DataRepository:
        """Return an existing repository.

        Raises
        ------
        InputError
            What is there is none.
        """
        if not (root / ".dvc").is_dir() or not (root / ".git").exists():
            raise InputError(f"{root} is no git + DVC repository; `ctmr dataset add` makes one in a new folder")
        return DataRepository(root, author or {})

    @staticmethod
    def make(root: Path, remote: str, endpoint: str = "", author: Mapping[str, str] | None = None) -> DataRepository:
        """Make an empty repository with a default remote; commits nothing.

        Parameters
        ----------
        root
            New or empty folder.
        remote
            Folder, or ``s3://bucket/prefix``.
        endpoint
            Address of an S3 store other than Amazon's.
        """
        check_address(remote, endpoint)
        root.mkdir(parents=True, exist_ok=True, mode=0o700)  # It holds images; who shares it says so by chmod.
        git(root, "init", "--quiet", "--initial-branch=main", environment=author)
        dvc(root, "init", "--quiet")
        from dvc.config import Config

        # Downloaded objects are hashed before they enter the cache; links spare a second copy of every dataset.
        settings = {"url": remote if "://" in remote else os.path.relpath(remote), "verify": True}
        with Config(str(root / ".dvc")).edit("repo") as config:
            config["core"] |= {"remote": _REMOTE, "analytics": False, "autostage": False, "check_update": False}
            config["cache"] |= {"type": ["reflink", "hardlink", "copy"]}
            config["remote"][_REMOTE] = settings | ({"endpointurl": endpoint} if endpoint else {})
        return DataRepository(root, author or {})

    @property
    def head(self) -> str:
        """The current revision; empty before the first commit."""
        try:
            return git(self.root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
        except CommandFailed:
            return ""

    def names(self, revision: str = "HEAD") -> list[str]:
        """Return the datasets of a revision."""
        if not self.head:
            return []
        listed = git(self.root, "ls-tree", "--name-only", "--end-of-options", revision).splitlines()
        return sorted(n.removesuffix(".dvc") for n in listed if n.endswith(".dvc") and n != ".dvc")

    def revisions(self, name: str) -> list[tuple[str, str]]:
        """Return (revision, date) of every commit that changed a dataset, newest first."""
        lines = git(self.root, "log", "--format=%H %cI", "--", f"{name}.dvc", f"{name}.json").splitlines()
        return [(line.split()[0], line.split()[1]) for line in lines]

    def index(self, name: str, revision: str = "HEAD") -> dict[str, Any]:
        """Return a dataset's committed description, empty when it was added by other means."""
        try:
            refuse_option("--revision", revision)
            tree = json.loads(git(self.root, "cat-file", "blob", "--end-of-options", f"{revision}:{name}.json"))
        except (CommandFailed, ValueError, RecursionError):
            return {}
        return dict(tree) if isinstance(tree, dict) else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands of ctmr out, and undo first what a killed one left half done."""
        self._tmp.mkdir(parents=True, exist_ok=True)
        busy = f"another `ctmr dataset` command is at work in {self.root}; wait for it, then try again"
        with locked(self._tmp / "ctmr.lock", busy=busy, mode=0o600):
            self._undo()
            yield

    def staging(self) -> Path:
        """Return a new folder on the repository's disk that git and DVC do not see; only with `locked`."""
        self.discard_staging()
        folder = self._tmp / "ctmr-staging"
        folder.mkdir(parents=True)
        return folder

    def discard_staging(self) -> None:
        """Remove what `staging` made."""
        shutil.rmtree(self._tmp / "ctmr-staging", ignore_errors=True)

    def commit(self, name: str, data: Path, index: Mapping[str, Any], message: str) -> bool:
        """Put a folder in place as a dataset, track and commit it; False when the last commit says all this already.

        Parameters
        ----------
        data
            Folder on the repository's disk; moved.
        index
            Becomes ``NAME.json``; empty: none is written.

        Raises
        ------
        EnvironmentFault
            git or DVC fail, or the disk is full; the repository is as it was.
        """
        ignore = self.root / ".gitignore"
        before = ignore.read_text() if ignore.is_file() else None
        try:
            self._journal.write_text(json.dumps({"name": name, "head": self.head, "gitignore": before}))
            if (self.root / name).exists():
                (self.root / name).rename(self._old)
            data.rename(self.root / name)
            dvc(self.root, "add", "--quiet", name, limit_s=TRANSFER_LIMIT_S)
            if index:
                text = json.dumps(index, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
                (self.root / f"{name}.json").write_text(text, encoding="utf-8")
            # A repository that has no commit yet is all ours.
            ours = (f"{name}.dvc", f"{name}.json", ".gitignore")
            paths = [p for p in ours if self._matters(p)] if self.head else ["."]
            git(self.root, "add", "--", *paths, environment=self.author)
            changed = git(self.root, "diff", "--cached", "--no-ext-diff", "--name-only", "--", *paths).strip()
            if changed:
                author = self.author or author_environment(self.root)
                words = ("commit", "--quiet", "--no-gpg-sign", "--message", message, "--only", "--", *paths)
                git(self.root, *words, environment=author)
        except BaseException as error:
            # Where even this fails (a full disk), the next command does it.
            with suppress(CtmrError, OSError):
                self._undo()
            if isinstance(error, OSError):
                what = f"dataset {name} could not be written to {self.root}: {error.strerror}"
                raise EnvironmentFault(f"{what}; nothing was committed") from None
            if isinstance(error, CtmrError):
                raise EnvironmentFault(f"{error}; nothing was committed") from None
            raise
        self._finish()
        return bool(changed)

    def _undo(self) -> None:
        """Bring back what stood before a commit that did not happen; tidy up after one that did."""
        try:
            journal = json.loads(self._journal.read_text())
        except (OSError, ValueError):
            # None was written, or not wholly: then nothing was touched yet.
            self._finish()
            return
        name = journal["name"]
        if self.head != journal["head"]:
            self._finish()
            return
        paths = [f"{name}.dvc", f"{name}.json", ".gitignore"]
        known = set(git(self.root, "ls-tree", "--name-only", "HEAD", "--", *paths).split()) if self.head else set()
        # What takes space goes first: git needs some.
        if self._old.is_dir() or f"{name}.dvc" not in known:
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in paths:
            if path not in known:
                (self.root / path).unlink(missing_ok=True)
        if self._old.is_dir():
            self._old.rename(self.root / name)
        if self.head:
            git(self.root, "reset", "--quiet", "--", *paths)
        if f"{name}.dvc" in known:
            git(self.root, "checkout", "--quiet", "HEAD", "--", *sorted(known - {".gitignore"}))
        if journal["gitignore"] is not None:
            (self.root / ".gitignore").write_text(journal["gitignore"])
        self._finish()

    def _finish(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)
        self.discard_staging()
        self._journal.unlink(missing_ok=True)

    def _matters(self, path: str) -> bool:
        """Return whether a path is there or was committed: git refuses others."""
        return (self.root / path).exists() or bool(self.head and git(self.root, "ls-tree", "HEAD", "--", path))

    @property
    def _tmp(self) -> Path:
        return self.root / ".dvc" / "tmp"

    @property
    def _journal(self) -> Path:
        return self._tmp / "ctmr-commit.json"

    @property
    def _old(self) -> Path:
        return self._tmp / "ctmr-old"


def same_remote(repository: DataRepository, remote: str, endpoint: str) -> None:
    """Raise InputError when a remote is asked for that an existing repository does not have."""
    check_address(remote, endpoint)
    has = remote_of(repository.root)
    wanted = remote.rstrip("/") if "://" in remote else str(Path(remote).resolve())
    found = has.url.rstrip("/") if "://" in has.url else str(Path(has.url).resolve())
    if (remote and wanted != found) or (endpoint and endpoint != has.settings.get("endpointurl")):
        raise InputError(f"{repository.root} has the remote {found} already; leave --remote out, or change it with DVC")
