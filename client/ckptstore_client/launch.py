"""How does a daemon come to be when none answers? One of the ranks starts it, detached, and all wait until it does.

A file lock in the home makes sure that N ranks that find no daemon start one: the others wait for the lock, look again, and find
it. The daemon gets its own session and its log (`daemon.log` in the home), so that it outlives the trainer and a Ctrl-C in its
terminal; `--auto-started` lets it end when nobody uses it, after the time that its configuration says, or its own default.

What is durable: nothing. The lock is the kernel's and goes with the process that holds it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptstore.errors import AlreadyRunning, DaemonUnavailable

_POLL_S = 0.05
_QUOTED_LINES = 8


def start_daemon(home: Path, answers: Callable[[], bool], *, timeout_s: float, arguments: Sequence[str] | None = None) -> None:
    """Return when a daemon of `home` answers. DaemonUnavailable, quoting its log, if it ends or does not answer in time.

    `arguments` are the daemon's own, instead of those of an auto-started one.
    """
    deadline = time.monotonic() + timeout_s
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(home / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DaemonUnavailable(f"the home cannot be used: {error}", operation="start daemon", subject=str(home)) from error
    try:
        _take(lock, home, deadline)
        while not answers() and not _comes_up(_spawn(home, arguments), home, answers, deadline, timeout_s):
            time.sleep(_POLL_S)
    finally:
        os.close(lock)


def _take(lock: int, home: Path, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                why = "another process has been starting the daemon for too long"
                raise DaemonUnavailable(why, operation="start daemon", subject=str(home)) from None
            time.sleep(_POLL_S)


def _spawn(home: Path, arguments: Sequence[str] | None) -> subprocess.Popen[bytes]:
    own = ["--home", str(home), "--auto-started"] if arguments is None else arguments
    command = [sys.executable, "-m", "ckptstore_server", *own]
    with open(home / "daemon.log", "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home, start_new_session=True)


def _comes_up(process: subprocess.Popen[bytes], home: Path, answers: Callable[[], bool], deadline: float, timeout_s: float) -> bool:
    """Wait until the daemon answers. False if another one has the home but does not answer: it is about to leave, or has just come."""
    while not answers():
        if process.poll() == AlreadyRunning.exit_code and time.monotonic() <= deadline:
            return False
        if process.poll() is not None and not answers():
            raise _failed(f"it ended with exit code {process.returncode}", home)
        if time.monotonic() > deadline:
            raise _failed(f"it did not answer within {timeout_s:g} s", home)
        time.sleep(_POLL_S)
    process.returncode = 0  # it outlives us: without this, its Popen warns when it is collected
    return True


def _failed(why: str, home: Path) -> DaemonUnavailable:
    log = home / "daemon.log"
    try:
        lines = log.read_text("utf-8", "replace").splitlines()[-_QUOTED_LINES:]
    except OSError:
        lines = []
    quoted = f"; its log ends with: {' | '.join(line.strip() for line in lines)}" if lines else ""
    return DaemonUnavailable(f"{why}{quoted}", operation="start daemon", subject=str(home), hint=f"see {log}")
