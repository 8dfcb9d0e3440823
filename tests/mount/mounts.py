"""A mount for tests: of a plain folder or of a daemon's tree, taken away whatever happens, with the processes behind it at hand."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import pytest

from ckptstore.errors import CkptStoreError
from ckptstore_client.mount import device, mounting
from ckptstore_client.mount.task import MountOptions
from tests.until import until

#: Mounting as these tests do it is root's, on a machine that has the device.
can_mount = pytest.mark.skipif(not os.access(device.DEVICE, os.R_OK | os.W_OK) or os.geteuid() != 0, reason="needs root and /dev/fuse")


class Mounted:
    """Mounted inside the `with`. `path / name` is a path in it."""

    def __init__(
        self, folder: Path, *, source: Path, plain: bool = True, root: str = "/", passthrough: bool = True, others: bool = False
    ) -> None:
        self.path = folder / "mnt"
        self.log = folder / "mount.log"
        self._options = MountOptions(str(self.path), root, str(source), folder=plain, passthrough=passthrough, allow_other=others)
        self.holder = 0

    def __enter__(self) -> Mounted:
        self.path.mkdir(parents=True, exist_ok=True)
        self.holder = mounting.mount(self._options, log=self.log)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for lazy in (False, True):
            with suppress(CkptStoreError):
                mounting.umount(self.path, lazy=lazy)
        for pid in (*([self.worker] if self.worker else []), self.holder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        try:
            until("the holder ends", lambda: not _lives(self.holder), timeout_s=20.0)
        except AssertionError:
            for pid in (self.worker, self.holder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def worker(self) -> int:
        """The serving process; 0 if there is none at the moment."""
        with suppress(OSError):
            children = Path(f"/proc/{self.holder}/task/{self.holder}/children").read_text("ascii").split()
            return int(children[0]) if children else 0
        return 0

    @contextmanager
    def nobody_serving(self) -> Iterator[None]:
        """The serving process is stopped inside the `with`: what is answered there, it has not answered. A test that would hang fails."""
        stopped, late = self.worker, threading.Event()

        def go_on() -> None:
            late.set()
            os.kill(stopped, signal.SIGCONT)

        watchdog = threading.Timer(15.0, go_on)
        watchdog.start()
        os.kill(stopped, signal.SIGSTOP)
        try:
            yield
        finally:
            watchdog.cancel()
            os.kill(stopped, signal.SIGCONT)
        assert not late.is_set(), "somebody had to serve it"

    def kill_worker(self) -> None:
        """SIGKILL; returns when the next one is there."""
        killed = until("a process serves", lambda: self.worker)
        with suppress(ProcessLookupError):
            os.kill(killed, signal.SIGKILL)
        until("a successor is started", lambda: self.worker not in (0, killed))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def mark(file: Path, name: str) -> None:
    """`user.cold`: not whole on the node; `user.absent`: its bytes do not come."""
    os.setxattr(file, name, b"1")


def names_in(folder: Path) -> list[str]:
    """As the folder is listed, in order."""
    return [child.name for child in folder.iterdir()]
