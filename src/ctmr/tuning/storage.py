"""The database of tuning studies: its address, locks that end with their holder, retries, what trials leave."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ctmr.errors import EnvironmentFault, InputError
from ctmr.system.environment import STUDY_STORAGE
from ctmr.system.locks import is_locked, locked

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

RETRY_S = 120.0
"""How long a database that does not answer is tried again."""
GRACE_S = 60
"""A server that started so recently knows no locks of before; their holders are about to take them again."""
_PAUSE_S = 0.5
_SQLITE_TIMEOUT_S = 60
_KEEPALIVE = "SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 4"
"""The server ends the session, and with it the lock, of a holder whose machine is silent for a minute."""
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

    Attributes
    ----------
    where
        The address without user, password and options.
    storage
        Optuna's.

    Raises
    ------
    InputError
        When the address is none that processes can share.
    DatabaseFault
        When the database does not answer.
    """

    def __init__(self, address: str) -> None:
        import optuna
        import sqlalchemy

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._url = _parse(address)
        parts: dict[str, Any] = {"host": self._url.host, "port": self._url.port, "database": self._url.database}
        self.where = sqlalchemy.URL.create(self._url.get_backend_name(), **parts).render_as_string()
        self._sqlite = self._url.drivername == "sqlite"
        kwargs: dict[str, Any] = {"connect_args": {"timeout": _SQLITE_TIMEOUT_S}}
        if not self._sqlite:
            # Whoever waits must not use up the server's connections; and a lock ends with its connection.
            kwargs = {"poolclass": sqlalchemy.pool.NullPool}
        try:
            self._engine = sqlalchemy.create_engine(self._url, **kwargs)
            self.storage = self.retry(lambda: self._connect(kwargs), 0.0)
        except (ImportError, RuntimeError, OSError) as error:
            raise DatabaseFault(self._unreachable(error)) from None

    def keep(self, study: str, trial: int, files: Mapping[str, bytes]) -> None:
        """Store what a trial leaves beside Optuna's own tables, where polling the study does not read it."""
        table = _kept()
        old = table.delete().where(table.c.study == study, table.c.trial == trial, table.c.name.in_(list(files)))
        rows = [{"study": study, "trial": trial, "name": name, "content": content} for name, content in files.items()]
        with self._engine.begin() as connection:
            connection.execute(old)
            connection.execute(table.insert(), rows)

    def kept(self, study: str, trial: int) -> dict[str, bytes]:
        """Return what a trial left."""
        table = _kept()
        with self._engine.begin() as connection:
            rows = connection.execute(table.select().where(table.c.study == study, table.c.trial == trial)).all()
        return {str(row.name): bytes(row.content) for row in rows}

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[Callable[[], object]]:
        """Hold the lock of a name against all others; it is released when this process dies.

        Yields
        ------
        Callable
            Raises `sqlalchemy.exc.SQLAlchemyError` when the lock was lost with the connection to the server.
        """
        import sqlalchemy

        if self._sqlite:
            if not self._file(name).parent.is_dir():
                raise DatabaseFault(self._unreachable(NotADirectoryError("its folder is not there")))
            with locked(self._file(name)):
                yield lambda: None
            return
        connection = self._engine.connect()
        try:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(sqlalchemy.text(_KEEPALIVE))
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _key(name)})
            yield lambda: connection.execute(sqlalchemy.text("SELECT 1"))
        finally:
            # A server that went down meanwhile has released it.
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                connection.close()

    @contextlib.contextmanager
    def sign_of_life(self, name: str) -> Iterator[Callable[[], object]]:
        """Hold the lock of a name that is used once, so that others can ask whether this process `lives`."""
        with self.lock(name) as check:
            yield check
        if self._sqlite:
            self._file(name).unlink(missing_ok=True)

    def lives(self, name: str) -> bool:
        """True when whoever has `sign_of_life` under a name has not ended, as far as can be known."""
        import sqlalchemy

        if self._sqlite:
            if is_locked(self._file(name)):
                return True
            self._file(name).unlink(missing_ok=True)
            return False
        asked = (
            "SELECT pg_try_advisory_xact_lock(:key), extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"
        )
        with self._engine.begin() as connection:
            free, age_s = connection.execute(sqlalchemy.text(asked), {"key": _key(name)}).one()
        return not free or age_s < GRACE_S

    def retry(self, call: Callable[[], T], for_s: float | None = None) -> T:
        """Call until the database answers.

        Parameters
        ----------
        for_s
            Seconds; default `RETRY_S`.

        Raises
        ------
        DatabaseFault
            When it did not for so long.
        """
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        end = time.monotonic() + (RETRY_S if for_s is None else for_s)
        while True:
            try:
                return call()
            except (StorageInternalError, SQLAlchemyError) as error:
                if time.monotonic() >= end:
                    raise DatabaseFault(self._unreachable(error.__cause__ or error)) from None
            time.sleep(_PAUSE_S)

    def _connect(self, kwargs: dict[str, Any]) -> optuna.storages.RDBStorage:
        import optuna

        # Optuna fills in a template, and an address is none.
        url = self._url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        with self.lock("tables"):
            storage = optuna.storages.RDBStorage(url, engine_kwargs=kwargs)
            _kept().metadata.create_all(self._engine)
            return storage

    def _file(self, name: str) -> Path:
        return Path(f"{self._url.database}.{name}.lock")

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
    """Return the table of what trials leave: bytes by study, Optuna's number of the trial, and a name."""
    import sqlalchemy
    from sqlalchemy import Column

    return sqlalchemy.Table(
        "ctmr_trial_evidence",
        sqlalchemy.MetaData(),
        Column("study", sqlalchemy.String(32), primary_key=True),
        Column("trial", sqlalchemy.Integer, primary_key=True, autoincrement=False),
        Column("name", sqlalchemy.String(64), primary_key=True),
        Column("content", sqlalchemy.LargeBinary, nullable=False),
    )


def _key(name: str) -> int:
    """Return PostgreSQL's number of a lock."""
    return int.from_bytes(hashlib.sha256(f"ctmr {name}".encode()).digest()[:8], "big", signed=True)
