"""How many bytes a second went by, over the last while?"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

#: The longest window that can be asked for, in seconds; also what `status` shows.
WINDOW_S = 60.0


class RateMeter:
    """Thread-safe. `clock` is the test's to replace."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._points: deque[tuple[float, int]] = deque(maxlen=16384)
        self._lock = threading.Lock()
        self._clock = clock
        self.total_bytes = 0

    def add(self, size_bytes: int) -> None:
        with self._lock:
            self._points.append((self._clock(), size_bytes))
            self.total_bytes += size_bytes

    def rate_bytes_s(self, window_s: float = WINDOW_S) -> float:
        oldest = self._clock() - window_s
        with self._lock:
            return sum(size for at, size in self._points if at >= oldest) / window_s
