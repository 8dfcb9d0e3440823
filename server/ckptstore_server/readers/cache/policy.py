"""Which cached file goes first when room is needed? S3-FIFO, by bytes.

After Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction" (SOSP 2023). A file that comes in for the first
time waits in a small queue, a tenth of what is held: most files are read once, and leave from there soon, however many come (a scan). One
that was read again in that time moves to the main queue, where the oldest goes, unless it was used since: then it loses one of at most
three uses and goes to the end. A ghost queue remembers the names of what left the small queue; who returns from there begins in the main
one. A hit moves nothing.

By bytes, where the paper counts objects: the queues' shares are shares of bytes, and the ghosts' sizes add up to no more than what is held.
A file that is larger than the small queue's share would push out everything that is new there: it leaves the small queue before smaller
ones that have not been used either, if it is not used meanwhile.

Pure: no file, no clock, no thread. Keys are the caller's; sizes may grow while a file fills.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

SMALL_SHARE = 0.1
MAX_USES = 3
K = TypeVar("K", bound=Hashable)


@dataclass
class _Held:
    size_bytes: int
    uses: int = 0


class S3Fifo(Generic[K]):
    def __init__(self) -> None:
        self._small: OrderedDict[K, _Held] = OrderedDict()
        self._main: OrderedDict[K, _Held] = OrderedDict()
        self._ghosts: OrderedDict[K, int] = OrderedDict()
        self._small_bytes = self._main_bytes = self._ghost_bytes = 0

    def __contains__(self, key: K) -> bool:
        return key in self._small or key in self._main

    @property
    def held_bytes(self) -> int:
        return self._small_bytes + self._main_bytes

    def admit(self, key: K, size_bytes: int = 0, *, proven: bool = False) -> None:
        """It is held from now on; `proven`: it was used before, which only the caller knows (after a restart)."""
        ghost_bytes = self._ghosts.pop(key, None)
        self._ghost_bytes -= ghost_bytes or 0
        if ghost_bytes is not None or proven:
            self._main[key] = _Held(size_bytes)
            self._main_bytes += size_bytes
        else:
            self._small[key] = _Held(size_bytes)
            self._small_bytes += size_bytes

    def use(self, key: K) -> None:
        held = self._small.get(key) or self._main.get(key)
        if held is not None:
            held.uses = min(held.uses + 1, MAX_USES)

    def resize(self, key: K, size_bytes: int) -> None:
        if (held := self._small.get(key)) is not None:
            self._small_bytes += size_bytes - held.size_bytes
        elif (held := self._main.get(key)) is not None:
            self._main_bytes += size_bytes - held.size_bytes
        if held is not None:
            held.size_bytes = size_bytes

    def forget(self, key: K) -> None:
        """It is held no longer, for a reason of the caller's own."""
        if (held := self._small.pop(key, None)) is not None:
            self._small_bytes -= held.size_bytes
        elif (held := self._main.pop(key, None)) is not None:
            self._main_bytes -= held.size_bytes

    def evict(self, may_go: Callable[[K], bool] = lambda key: True) -> K | None:
        """Hold one file less, and say which; None if nothing may go."""
        small_first = self._small_bytes > SMALL_SHARE * self.held_bytes or not self._main
        for queue in (self._from_small, self._from_main) if small_first else (self._from_main, self._from_small):
            if (key := queue(may_go)) is not None:
                return key
        return None

    def _from_small(self, may_go: Callable[[K], bool]) -> K | None:
        share_bytes = SMALL_SHARE * self.held_bytes
        for key, held in list(self._small.items()):
            if held.uses:  # it has shown that it is worth more
                del self._small[key]
                self._small_bytes -= held.size_bytes
                self._main[key] = _Held(held.size_bytes)
                self._main_bytes += held.size_bytes
        candidates = [(held.size_bytes <= share_bytes, key) for key, held in self._small.items() if may_go(key)]
        if not candidates:
            return None
        _, key = min(candidates, key=lambda found: found[0])  # the first of the large ones, else the first
        held = self._small.pop(key)
        self._small_bytes -= held.size_bytes
        self._remember(key, held.size_bytes)
        return key

    def _from_main(self, may_go: Callable[[K], bool]) -> K | None:
        for _ in range((MAX_USES + 1) * len(self._main)):
            key, held = next(iter(self._main.items()))
            if may_go(key) and not held.uses:
                del self._main[key]
                self._main_bytes -= held.size_bytes
                return key
            self._main.move_to_end(key)
            held.uses -= bool(held.uses) and may_go(key)
        return None

    def _remember(self, key: K, size_bytes: int) -> None:
        self._ghosts[key] = size_bytes
        self._ghost_bytes += size_bytes
        while self._ghosts and self._ghost_bytes > self.held_bytes:
            _, oldest_bytes = self._ghosts.popitem(last=False)
            self._ghost_bytes -= oldest_bytes
