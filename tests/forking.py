"""How does a test start some hundred daemons without importing the server some hundred times?

A daemon here is forked from a process that has imported the server already (multiprocessing's fork server). Everything after the import
is the real thing: its own process, session, lock, sockets, threads, catalog; it dies of SIGKILL, and what it leaves is on disk. It also
dies with the test run. The pauses between the turns of its upkeep can be made shorter, so that a story in which something is deleted and
evicted takes a second. What comes before (`python -m ckptstore_server`, an auto-start) is tested in tests/e2e.

Command lines are forked in the same way (`tests.e2e.shell`), and so are programs that import torch (`Program`).
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from ckptstore import failpoints
from ckptstore.config import read_settings
from ckptstore.errors import CkptStoreError

#: `prctl`'s option that has the kernel end a process with its parent.
_PARENT_DEATH_SIGNAL = 1
#: The duties of upkeep that no test waits for: where the others hurry, each of these has its turn a tenth as often.
_UNHURRIED = {"MEMORY_TURN_S", "IDLE_TURN_S", "COPIES_TURN_S", "SCRUB_TURN_S", "READERS_TURN_S", "TRASH_TURN_S"}

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "ckptstore_server.daemon",
        "ckptstore_server.rebuild_command",
        "ckptstore_client.cli.main",
        "ckptstore_client.store",
        "ckptstore_client.connecting",
        "ckptstore_client.local",
        "torch.distributed",
        "ckptstore_tiers.s3_tier",
        "ckptstore_tiers.fsspec_tier",
        "fsspec.implementations.local",
        "sqlalchemy.dialects.sqlite.pysqlite",
        "sqlalchemy.dialects.postgresql.psycopg",
        "tests.frozen",  # the last: it freezes what the others have imported
    ]
)


class Rigging(Protocol):
    """What else is set up in the daemon's process before it runs. It crosses by pickle; leaving the stack undoes it."""

    def __call__(self, stack: ExitStack) -> None: ...


def serve(home: Path, armed: str, environment: dict[str, str], rigging: Rigging | None, turn_s: float | None) -> None:
    """In the forked process: what `python -m ckptstore_server --home HOME` does, but for the import.

    `turn_s`: for the turns of `Upkeep`, and the drain's look at its queue; None for the usual ones.
    """
    from ckptstore_server import drain, upkeep
    from ckptstore_server.daemon import Daemon

    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    os.setsid()  # Ctrl-C at the terminal is the test's, which ends its daemons itself
    log_into(home)
    faulthandler.enable()
    os.environ.clear()  # the fork server's is that of whichever test started it
    os.environ.update(environment)
    if turn_s is not None:
        for turn in [name for name in vars(upkeep) if name.endswith("_TURN_S")]:
            setattr(upkeep, turn, turn_s * 10 if turn in _UNHURRIED else turn_s)
        drain.IDLE_LOOK_S = drain.FIRST_PAUSE_S = turn_s
    with ExitStack() as stack:
        stack.enter_context(failpoints.armed(armed))
        if rigging is not None:
            rigging(stack)
        try:
            asyncio.run(Daemon(read_settings(home / "config.toml" if (home / "config.toml").exists() else None, home=home)).run())
        except CkptStoreError as error:
            print(f"ckptstore: {error}", flush=True)
            raise SystemExit(error.exit_code) from error


def rebuild(home: Path, armed: str, rigging: Rigging | None) -> None:
    """In the forked process: `ckptstore catalog rebuild`."""
    from ckptstore_server import rebuild_command

    log_into(home)
    with ExitStack() as stack:
        stack.enter_context(failpoints.armed(armed))
        if rigging is not None:
            rigging(stack)
        rebuild_command.main(home=home, allow_missing=None, allow_stale=None, delete_unknown=False, as_json=False)


class Program:
    """A forked process that runs a Python program, or a command line; with what tests use of `subprocess.Popen`."""

    def __init__(
        self, program: Path | None, arguments: Sequence[str | Path], environment: dict[str, str], cwd: str | Path | None = None
    ) -> None:
        """`program`: None for the command line."""
        (out, theirs_out), (err, theirs_err) = os.pipe(), os.pipe()
        self.stdout, self.stderr = (os.fdopen(stream, encoding="utf-8", errors="replace") for stream in (out, err))
        with Connection(theirs_out, readable=False) as to_out, Connection(theirs_err, readable=False) as to_err:
            told = (program, [*map(str, arguments)], environment, cwd, to_out, to_err)
            self._process = CONTEXT.Process(target=_run, args=told, daemon=True)
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float | None = None) -> int:
        self._process.join(timeout_s)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout_s or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _run(
    program: Path | None, arguments: list[str], environment: dict[str, str], cwd: str | Path | None, out: Connection, err: Connection
) -> None:
    """In the forked process."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    for stream, number in ((out, 1), (err, 2)):
        os.dup2(stream.fileno(), number)
        stream.close()
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    try:
        if program is None:
            from ckptstore_client.cli import main

            sys.argv = ["ckptstore", *arguments]
            main.main()
        else:
            sys.argv = [str(program), *arguments]
            sys.path.insert(0, str(program.parent))
            runpy.run_path(str(program), run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def log_into(home: Path) -> None:
    log = os.open(home / "test-daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
