"""What keeps a mount alive when the process that serves it dies? A small one that does nothing else: it holds the device and the journal,
keeps the descriptors of open files, and starts a successor.

It imports neither HTTP nor a parser of anything from outside, touches no file of the tree and answers no request, so there is little that
can end it. If it is killed nevertheless, the serving process goes on without a successor.

    SIGTERM, SIGINT   unmount (files that are open are served until they are closed, or `STOP_S` has passed), end
    SIGHUP            replace the serving process: new code, no open file breaks

Exit: 0 unmounted; else the mount could not be served, and was taken away, so that readers get an error instead of waiting.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from ckptstore.errors import CkptStoreError, InvalidInput
from ckptstore_client.mount import device
from ckptstore_client.mount.journal import Journal
from ckptstore_client.mount.keeping import KeptDescriptors
from ckptstore_client.mount.task import MountOptions, Task

#: When for so long no process has come to serve, no more is started. One that serves may die as often as it likes; what a request costs
#: that kills whoever takes it is bounded by the kernel's own timeout.
UNSERVED_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
#: How long open files are still served after SIGTERM.
STOP_S = 10.0


class Holder:
    def __init__(self, options: MountOptions) -> None:
        """Mounts. The errors of `device.mount`."""
        self._options = options
        self._device_fd = device.mount(Path(options.mountpoint), allow_other=options.allow_other)
        self._journal_fds = Journal.new_files()
        for fd in (self._device_fd, *self._journal_fds):
            os.set_inheritable(fd, True)
        self._kept = KeptDescriptors()
        self._worker: subprocess.Popen[bytes] | None = None
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stop_at_s: float | None = None
        self._has_served = False

    def run(self, served: int | None) -> int:
        """Until unmounted; the exit code. A line is written to `served` once the first process serves."""
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        signal.signal(signal.SIGHUP, self._asked_to_replace)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        served_s, pause_s, successor = time.monotonic(), FIRST_PAUSE_S, False
        while True:
            code = self._one_life(successor, served if not successor else None)
            if code == 0 or (self._stop_at_s is not None and device.device_of(Path(self._options.mountpoint)) is None):
                return 0
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            if self._has_served:
                served_s, pause_s = time.monotonic(), FIRST_PAUSE_S
            print(f"ckptstore: the process that served {self._options.mountpoint} ended ({code})", file=sys.stderr, flush=True)
            if time.monotonic() > served_s + UNSERVED_S or (code > 0 and not successor):
                self._take_away()
                return code if code > 0 else 1
            time.sleep(pause_s)
            successor = True

    def _one_life(self, successor: bool, served: int | None) -> int:
        """Start a serving process and wait until it is dead; its exit code, negative for a signal."""
        self._has_served = False
        worker = self._start(successor)
        try:
            if worker.poll() is None:  # else it died before it was told what is kept; and until we ask again, its pid stays its own
                self._attend(worker, served)
        finally:
            self._kept.receive()
        return worker.returncode

    def _attend(self, worker: subprocess.Popen[bytes], served: int | None) -> None:
        """Keep what it sends, until it is dead."""
        pidfd = os.pidfd_open(worker.pid)
        poll = select.poll()
        for fd in (pidfd, self._kept.fileno(), self._wake_reader):
            poll.register(fd, select.POLLIN)
        try:
            while worker.poll() is None:
                for fd, event in poll.poll(self._wait_ms()):
                    if fd == self._kept.fileno():
                        if event & select.POLLHUP:
                            poll.unregister(fd)
                        self._has_served = self._kept.receive() or self._has_served
                        if self._has_served and served is not None:
                            os.write(served, b'{"serving": true}\n')
                            os.close(served)
                            served = None
                    elif fd == self._wake_reader:
                        os.read(self._wake_reader, 4096)
                if self._stop_at_s is not None and time.monotonic() >= self._stop_at_s:
                    worker.kill()
        finally:
            os.close(pidfd)

    def _start(self, successor: bool) -> subprocess.Popen[bytes]:
        theirs = self._kept.connect()
        task = Task(self._options, self._device_fd, self._journal_fds, theirs.fileno(), successor)
        fds = (self._device_fd, *self._journal_fds, theirs.fileno())
        worker = self._worker = subprocess.Popen([sys.executable, "-m", "ckptstore_client.mount.worker", task.argument()], pass_fds=fds)
        theirs.close()
        try:
            self._kept.hand_over()
        except OSError:
            worker.kill()
        return worker

    def _wait_ms(self) -> float | None:
        return None if self._stop_at_s is None else max(0.0, self._stop_at_s - time.monotonic()) * 1000

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop_at_s is None:
            self._stop_at_s = time.monotonic() + STOP_S
            self._take_away()

    def _asked_to_replace(self, number: int, frame: FrameType | None) -> None:
        if self._worker is not None:
            self._worker.kill()

    def _take_away(self) -> None:
        try:
            device.unmount(Path(self._options.mountpoint))
        except InvalidInput:
            try:
                device.unmount(Path(self._options.mountpoint), lazy=True)
            except InvalidInput as error:
                print(f"ckptstore: {error}", file=sys.stderr, flush=True)


def run(options: MountOptions, served: int | None) -> int:
    """The holder's whole life; errors of mounting go to `served` as well."""
    try:
        return Holder(options).run(served)
    except CkptStoreError as error:
        if served is None:
            raise
        os.write(served, json.dumps(error.to_wire()).encode() + b"\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(run(MountOptions.read(sys.argv[1]), int(sys.argv[2])))
