"""A part of a measurement in a process of its own: it gets its orders as lines of JSON, and answers each with one.

What else it prints (warnings of libraries) is passed over; its errors go to our stderr. One thread talks to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from ckptstore.errors import CkptStoreError


class LineProcess:
    """`python -m module arguments…`, from construction until the `with` block ends; then it ends by itself, or is killed after an error."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        command = [sys.executable, "-m", module, *arguments]
        environment = os.environ | dict(environment or {})
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> LineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def tell(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Waits for it. CkptStoreError if the process has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        why = f"{self._module} ended before it answered; what it said is above"
        raise CkptStoreError(why, operation="bench")
