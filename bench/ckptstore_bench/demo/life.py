"""One process of the trainer, from its start until it ends by itself or is killed.

A thread reads its events and hands each to an observer and to whoever waits in `until`; everything else belongs to the story's thread.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from ckptstore_bench.demo.events import Event, read_event

#: No event of a trainer takes longer than this, on a slow and busy machine.
EVENT_TIMEOUT_S = 90.0


class NotAsClaimed(Exception):
    """The store did not do what the demo says that it does."""


class Life:
    def __init__(
        self, name: str, module: str, arguments: list[str], *, environment: Mapping[str, str], log: Path, observe: Callable[[Event], None]
    ) -> None:
        self.name = name
        self._log = log
        self._observe = observe
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=dict(environment), stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._reader = threading.Thread(target=self._read, name=f"events of {name}")
        self._reader.start()

    def __enter__(self) -> Life:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = read_event(line)
            self._observe(event)
            self._events.put(event)
        self._events.put(None)

    def until(self, *names: str, step: int | None = None) -> Event:
        """The next event of one of these names (and of this step). NotAsClaimed if the trainer ends, or is silent for too long."""
        awaited = " or ".join(names)
        while True:
            try:
                event = self._events.get(timeout=EVENT_TIMEOUT_S)
            except queue.Empty:
                raise NotAsClaimed(f"{self.name} has been silent for {EVENT_TIMEOUT_S:g} s while {awaited!r} was awaited") from None
            if event is None:
                raise NotAsClaimed(f"{self.name} ended with {self._process.wait()} before {awaited!r}: {self._last_words()}")
            if event.name in names and (step is None or event["step"] == step):
                return event

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Ending it twice does nothing."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def end(self) -> None:
        """Wait until it ends by itself."""
        if (code := self._process.wait(EVENT_TIMEOUT_S)) != 0:
            raise NotAsClaimed(f"{self.name} ended with {code}: {self._last_words()}")
        self._reader.join()

    def _last_words(self) -> str:
        return " | ".join(self._log.read_text("utf-8", "replace").splitlines()[-6:]) or "it said nothing"
