"""MLflow's SQLite database: it is there as a whole or not at all, whoever is killed while it is made."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from itertools import count
from pathlib import Path
from urllib.parse import quote, unquote

from ctmr.system.files import scratch_folder, written
from ctmr.system.home import sqlite_address
from ctmr.system.locks import locked


def file_of(address: str) -> Path | None:
    """Return the database file of a tracking address; None where it names something else."""
    scheme, _, rest = address.partition(":///")
    return Path(unquote(rest.partition("?")[0])) if scheme == "sqlite" and rest else None


def make(path: Path) -> None:
    """Make the database unless it is there.

    MLflow itself makes its tables one by one in the file that all commands use, and neither goes on with a half-made
    one nor lets two commands make it at once. Here one process makes it under another name. A half-made one of the past
    holds no run yet; it is put aside as ``<name>.half-made-<number>``.

    Raises
    ------
    EnvironmentFault
        The folder cannot be written.
    mlflow.exceptions.MlflowException, sqlalchemy.exc.SQLAlchemyError
        The database cannot be made, for lack of room, say; nothing is left of it.
    """
    if _is_whole(path):
        return
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        if _is_whole(path):
            return
        with written(path):
            if path.exists():
                path.rename(_unused(path))
        with scratch_folder(path) as scratch:
            import mlflow

            # After the import, which sets levels of its own: whoever starts a service is told of no migrations.
            for name in ("mlflow.store.db.utils", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
            mlflow.MlflowClient(sqlite_address(scratch / path.name)).search_experiments(max_results=1)
            with written(path):
                (scratch / path.name).rename(path)


def _is_whole(path: Path) -> bool:
    """True when the tables have a version, which MLflow gives them last; what is damaged is MLflow's affair."""
    if not path.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=1)) as database:
            return database.execute("SELECT version_num FROM alembic_version").fetchone() is not None
    except sqlite3.OperationalError as error:
        return "no such table" not in str(error)
    except sqlite3.DatabaseError:
        return True


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.half-made-{number}") for number in count(1))
    return next(name for name in names if not name.exists())
