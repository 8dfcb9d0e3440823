"""How does a transaction reach the database, and what becomes of its faults?

`Database.write` and `Database.read` run one function in one transaction. What may pass by itself (a locked database, a serialisation
failure, a lost connection, a race that a unique index decided) is tried again with growing pauses for `patience_s`, then becomes
CatalogUnavailable; the function must therefore have no effect outside the transaction. Errors of ckptstore that the function raises
roll back and pass through.

SQLite: WAL, synchronous=FULL (a commit is on disk when it returns), BEGIN IMMEDIATE for writes, so that no transaction fails half-way
for a lock; the writers of one process queue, which is fair where SQLite's busy handler is not, and those that wait share a commit.
PostgreSQL: psycopg 3, a small pool, READ COMMITTED; transactions take their row locks first. Thread-safe.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import stamina
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection

from ckptstore.catalog.faults import Transient, postgresql_fault, sqlite_fault
from ckptstore.catalog.group_commit import GroupCommit
from ckptstore.catalog.reserve import Reserve
from ckptstore.errors import CatalogUnavailable, ConfigInvalid
from ckptstore.mounts import refuse_network_filesystem

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
#: How long a transaction is tried again before the catalog counts as unavailable.
PATIENCE_S = 15.0
#: Connections to PostgreSQL per daemon: its catalog executor has four threads, and a few more callers.
POOL_SIZE = 8


def _prepare_sqlite(connection: DBAPIConnection, record: Any) -> None:
    connection.isolation_level = None   # transactions are begun by the event below, not by the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864", "cache_size=-16384"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


class Database:
    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self._reserve: Reserve | None = None
        try:
            place = make_url(url)
        except exc.ArgumentError as error:
            raise ConfigInvalid(str(error), operation="open catalog", subject=url) from error
        self.name = place.render_as_string(hide_password=True)
        if place.get_backend_name() == "sqlite":
            self._engine = self._open_sqlite(place)
        elif place.get_backend_name() == "postgresql":
            self._engine = self._open_postgresql(place)
        else:
            raise ConfigInvalid("a catalog is sqlite:////path or postgresql://…", operation="open catalog", subject=self.name)
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        # Counts of inserted rows decide what follows, too; psycopg forgets them unless asked.
        self._writer = self._engine.execution_options(writes=True, preserve_rowcount=True)
        self.group_commit = GroupCommit(self._writing, patience_s) if self.is_sqlite else None

    def _open_sqlite(self, place: URL) -> Engine:
        file = Path(place.database or "")
        if not file.is_absolute():
            raise ConfigInvalid("a SQLite catalog needs an absolute path", operation="open catalog", subject=self.name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            refuse_network_filesystem(file)
            self._reserve = Reserve(file)
        except OSError as error:
            raise CatalogUnavailable(str(error), operation="open catalog", subject=str(file)) from error
        engine = create_engine(place.set(drivername="sqlite"), connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _open_postgresql(self, place: URL) -> Engine:
        limits = f"-c lock_timeout={int(BUSY_TIMEOUT_S * 1000)} -c idle_in_transaction_session_timeout=60000"
        try:
            return create_engine(
                place.set(drivername="postgresql+psycopg"),
                isolation_level="READ COMMITTED",
                pool_size=POOL_SIZE,
                max_overflow=0,
                pool_timeout=self.patience_s,
                connect_args={"connect_timeout": 5, "options": limits, "application_name": "ckptstore"},
            )
        except ModuleNotFoundError as error:
            hint = "install ckptstore[postgres]"
            raise ConfigInvalid(f"PostgreSQL needs {error.name}", operation="open catalog", subject=self.name, hint=hint) from error

    def write(self, operation: str, work: Callable[[Connection], T], subject: str | None = None) -> T:
        """Run `work` in one transaction that is durable when this returns."""
        result = self._patiently(operation, subject, lambda: self._write_once(work))
        if self._reserve is not None:
            self._reserve.restore()
        return result

    def read(self, operation: str, work: Callable[[Connection], T], subject: str | None = None) -> T:
        """Run `work` in one transaction that sees one state of the database (PostgreSQL: one per statement)."""
        return self._patiently(operation, subject, lambda: self._read_once(work))

    def close(self) -> None:
        self._engine.dispose()

    def _patiently(self, operation: str, subject: str | None, once: Callable[[], T]) -> T:
        tries = stamina.retry_context(
            on=Transient, attempts=None, timeout=self.patience_s, wait_initial=0.01, wait_max=0.5, wait_jitter=0.02
        )
        try:
            for attempt in tries:
                with attempt:
                    return once()
        except Transient as error:
            raise CatalogUnavailable(str(error), operation=operation, subject=subject or self.name, hint=error.hint) from error
        raise AssertionError("the retries ended with neither a result nor an error")

    def _write_once(self, work: Callable[[Connection], T]) -> T:
        if self.group_commit is not None:
            return self.group_commit.run(work)
        with self._writing() as connection:
            return work(connection)

    def _read_once(self, work: Callable[[Connection], T]) -> T:
        with self._translated(), self._engine.begin() as connection:
            return work(connection)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                if error.orig.sqlite_errorname == "SQLITE_FULL" and self._reserve is not None and self._reserve.give_up():
                    raise Transient("the disk of the catalog is full; its reserve was given up") from error
                raise sqlite_fault(error.orig) from error
            raise postgresql_fault(error) from error
        except exc.TimeoutError as error:
            raise Transient("no connection of the pool came free") from error
