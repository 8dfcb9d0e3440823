"""What would a daemon that dies at this moment leave, and what had its client been told? Taken while it pauses there, not dead.

A daemon that `pause`s is stopped by the kernel, all its threads, as by SIGKILL: what its files hold then is what they would hold if it had
been killed there. `taking_images` copies them, and the facts of the story, and lets it go on. So one telling gives the images of many
deaths, where each death by itself would need a telling of its own. The soak tests tell one for each.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore import failpoints
from tests.until import until

if TYPE_CHECKING:  # it imports torch, which a daemon that is rigged with something of this file has no use for
    from tests.faults.crash_story import Facts, World
    from tests.faults.forked_daemon import ForkedDaemon


# --- in the daemon -----------------------------------------------------------------------------------------------------------------


_one_at_a_time = threading.Lock()


def pause(log: Path, moment: str) -> None:
    """Write down which moment it is, and stop the process until it is told to go on."""
    with _one_at_a_time, open(log, "a", encoding="utf-8") as told:
        print(moment, file=told, flush=True)
        # To the thread itself: it stops right here, and the others with it. They would be first with a signal to the process.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


@dataclass(frozen=True)
class Hits:
    """Rigging: write down every failpoint that the daemon hits, and pause at some; a moment is called `name@hit`."""

    file: Path
    moments: frozenset[str] = frozenset()
    _counted: Counter[str] = field(default_factory=Counter)

    def __call__(self, stack: ExitStack) -> None:
        out = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def hit(name: str) -> None:
            os.write(out, f"{name}\n".encode())
            self._counted[name] += 1
            if (moment := f"{name}@{self._counted[name]}") in self.moments:
                pause(pauses(self.file), moment)

        stack.enter_context(failpoints.listening(hit))

    def counted(self) -> Counter[str]:
        return Counter(self.file.read_text().splitlines())


def pauses(log: Path) -> Path:
    return log.with_suffix(".pauses")


# --- in the test -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CrashImage:
    world: World
    facts: Facts


@contextmanager
def taking_images(daemon: ForkedDaemon, facts: Facts, log: Path, copy: Callable[[str], World]) -> Iterator[dict[str, CrashImage]]:
    """The images of the moments at which the daemon pauses, by what it calls them; `copy` makes a world of what is there then."""
    images: dict[str, CrashImage] = {}
    failures: list[BaseException] = []
    over = threading.Event()

    def take() -> None:
        try:
            while until("it pauses, or the story ends", lambda: over.is_set() or paused(daemon.pid), pause_s=0.005) and not over.is_set():
                moment = log.read_text("utf-8").splitlines()[-1]
                # The facts after the files: what the story does to the files itself, it says before.
                images[moment] = CrashImage(copy(moment), facts.copy())
                os.kill(daemon.pid, signal.SIGCONT)
        except BaseException as error:  # noqa: BLE001 - the top of a thread: the test raises it
            failures.append(error)
            daemon.send_kill()

    taker = threading.Thread(target=take, name="taker of images")
    taker.start()
    try:
        yield images
    finally:
        over.set()
        taker.join()
    if failures:
        raise failures[0]


def paused(pid: int) -> bool:
    """Whether the process is stopped, each thread of it. One of them tells mostly, and cheaply, that it is not."""
    return stopped(Path(f"/proc/{pid}")) and all(stopped(task) for task in Path(f"/proc/{pid}/task").iterdir())


def stopped(process: Path) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return (process / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False
