"""The database of tuning studies: its address, a lock that dies with its holder, patience, what trials leave."""

from __future__ import annotations

import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ctmr.errors import EnvironmentFault, InputError
from ctmr.system.environment import STUDY_STORAGE
from ctmr.system.locks import locked

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

HEARTBEAT_S = 10
GRACE_S = 60
"""A worker on another machine that was silent for so long is dead."""
PATIENCE_S = 120.0
"""How long a worker bears a database that does not answer."""
_RETRY_S = 0.5
_SQLITE_TIMEOUT_S = 60
_LOCK_S = 600
"""The longest that anybody needs a lock."""
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg2", "postgres": "postgresql+psycopg2"}
"""What an address names → the driver that is installed with ctmr."""

T = TypeVar("T")


class DatabaseFault(EnvironmentFault):
    """The study's database does not answer."""


class Database:
    """Optuna's tables in SQLite or PostgreSQL.

    Parameters
    ----------
    address
        ``sqlite:///FILE`` or ``postgresql://…``.
    patience_s
        How long to wait for its first answer.

    Attributes
    ----------
    where
        The address without user, password and options.
    storage
        Optuna's, with a heartbeat.

    Raises
    ------
    InputError
        When the address is none that workers can share.
    DatabaseFault
        When the database does not answer.
    """

    def __init__(self, address: str, patience_s: float = 0.0) -> None:
        import optuna
        import sqlalchemy

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._url = _parse(address)
        self.where = f"{self._url.get_backend_name()}://{_host(self._url)}/{self._url.database}"
        self._sqlite = self._url.drivername == "sqlite"
        kwargs: dict[str, Any] = {"connect_args": {"timeout": _SQLITE_TIMEOUT_S}}
        if not self._sqlite:
            # Many waiting workers must not use up the server's connections.
            kwargs = {"poolclass": sqlalchemy.pool.NullPool}
        try:
            self._engine = sqlalchemy.create_engine(self._url, **kwargs)
            self.storage = self.retry(lambda: self._connect(kwargs), patience_s)
        except (ImportError, RuntimeError, OSError) as error:
            raise DatabaseFault(self._unreachable(error)) from None

    @property
    def is_young(self) -> bool:
        """True while a server has not run for long enough that a worker elsewhere must have been heard of."""
        import sqlalchemy

        if self._sqlite:
            return False
        asked = sqlalchemy.text("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
        with self._engine.begin() as connection:
            return float(connection.execute(asked).scalar_one()) < GRACE_S

    def keep(self, trial: int, files: Mapping[str, bytes]) -> None:
        """Store what a trial leaves beside Optuna's own tables, where polling the study does not read it."""
        table = _kept()
        with self._engine.begin() as connection:
            connection.execute(table.delete().where(table.c.trial_id == trial, table.c.name.in_(list(files))))
            for name, content in files.items():
                connection.execute(table.insert().values(trial_id=trial, name=name, content=content))

    def kept(self, trial: int) -> dict[str, bytes]:
        """Return what a trial left."""
        table = _kept()
        with self._engine.begin() as connection:
            rows = connection.execute(table.select().where(table.c.trial_id == trial)).all()
        return {str(row.name): bytes(row.content) for row in rows}

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of a name against all other processes; it is released when this process dies."""
        if self._sqlite:
            with locked(Path(f"{self._url.database}.{name}.lock")):
                yield
            return
        import sqlalchemy

        key = int.from_bytes(hashlib.sha256(f"ctmr {name}".encode()).digest()[:8], "big", signed=True)
        with self._engine.begin() as connection:
            # A holder whose machine vanished does not close its connection.
            connection.execute(sqlalchemy.text(f"SET LOCAL idle_in_transaction_session_timeout = '{_LOCK_S}s'"))
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield

    def retry(self, call: Callable[[], T], patience_s: float | None = None) -> T:
        """Call until the database answers.

        Parameters
        ----------
        patience_s
            Default `PATIENCE_S`.

        Raises
        ------
        EnvironmentFault
            When it did not for so long.
        """
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        end = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
        while True:
            try:
                return call()
            except (StorageInternalError, SQLAlchemyError) as error:
                if time.monotonic() >= end:
                    raise DatabaseFault(self._unreachable(error.__cause__ or error)) from None
            time.sleep(_RETRY_S)

    def _connect(self, kwargs: dict[str, Any]) -> optuna.storages.RDBStorage:
        import optuna

        # Optuna fills in a template, and an address is none.
        url = self._url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        with warnings.catch_warnings(), self.lock("tables"):
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                url, engine_kwargs=kwargs, heartbeat_interval=HEARTBEAT_S, grace_period=GRACE_S
            )
            _kept().metadata.create_all(self._engine)
            return storage

    def _unreachable(self, error: BaseException) -> str:
        said = (str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__])[0]
        # libpq takes a password among the options too.
        for secret in (self._url.password, *self._url.normalized_query.get("password", ())):
            said = said.replace(str(secret), "***") if secret else said
        return (
            f"the study's database at {self.where} cannot be used: {said[:300]}; start it, or let {STUDY_STORAGE} "
            "name another"
        )


def _parse(address: str) -> sqlalchemy.URL:
    """Return an address in parts; no part of a wrong one is repeated, it may hold a password."""
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError

    allowed = f"{STUDY_STORAGE} must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        url = sqlalchemy.make_url(address)
    except ArgumentError:
        raise InputError(f"{allowed}; what it holds is no address") from None
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.drivername not in _DRIVERS.values():
        raise InputError(f"{allowed}; it begins with {url.drivername}://")
    if url.database in (None, "", ":memory:"):
        raise InputError(f"{allowed}; it names no {'file' if url.drivername == 'sqlite' else 'database'}")
    return url


@cache
def _kept() -> sqlalchemy.Table:
    """Return the table of what trials leave: bytes by Optuna's id of the trial and a name."""
    import sqlalchemy
    from sqlalchemy import Column

    return sqlalchemy.Table(
        "ctmr_trial_files",
        sqlalchemy.MetaData(),
        Column("trial_id", sqlalchemy.Integer, primary_key=True, autoincrement=False),
        Column("name", sqlalchemy.String(64), primary_key=True),
        Column("content", sqlalchemy.LargeBinary, nullable=False),
    )


def _host(url: sqlalchemy.URL) -> str:
    return (url.host or "") + (f":{url.port}" if url.port else "")
