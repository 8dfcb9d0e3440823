"""How does a test start some hundred daemons without importing the server some hundred times?

A daemon here is forked from a process that has imported the server already (multiprocessing's fork server), with failpoints armed by
argument instead of by environment. Everything after the import is the real thing: its own process, lock, sockets, threads, catalog; it
dies of SIGKILL, and what it leaves is on disk. Only the pauses between the turns of its upkeep are shorter, so that a story in which
something is deleted and evicted takes a second.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

import httpx

from ckptstore import failpoints
from ckptstore.config import read_settings
from ckptstore.errors import CkptStoreError

#: How long a start may take on a busy machine before a test gives up, in seconds.
START_TIMEOUT_S = 60.0
#: The turns of `Upkeep`, and the drain's look at its queue, in a forked daemon.
TURN_S = 0.1

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["ckptstore_server.daemon", "ckptstore_server.rebuild_command", "ckptstore_tiers.fsspec_tier", "fsspec.implementations.local"]
)


class Rigging(Protocol):
    """What else is set up in the daemon's process before it runs. It crosses by pickle; leaving the stack undoes it."""

    def __call__(self, stack: ExitStack) -> None: ...


class ForkedDaemon:
    """The same verbs as `tests.daemon_process.DaemonProcess`."""

    def __init__(self, home: Path, *, failpoints: str = "", rigging: Rigging | None = None) -> None:
        self.home = home
        self.failpoints = failpoints
        self._process: ForkServerProcess = _context.Process(
            target=_serve, args=(home, failpoints, rigging), name=f"daemon of {home}", daemon=True
        )

    def start(self) -> ForkedDaemon:
        """Returns when the daemon answers, or is dead."""
        self._process.start()
        self.wait_ready()
        return self

    def start_unready(self) -> ForkedDaemon:
        """Returns at once, for a daemon that is to die while it starts."""
        self._process.start()
        return self

    def wait_ready(self) -> bool:
        """True once it answers, False if it is dead."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.alive and not self._answers():
            assert time.monotonic() < deadline, f"the daemon did not answer in {START_TIMEOUT_S} s:\n{self.log()[-3000:]}"
            time.sleep(0.01)  # the loop's condition is the daemon's answer, not the time that passed
        return self.alive

    def http(self) -> httpx.Client:
        """A plain client of its API socket."""
        socket = read_settings(self.home / "config.toml", home=self.home).api_socket
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://daemon", timeout=60.0)

    def _answers(self) -> bool:
        try:
            with self.http() as http:
                return http.get("/v1/hello").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def alive(self) -> bool:
        return self._process.exitcode is None

    @property
    def was_killed(self) -> bool:
        return self._process.exitcode == -signal.SIGKILL

    def wait_exit(self, timeout_s: float = 60.0) -> int | None:
        """The exit code, negative for a signal; None if it still runs."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def kill(self) -> None:
        if self.alive:
            self._process.kill()
        self._process.join()

    def stop(self, timeout_s: float = 60.0) -> int | None:
        self._process.terminate()
        return self.wait_exit(timeout_s)

    def log(self) -> str:
        return (self.home / "test-daemon.log").read_text("utf-8", "replace")

    def send_kill(self) -> None:
        """From any thread; nothing if it is dead already."""
        if self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> ForkedDaemon:
        return self if self._process.pid is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def run_rebuild(home: Path, *, failpoints: str = "") -> int | None:
    """`ckptstore catalog rebuild` in a process of its own; its exit code, negative for a signal."""
    process = _context.Process(target=_rebuild, args=(home, failpoints), name=f"rebuild of {home}", daemon=True)
    process.start()
    process.join(START_TIMEOUT_S)
    return process.exitcode


def _rebuild(home: Path, armed: str) -> None:
    from ckptstore_server import rebuild_command

    _log_into(home)
    with failpoints.armed(armed):
        rebuild_command.main(home=home, allow_missing=None, delete_unknown=False, as_json=False)


def _log_into(home: Path) -> None:
    log = os.open(home / "test-daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _serve(home: Path, armed: str, rigging: Callable[[ExitStack], None] | None) -> None:
    """The forked process: `python -m ckptstore_server --home HOME`, without the import."""
    from ckptstore_server import drain, upkeep
    from ckptstore_server.daemon import Daemon

    os.setsid()  # Ctrl-C at the terminal is the test's, which ends its daemons itself
    _log_into(home)
    for turn in [name for name in vars(upkeep) if name.endswith("_TURN_S")]:
        setattr(upkeep, turn, TURN_S)
    drain.IDLE_LOOK_S = drain.FIRST_PAUSE_S = TURN_S
    with ExitStack() as stack:
        stack.enter_context(failpoints.armed(armed))
        if rigging is not None:
            rigging(stack)
        try:
            asyncio.run(Daemon(read_settings(home / "config.toml", home=home)).run())
        except CkptStoreError as error:
            print(f"ckptstore: {error}", flush=True)
            raise SystemExit(error.exit_code) from error
