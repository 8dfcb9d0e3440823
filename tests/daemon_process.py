"""A real daemon in a process of its own, for tests: started, killed, restarted, with failpoints if asked."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import httpx

from ckptstore.config import read_settings
from tests import forking
from tests.until import until

#: How long a start may take on a busy machine before a test gives up, in seconds.
START_TIMEOUT_S = 60.0


def write_config(home: Path, *, tiers: list[dict[str, Any]], **settings: Any) -> Path:
    """A configuration file in `home`; values are strings, numbers or booleans, `memory` may be a dict."""
    home.mkdir(parents=True, exist_ok=True)

    def value(given: object) -> str:
        if isinstance(given, bool):
            return str(given).lower()
        if isinstance(given, dict):
            return "{ " + ", ".join(f"{key} = {value(item)}" for key, item in given.items()) + " }"
        return str(given) if isinstance(given, int | float) else '"' + str(given).replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = [f"{key} = {value(given)}" for key, given in settings.items()]
    for tier in tiers:
        lines += ["", "[[tiers]]", *(f"{key} = {value(given)}" for key, given in tier.items())]
    file = home / "config.toml"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def api_of(home: Path) -> httpx.Client:
    """A plain client of the API socket of a home's daemon."""
    file = home / "config.toml"
    socket = read_settings(file if file.exists() else None, home=home).api_socket
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(socket), verify=False), base_url="http://daemon", timeout=60.0)


class DaemonProcess:
    """A daemon, forked as `tests.forking` tells. Ended by `kill`, `stop` or leaving the `with` block; it may be started again."""

    turn_s: float | None = None  # of its upkeep; None: the usual ones

    def __init__(
        self, home: Path, *, failpoints: str = "", environment: dict[str, str] | None = None, rigging: forking.Rigging | None = None
    ) -> None:
        self.home = home
        self.failpoints = failpoints
        self._environment = environment or {}
        self._rigging = rigging
        self._process: ForkServerProcess | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def log(self) -> str:
        return (self.home / "test-daemon.log").read_text("utf-8", "replace")

    def start(self, *, wait: bool = True) -> DaemonProcess:
        """Returns when the daemon answers, and fails if it dies before that; at once unless `wait`."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = (self.home, self.failpoints, {**os.environ, **self._environment}, self._rigging, self.turn_s)
        self._process = forking.CONTEXT.Process(target=forking.serve, args=arguments, name=f"daemon of {self.home}", daemon=True)
        self._process.start()
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> bool:
        assert self.answers_or_dies(), f"the daemon ended with {self.exit_code()}:\n{self.log()[-3000:]}"
        return True

    def answers_or_dies(self) -> bool:
        """True once it answers, False if it is dead."""
        with self.http() as http:
            until("the daemon answers", lambda: not self.alive or _answers(http), timeout_s=START_TIMEOUT_S, pause_s=0.01)
        return self.alive

    def http(self) -> httpx.Client:
        """A plain client of its API socket."""
        return api_of(self.home)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.exitcode is None

    @property
    def was_killed(self) -> bool:
        return self.exit_code() == -signal.SIGKILL

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.exitcode

    def wait_exit(self, timeout_s: float = 60.0) -> int | None:
        """The exit code, negative for a signal; None if it still runs."""
        assert self._process is not None
        self._process.join(timeout_s)
        return self._process.exitcode

    def kill(self) -> None:
        if self._process is not None:
            if self.alive:
                self._process.kill()
            self._process.join()

    def send_kill(self) -> None:
        """From any thread; nothing if it is dead already."""
        if self._process is not None and self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    def stop(self, timeout_s: float = 60.0) -> int | None:
        assert self._process is not None
        self._process.terminate()
        return self.wait_exit(timeout_s)

    def __enter__(self) -> DaemonProcess:
        return self if self._process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/v1/hello").status_code == 200
    except httpx.TransportError:
        return False


def run_rebuild(home: Path, *, failpoints: str = "", rigging: forking.Rigging | None = None) -> int | None:
    """`ckptstore catalog rebuild` in a process of its own; its exit code, negative for a signal."""
    process = forking.CONTEXT.Process(target=forking.rebuild, args=(home, failpoints, rigging), name=f"rebuild of {home}", daemon=True)
    process.start()
    process.join(START_TIMEOUT_S)
    return process.exitcode
