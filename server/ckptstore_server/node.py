"""What every part of the daemon works with: settings, catalog, tiers, memory, executors, and the board that says that something changed.

The event loop never touches a file, a socket of a store or the database: blocking work goes through `Node.run` into one of the bounded
executors that the node owns. `Board` is how waiters hear of progress without polling; it belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from ckptstore.catalog import Catalog
from ckptstore.config import Settings
from ckptstore.durability import is_as_safe_as
from ckptstore.errors import CatalogUnavailable, CkptStoreError, NotFound
from ckptstore_server.pressure import Gauge
from ckptstore_server.quiet import QuietBudget
from ckptstore_server.step_times import StepTimes
from ckptstore_server.tier_handle import TierHandle
from ckptstore_server.whole_segments import WholeSegments
from ckptstore_tiers.memory import SegmentPool
from ckptstore_tiers.scratch import ScratchPool

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Writers of a node are its ranks and a handful of duties: thirty-two threads are never all waiting for the database's lock.
CATALOG_THREADS = 32
#: The pause before the catalog is asked again on behalf of bytes that are the daemon's, in seconds: each try is patient by itself.
CATALOG_PAUSE_S = 1.0
#: Threads of each tier beside its drains': one for records, one for evictions, one for deletions.
TIER_KEEPERS = 3
#: How often a waiter looks at the catalog by itself, in seconds: when other nodes may change it, and when only this daemon can
#: (announcements wake it then, and this is the safety net).
OTHER_NODES_POLL_S, SAFETY_POLL_S = 0.25, 5.0
#: How many errors `status` remembers.
REMEMBERED_ERRORS = 50
#: How many attempts' timings are kept for clients that ask late.
REMEMBERED_TIMINGS = 4096


class Board:
    """Tells those who wait that the catalog may have changed: they look again. Call it on the event loop."""

    def __init__(self) -> None:
        self._changed, self._attempts = asyncio.Event(), asyncio.Event()

    def announce(self) -> None:
        """Wake all who wait."""
        self._changed.set()
        self._changed = asyncio.Event()
        self.tell()

    def tell(self) -> None:
        """An attempt has come on, which gives nobody new work: wake only those who wait for attempts."""
        self._attempts.set()
        self._attempts = asyncio.Event()

    def ticket(self) -> asyncio.Event:
        """Take it before looking at the catalog: it is set by the first announcement after this call."""
        return self._changed

    def attempts_ticket(self) -> asyncio.Event:
        """The same for who waits for attempts: set also when one of them has come on."""
        return self._attempts

    @staticmethod
    async def heard(ticket: asyncio.Event, timeout_s: float) -> None:
        """Return at the first announcement since the ticket was taken, or after `timeout_s`."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await ticket.wait()
        except TimeoutError:
            return


class Timings:
    """Seconds from an attempt's opening here until each of its stages, by this daemon's clock."""

    def __init__(self) -> None:
        self._opened: OrderedDict[str, float] = OrderedDict()
        self._stages: dict[str, dict[str, float]] = {}

    def open(self, attempt_id: str) -> None:
        if attempt_id not in self._opened:
            self._opened[attempt_id] = time.monotonic()
            self._stages[attempt_id] = {}
            while len(self._opened) > REMEMBERED_TIMINGS:
                oldest, _ = self._opened.popitem(last=False)
                del self._stages[oldest]

    def reach(self, attempt_id: str, stage: str) -> None:
        opened = self._opened.get(attempt_id)
        if opened is not None:
            self._stages[attempt_id].setdefault(stage, time.monotonic() - opened)

    def of(self, attempt_id: str) -> dict[str, float]:
        return dict(self._stages.get(attempt_id, {}))


@dataclass(frozen=True)
class Remark:
    """An error that `status` shows."""

    at_s: float
    where: str
    what: str


@dataclass
class Node:
    """The daemon's inside. Built once by `daemon.Daemon`; its fields do not change afterwards."""

    settings: Settings
    catalog: Catalog
    node_id: str
    handles: tuple[TierHandle, ...]  # in configured order
    pool: SegmentPool
    gauge: Gauge
    quiet: QuietBudget
    steps: StepTimes
    board: Board = field(default_factory=Board)
    timings: Timings = field(default_factory=Timings)
    remarks: deque[Remark] = field(default_factory=lambda: deque(maxlen=REMEMBERED_ERRORS))
    scratch: ScratchPool = field(default_factory=ScratchPool)
    started_s: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.wholes = WholeSegments(self.pool)
        # Catalog calls are short, but while another process holds the database's lock each writer waits in a thread: there must be some
        # left for readers. Ingests wait for the disk; the rest is reads for clients.
        self.catalog_executor = ThreadPoolExecutor(CATALOG_THREADS, "catalog")
        self.ingest_executor = ThreadPoolExecutor(8, "ingest")
        self.read_executor = ThreadPoolExecutor(8, "read")
        self.upkeep_executor = ThreadPoolExecutor(4, "upkeep")
        # What goes into a tier, or goes from it, waits in threads of that tier's own: one that hangs holds up nothing but itself.
        workers = self.settings.drain_workers + TIER_KEEPERS
        self._tier_executors = {handle.name: ThreadPoolExecutor(workers, handle.name) for handle in self.handles}

    async def run(self, executor: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, lambda: call(*args, **kwargs))

    async def query(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A catalog call."""
        return await self.run(self.catalog_executor, call, *args, **kwargs)

    async def insist(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A catalog call for bytes that the daemon has taken over: while the catalog is unavailable, again and again.

        Giving up would lose what a client was told is safe. `call` may be repeated.
        """
        while True:
            try:
                return await self.query(call, *args, **kwargs)
            except CatalogUnavailable as error:
                self.remark("catalog", error)
                await asyncio.sleep(CATALOG_PAUSE_S)

    async def settled(self, look: Callable[[], Awaitable[T]], is_settled: Callable[[T], bool], timeout_s: float) -> T:
        """What `look` finds once that is settled, or else after `timeout_s`: it looks again at each announcement, and now and then."""
        deadline = time.monotonic() + timeout_s
        alone = self.settings.effective_catalog_url.startswith("sqlite")
        while True:
            ticket = self.board.attempts_ticket()
            found = await look()
            left_s = deadline - time.monotonic()
            if left_s <= 0 or is_settled(found):
                return found
            await self.board.heard(ticket, min(SAFETY_POLL_S if alone else OTHER_NODES_POLL_S, left_s))

    def tier_executor(self, handle: TierHandle) -> ThreadPoolExecutor:
        """For drains into the tier, its records, its evictions and deletions."""
        return self._tier_executors[handle.name]

    def handle(self, name: str) -> TierHandle:
        for handle in self.handles:
            if handle.name == name:
                return handle
        known = ", ".join(handle.name for handle in self.handles)
        raise NotFound(f"there is no tier {name!r}", operation="use tier", subject=name, hint=f"the configured tiers are: {known}")

    def is_as_safe_as(self, wanted: str, durability: Collection[str]) -> bool:
        return is_as_safe_as(wanted, durability, [handle.name for handle in self.handles])

    @property
    def durable(self) -> tuple[TierHandle, ...]:
        return tuple(handle for handle in self.handles if handle.settings.durable)

    @property
    def node_local(self) -> tuple[TierHandle, ...]:
        """This node's own posix tiers: what a recall fills."""
        return tuple(h for h in self.handles if h.settings.kind == "posix" and not h.settings.is_shared)

    def remark(self, where: str, error: BaseException) -> None:
        """Note an error for `status`. Errors that an operator should see end here; it is also where they are logged."""
        what = str(error) if isinstance(error, CkptStoreError) else f"{type(error).__name__}: {error}"
        self.remarks.append(Remark(time.time(), where, what))
        _log.warning("%s: %s", where, what, exc_info=None if isinstance(error, CkptStoreError) else error)

    def close(self) -> None:
        for handle in self.handles:
            handle.lane.close()
        others = (self.ingest_executor, self.read_executor, self.upkeep_executor, self.catalog_executor)
        for executor in (*self._tier_executors.values(), *others):
            executor.shutdown(wait=True, cancel_futures=True)
        for handle in self.handles:
            handle.close()
        self.pool.close()
        self.scratch.close()
        self.catalog.close()
