"""Records of experiments, pipelines, their versions and runs, in one SQLite file that outlives the server."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from ctmr.errors import EnvironmentFault
from ctmr.kubeflow.local_api.faults import ApiError, FaultCode, not_found
from ctmr.system.files import identity
from ctmr.system.processes import Process

Document = dict[str, Any]
LAYOUT = 1
_FILE = "file"
_SCHEMA = """
CREATE TABLE documents (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    id TEXT NOT NULL UNIQUE,
    parent TEXT NOT NULL,
    name TEXT NOT NULL,
    document TEXT NOT NULL,
    specification TEXT NOT NULL,
    process TEXT NOT NULL
);
CREATE UNIQUE INDEX names ON documents (kind, parent, name) WHERE kind != 'run';
"""


class RecordKind(StrEnum):
    """Kinds of records."""

    EXPERIMENT = "experiment"
    PIPELINE = "pipeline"
    VERSION = "pipeline version"
    RUN = "run"


class RunState(StrEnum):
    """V2beta1RuntimeState, as far as this server uses it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELING = "CANCELING"
    CANCELED = "CANCELED"

    @property
    def final(self) -> bool:
        """True when it never changes again."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELED)


class Records:
    """The records of one home.

    A record is the document that the API hands out, so that there is no second form to keep in step; what is too
    large for lists (a pipeline's specification) or nobody else's business (a child process) stands beside it.

    Parameters
    ----------
    path
        SQLite file; made, readable by its owner only.

    Raises
    ------
    EnvironmentFault
        The file cannot be opened, is damaged, or another version of this program wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._path = path
        try:
            # SQLite gives its journal the rights of the file.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                layout = self._database.execute("PRAGMA user_version").fetchone()[0]
                if layout == 0:
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version={LAYOUT}")
        except (OSError, sqlite3.Error) as error:
            raise EnvironmentFault(f"the records in {path} cannot be opened: {error}; move the file away") from None
        if layout not in (0, LAYOUT):
            raise EnvironmentFault(
                f"the records in {path} have layout {layout}, this ctmr writes {LAYOUT}; move the file away"
            )
        try:
            self._look_through()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, sqlite3.Error) as error:
            self._database.close()
            raise EnvironmentFault(
                f"the records in {path} are damaged ({type(error).__name__}: {str(error)[:80]}); move the file away"
            ) from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def add(self, kind: RecordKind, key: str, document: Document, *, parent: str = "", specification: str = "") -> None:
        """Add a record.

        Raises
        ------
        ApiError
            There is one of that name already; runs may share names.
        """
        name = document["display_name"]
        with self._transaction():
            taken = "SELECT 1 FROM documents WHERE kind=? AND parent=? AND name=?"
            if kind is not RecordKind.RUN and self._database.execute(taken, (kind, parent, name)).fetchone():
                raise ApiError(FaultCode.ALREADY_EXISTS, f"there is a {kind} of the name {name!r} already")
            self._database.execute(
                "INSERT INTO documents (kind, id, parent, name, document, specification, process) "
                "VALUES (?, ?, ?, ?, ?, ?, '')",
                (kind, key, parent, name, json.dumps(document), specification),
            )

    def get(self, kind: RecordKind, key: str) -> Document:
        """Return a record; ApiError when there is none."""
        return self._load(kind, key)[0]

    def specification(self, kind: RecordKind, key: str) -> Document:
        """Return the specification beside a run or version; ApiError when there is no such record."""
        return self._load(kind, key)[1]

    def all(self, kind: RecordKind, parent: str | None = None) -> list[tuple[int, Document]]:
        """Return (position, record) in order of creation, of one parent or of all."""
        with self._lock:
            rows = self._database.execute(
                "SELECT position, document FROM documents WHERE kind=? AND (? IS NULL OR parent=?) ORDER BY position",
                (kind, parent, parent),
            ).fetchall()
        return [(position, json.loads(text)) for position, text in rows]

    def change(self, kind: RecordKind, key: str, change: Callable[[Document], None]) -> Document:
        """Change a record in place and return it; what `change` raises leaves it as it was."""
        with self._transaction():
            document = self.get(kind, key)
            change(document)
            self._write(key, document)
        return document

    def remove(self, kind: RecordKind, key: str) -> None:
        """Remove a record and what belongs to it; ApiError when there is none."""
        with self._transaction():
            self.get(kind, key)
            self._database.execute("DELETE FROM documents WHERE kind=? AND id=?", (kind, key))
            if kind is RecordKind.PIPELINE:
                self._database.execute("DELETE FROM documents WHERE kind=? AND parent=?", (RecordKind.VERSION, key))

    def move(self, run: str, before: RunState, after: RunState, **more: Any) -> bool:
        """Move a run from one state to another, with its history; False, and nothing changed, when it is in a third.

        Parameters
        ----------
        more
            Further fields of the record.
        """
        with self._transaction():
            document = self.get(RecordKind.RUN, run)
            if document["state"] != before:
                return False
            moment = now()
            document |= {"state": after, **more}
            document["state_history"].append({"update_time": moment, "state": after})
            if after.final:
                document["finished_at"] = moment
                self._database.execute("UPDATE documents SET process='' WHERE id=?", (run,))
            self._write(run, document)
        return True

    def first_pending(self) -> str | None:
        """Return the run that waits longest."""
        with self._lock:
            row = self._database.execute(
                "SELECT id FROM documents WHERE kind=? AND json_extract(document, '$.state')=? ORDER BY position",
                (RecordKind.RUN, RunState.PENDING),
            ).fetchone()
        return row[0] if row else None

    def set_process(self, run: str, process: Process) -> None:
        """Note the child process of a run."""
        noted = json.dumps(asdict(process) | {_FILE: identity(self._path)})
        with self._transaction():
            self._database.execute("UPDATE documents SET process=? WHERE id=?", (noted, run))

    def process(self, run: str) -> Process | None:
        """Return the child process of a run that has one; in a copied home it is the original's, and none."""
        with self._lock:
            row = self._database.execute("SELECT process FROM documents WHERE id=?", (run,)).fetchone()
        noted = json.loads(row[0]) if row and row[0] else {}
        if noted.pop(_FILE, None) not in (None, identity(self._path)):
            return None
        return Process(**noted) if noted else None

    def _look_through(self) -> None:
        """Read what a start and every list read, so that damage is found before anything is served."""
        for kind in RecordKind:
            for _, document in self.all(kind):
                document["display_name"].encode()
                if kind is RecordKind.RUN:
                    RunState(document["state"])
                    document["state_history"].copy()
                    self.process(document["run_id"])
        self.first_pending()

    def _load(self, kind: RecordKind, key: str) -> tuple[Document, Document]:
        with self._lock:
            row = self._database.execute(
                "SELECT document, specification FROM documents WHERE kind=? AND id=?", (kind, key)
            ).fetchone()
        if row is None:
            raise not_found(kind, key)
        return json.loads(row[0]), json.loads(row[1] or "{}")

    def _write(self, key: str, document: Document) -> None:
        self._database.execute("UPDATE documents SET document=? WHERE id=?", (json.dumps(document), key))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def now() -> str:
    """Return the present time as the API writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
