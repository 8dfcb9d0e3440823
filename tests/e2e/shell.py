"""Runs the command line in a process of its own, with or without a terminal, and reads what it said.

A command that is run to its end is forked from a process that has imported the command line (`tests.forking`): of the 0.5 s that it takes
otherwise, nearly all is the import. What is started, and may be interrupted, is started as a shell does.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import forking

COMMAND = [sys.executable, "-m", "ckptstore_client.cli.main"]
TIMEOUT_S = 120
ODD_NAME = 'we[red]ird "quo\'te".bin'


def heed_ctrl_c() -> None:
    """In the child: a test run that was started in the background of a shell has SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> Any:
        """The JSON error: the last line of stderr, below the one for people."""
        told, document = self.err.splitlines()[-2:]
        assert told.startswith("ckptstore: ")
        return json.loads(document)


@dataclass(frozen=True)
class Shell:
    """Runs commands for one home, without a terminal unless asked."""

    home: Path

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CKPTSTORE_")}
        return kept | {"CKPTSTORE_HOME": str(self.home), "COLUMNS": "80", "TERM": "xterm"}

    def __call__(self, *arguments: str | Path, cwd: Path | None = None) -> Outcome:
        process = forking.Program(None, arguments, self.environment(), cwd)
        with process.stdout, process.stderr, ThreadPoolExecutor(1) as beside:
            complaints = beside.submit(process.stderr.read)
            out, err = process.stdout.read(), complaints.result(TIMEOUT_S)
        return Outcome(process.wait(TIMEOUT_S), out, err)

    def ok(self, *arguments: str | Path, cwd: Path | None = None) -> Outcome:
        outcome = self(*arguments, cwd=cwd)
        assert outcome.code == 0, outcome
        return outcome

    def start(self, *arguments: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*COMMAND, *map(str, arguments)], env=self.environment(), preexec_fn=heed_ctrl_c, **streams)

    def on_terminal(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code, and all that a terminal got (stdout and stderr as it came)."""
        ours, theirs = pty.openpty()
        process = self.start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        seen = until_hung_up(ours)
        return process.wait(TIMEOUT_S), seen

    def with_stdout_piped(self, *arguments: str | Path) -> Outcome:
        """As a person runs `ckptstore … | other`: stderr is the terminal, stdout is not."""
        ours, theirs = pty.openpty()
        with self.start(*arguments, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs) as process, ThreadPoolExecutor(1) as beside:
            os.close(theirs)
            shown = beside.submit(until_hung_up, ours)
            out, _ = process.communicate(timeout=TIMEOUT_S)
            return Outcome(process.returncode, out.decode(), shown.result(TIMEOUT_S))


def until_hung_up(terminal: int) -> str:
    """All that comes out of a terminal's master side, until the last writer has closed the other; it is closed then too."""
    seen = bytearray()
    try:
        while chunk := os.read(terminal, 65536):
            seen += chunk
    except OSError:  # EIO: the last writer has closed its end
        pass
    os.close(terminal)
    return seen.decode("utf-8", "replace")
