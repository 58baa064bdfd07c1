"""An MLflow database that was moved or copied with its home: its artifacts lie where the home is now."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow notes absolute addresses of artifacts; it has no function that changes them."""
_WAIT_S = 60.0


def lead_home(database: Path, artifacts: Path, experiment: str) -> None:
    """Make addresses of artifacts in the database's own home those of the home that it lies in now.

    Without it, a moved home writes to its old place, and a copied one into the original's.

    Parameters
    ----------
    database
        MLflow's SQLite file; where there is none yet, nothing is done.
    artifacts
        Folder of artifacts of this home.
    experiment
        Name of the experiment whose artifacts lie there.
    """
    here = artifacts.as_uri()
    # A database that MLflow has not finished, or of another layout, is MLflow's to complain of.
    with suppress(sqlite3.Error):
        if not database.is_file():
            return
        with closing(sqlite3.connect(database, timeout=_WAIT_S)) as store:
            row = store.execute("SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)).fetchone()
            before = str(row[0]) if row else here
            if before == here or not before.startswith("file:") or _is_same(before, artifacts):
                return
            with store:
                for table, column in _PLACES:
                    store.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 (names from above)
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )


def _is_same(address: str, folder: Path) -> bool:
    """True when an address is another name of a folder, by a link or a mount."""
    with suppress(OSError):
        return Path(unquote(urlsplit(address).path)).samefile(folder)
    return False
