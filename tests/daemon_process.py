"""A real daemon in a process of its own, for tests: started, killed, restarted, with failpoints if asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from ckptstore.config import read_settings

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


class DaemonProcess:
    """`python -m ckptstore_server --home HOME`. Ended by `kill`, `stop` or leaving the `with` block."""

    def __init__(self, home: Path, *, failpoints: str = "", environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.failpoints = failpoints
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        return (self.home / "test-daemon.log").read_text("utf-8", "replace")

    def start(self, *, wait: bool = True) -> DaemonProcess:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {**os.environ, **self._environment, "CKPTSTORE_FAILPOINTS": self.failpoints, "PYTHONFAULTHANDLER": "1"}
        with open(self.home / "test-daemon.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ckptstore_server", "--home", str(self.home)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.exit_code() is not None:
                raise AssertionError(f"the daemon ended with {self.exit_code()}:\n{self.log()[-3000:]}")
            try:
                with self.http() as http:
                    if http.get("/v1/hello").status_code == 200:
                        return
            except httpx.TransportError:
                time.sleep(0.02)  # the loop's condition is the daemon's answer, not the time that passed
        raise AssertionError(f"the daemon did not answer in {START_TIMEOUT_S} s:\n{self.log()[-3000:]}")

    def http(self) -> httpx.Client:
        """A plain client of its API socket."""
        socket = read_settings(self.home / "config.toml" if (self.home / "config.toml").exists() else None, home=self.home).api_socket
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://daemon", timeout=60.0)

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def wait_exit(self, timeout_s: float = 60.0) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self, timeout_s: float = 60.0) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout_s)

    def __enter__(self) -> DaemonProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
