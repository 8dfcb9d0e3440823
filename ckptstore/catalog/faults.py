"""What went wrong in the database, in this catalog's terms? What may pass by itself is Transient, and is tried again; the rest is told."""

from __future__ import annotations

import sqlite3

from sqlalchemy import exc

from ckptstore.errors import CatalogUnavailable

#: SQLSTATEs that a new try can cure: serialisation, deadlock, lock timeout, too many connections, shutdown, starting up.
_TRANSIENT_STATES = frozenset({"40001", "40P01", "55P03", "53300", "57P01", "57P02", "57P03", "25006"})


class Transient(Exception):
    """A fault that may pass: the transaction was rolled back and can be tried again."""

    def __init__(self, why: str, hint: str | None = None) -> None:
        super().__init__(why)
        self.hint = hint


class Race(Transient):
    """Another transaction did the same at the same time; a new try sees what it did."""


def sqlite_fault(error: sqlite3.Error) -> Exception:
    code = getattr(error, "sqlite_errorname", "") or ""
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Transient("the database is locked by another process", "end the process that holds it (a backup, a shell), then try again")
    if code.startswith("SQLITE_CONSTRAINT"):
        return Race(str(error))
    hints = {
        "SQLITE_FULL": "the disk of the catalog is full: free space there",
        "SQLITE_CORRUPT": "the database file is damaged: move it away and run `ckptstore catalog rebuild`",
        "SQLITE_NOTADB": "the file is no SQLite database: move it away and run `ckptstore catalog rebuild`",
        "SQLITE_READONLY": "the catalog's file system or file is read-only",
        "SQLITE_CANTOPEN": "the catalog's folder is missing or may not be entered",
    }
    hint = next((text for name, text in hints.items() if code.startswith(name)), "look at the disk that holds the catalog")
    return CatalogUnavailable(str(error), operation="use catalog", hint=hint)


def postgresql_fault(error: exc.DBAPIError) -> Exception:
    state = getattr(error.orig, "sqlstate", None)
    why = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    if isinstance(error, exc.IntegrityError):
        return Race(why)
    if state in _TRANSIENT_STATES or (state or "08").startswith("08") or error.connection_invalidated:
        return Transient(why, "look whether the PostgreSQL server runs and who holds its locks")
    return CatalogUnavailable(why, operation="use catalog", hint="look at the log of the PostgreSQL server")
