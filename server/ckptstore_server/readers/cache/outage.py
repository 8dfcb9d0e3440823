"""When does the cache trust a disk again that failed? When it takes and gives back a file, tried with growing pauses.

Only the device that failed comes back by itself: at a place where nothing is mounted any more, what is kept would fill another disk. And
nobody knows which of the bytes that it had taken it still has: every block from before the outage is compared with its digest before
anybody sees it, as after a boot. A disk that comes back and fails again and again is tried less and less often.

Blocking; one thread at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ckptstore.failpoints import declare, failpoint
from ckptstore_server.readers.cache.block_map import doubt

#: The pauses before it is tried, in seconds: after the first failure, and the longest, to which they double.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 600.0
#: After so long without a failure a disk is taken for a new one.
FORGIVEN_S = 3600.0
PROBE_BYTES = 1 << 20
PROBE = declare("cache.disk.probe")


class Outage:
    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._device: int | None = None
        self._failures = 0
        self._failed_at_s = 0.0

    @property
    def is_return(self) -> bool:
        """Whether the disk had been in use before it failed."""
        return self._device is not None

    def in_use(self) -> None:
        """The disk works. OSError."""
        self._device = self._folder.stat().st_dev

    def failed(self) -> None:
        now_s = self._clock()
        self._failures = 1 if now_s - self._failed_at_s > FORGIVEN_S else self._failures + 1
        self._failed_at_s = now_s

    @property
    def pause_s(self) -> float:
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 16))

    def is_over(self) -> bool:
        """Whether it is time to try the disk, and it works."""
        if self._clock() - self._failed_at_s < self.pause_s:
            return False
        try:
            works = self._device in (None, self._folder.stat().st_dev) and self._takes_a_file()
        except OSError:
            works = False
        if not works:
            self._failures, self._failed_at_s = self._failures + 1, self._clock()
        return works

    def _takes_a_file(self) -> bool:
        """Written, synced, and read back past the page cache. OSError."""
        place, data = self._folder / "probe", os.urandom(PROBE_BYTES)
        failpoint(PROBE)
        fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            whole = os.pwrite(fd, data, 0) == len(data)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return whole and os.pread(fd, len(data), 0) == data
        finally:
            os.close(fd)
            place.unlink(missing_ok=True)


def doubt_all(files: Path) -> None:
    """Whatever these copies say they have is compared before it is shown. OSError."""
    for place in files.glob("*.map"):
        with suppress(FileNotFoundError):
            doubt(place)
