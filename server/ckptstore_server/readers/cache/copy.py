"""One version's copy on this node, as its readers see it: which bytes are there, and how the others come.

A block that is not there is fetched once, whoever asks for it and however many (one `Flight` a block); each reader is answered when its own
blocks are there. A block enters verified: against the catalog if the object is the store's own, else its digest is taken now and held
against it from then on. A block of an earlier boot is compared with its digest before anybody sees it, and fetched anew if it differs.

Whatever the disk refuses (no room, an error), readers get their bytes all the same, out of the flight; only a descriptor cannot show those.
`streamed` copies have no file at all.

A damaged block in a file that was lent cannot be put right there: who has the file open must not see it change. The file gives its name to
a new one, which takes the good blocks from it and fetches the bad one.

Threads: any. The lock guards the flights, and which file is the copy's; it is never held while bytes move. `keeper` is called without it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

from ckptstore.errors import ChecksumMismatch, NotFound, TierFull, WaitTimeout
from ckptstore_server.readers.cache.block_file import ABSENT, CLAIMED, READABLE, SPOILT, BlockFile
from ckptstore_server.readers.cache.fetching import FetchQueue, Flight
from ckptstore_server.readers.cache.keeper import Keeper
from ckptstore_server.readers.cache.read_ahead import RUN_BLOCKS, ReadAhead, runs
from ckptstore_server.readers.origin import FileVersion, Origin, StreamsParts
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, block_length, digest
from ckptstore_tiers.posix_errors import FULL
from ckptstore_tiers.scratch import ScratchPool

#: How often a block that comes damaged, from the origin or from the disk, is fetched before it is an error.
TRIES = 3
#: Blocks of an earlier boot, or of a damaged file, that are looked at at once, until all are: the copy can be whole then.
SETTLED_AT_ONCE = 8
#: The longest that a reader waits for its bytes, in seconds; the origins' own limits are shorter.
NEED_TIMEOUT_S = 300.0


class Copy:
    def __init__(
        self,
        file: FileVersion,
        origin: Origin,
        *,
        queue: FetchQueue,
        keeper: Keeper,
        scratch: ScratchPool,
        readers: ThreadPoolExecutor,
        disk: BlockFile | None,
        expected: BlockDigests | None,
        ahead: ReadAhead,
    ) -> None:
        """`queue`: of the origin; `readers`: threads that read blocks back; `expected`: what the catalog says of an own object."""
        self.file = file
        self.origin = origin
        self._queue = queue
        self._keeper = keeper
        self._scratch = scratch
        self._readers = readers
        self._disk = disk
        self._earlier: BlockFile | None = None  # lent, with a damaged block: good ones are taken from it
        self._expected = expected
        self._ahead = ahead
        self._lock = threading.Lock()
        self._flights: dict[int, Flight] = {}
        self._is_synced = disk is not None and disk.is_complete
        self._syncing: Future[None] | None = None
        self._refused = disk is None  # the last block that came could not be kept
        self.streams = 0  # under way now; counted on the event loop
        self._settle()

    # --- what readers ask ----------------------------------------------------------------------------------------------------------

    @property
    def streamed(self) -> bool:
        return self._disk is None

    @property
    def passes_through(self) -> bool:
        """Blocks are not kept for now: what is fetched before somebody waits for it is fetched in vain."""
        return self._refused

    @property
    def whole(self) -> bool:
        """Every byte is there and verified, and the disk has taken all of it."""
        return self._is_synced

    @property
    def busy(self) -> bool:
        """Whether it is in use at this moment: evicting it would free little, and be paid for at once."""
        return bool(self._flights) or self.streams > 0

    @property
    def there_bytes(self) -> int:
        """Of the blocks that can be read now."""
        return 0 if (disk := self._disk) is None else disk.readable_bytes

    @property
    def kept_bytes(self) -> int:
        """Of the blocks that need not be fetched, as far as is known."""
        return 0 if (disk := self._disk) is None else disk.kept_bytes

    def serve_from(self, origin: Origin, queue: FetchQueue) -> None:
        """The version's origin, as it is known now; blocks that are on their way come from the one before."""
        self.origin, self._queue = origin, queue
        self._refused = self._disk is None  # there may be room by now

    def descriptor(self) -> tuple[str, int]:
        """The id of the copy's file, and a read-only descriptor, the caller's to close. TierFull without one. Blocking."""
        if (disk := self._disk) is None:
            raise self._not_kept()
        try:
            found = disk.copy_id, disk.descriptor()
        except OSError as error:
            self._keeper.disk_failed(error)
            raise self._not_kept() from error
        if self.whole:
            self._keeper.served(self, self.file.size_bytes)
        return found

    def wait(self, copy_id: str, offset: int, size_bytes: int, timeout_s: float = NEED_TIMEOUT_S, *, exact: bool = False) -> None:
        """Return when these bytes can be read from the file with this id; `exact`: nothing else is wanted of it. Blocking.

        NotFound: it is the copy's file no longer; TierFull: they cannot be kept; and what an origin raises.
        """
        offset, stop = min(offset, self.file.size_bytes), min(offset + size_bytes, self.file.size_bytes)
        blocks = range(offset // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        if (disk := self._disk) is None:
            raise self._not_kept()
        if disk.copy_id != copy_id:
            raise NotFound("this copy is kept no longer", operation="read", subject=self.file.path, hint="open the file again")
        wanted = self._ask(blocks, offset, stop, exact=exact)
        # Who reads on is not heard of again before the next block.
        reads_on = self._ahead.reads_on and not exact
        self._keeper.served(self, (min(blocks.stop * BLOCK_BYTES, self.file.size_bytes) if reads_on else stop) - offset)
        for future in wanted:
            try:
                kept = future.result(timeout_s) is None
            except TimeoutError as error:
                why = f"its bytes did not come within {timeout_s:g} s"
                raise WaitTimeout(why, operation="read", subject=self.file.path) from error
            if not kept and disk is self._disk:
                raise self._not_kept()
        if any(disk.states[index] != READABLE for index in blocks):
            raise NotFound("this copy is kept no longer", operation="read", subject=self.file.path, hint="open the file again")

    async def block(self, index: int, offset: int, stop: int, *, exact: bool = False) -> bytes:
        """One block, verified now; bytes `offset` to `stop` of the file are what is wanted of it, and with `exact` of the file."""
        loop = asyncio.get_running_loop()
        self._keeper.served(self, stop - offset)
        for _ in range(TRIES):
            for future in self._ask([index], offset, stop, exact=exact):
                if (data := await asyncio.wrap_future(future)) is not None:
                    return data
            if (read := await loop.run_in_executor(self._readers, self._read_back, index)) is not None:
                return read
        raise ChecksumMismatch("the cache's disk does not give back what it took", operation="read", subject=self.file.path)

    def fetch(self, blocks: Sequence[int]) -> list[Future[bytes | None]]:
        """Have blocks come when nobody waits for anything else: those that are not there, and can be kept."""
        with self._lock:
            self._foresee(blocks)
            return [self._flights[index].results[index] for index in blocks if index in self._flights]

    async def on_disk(self) -> None:
        """When the disk has taken all of a copy that is complete: it is `whole` then, unless the disk did not."""
        if (syncing := self._syncing) is not None:
            await asyncio.shield(asyncio.wrap_future(syncing))

    def _not_kept(self) -> TierFull:
        why = "the node cannot keep a copy of these bytes"
        return TierFull(why, operation="read", subject=self.file.path, hint="read them by GET /v1/tree/content")

    # --- flights ---------------------------------------------------------------------------------------------------------------------

    def _ask(self, blocks: Iterable[int], offset: int, stop: int, *, exact: bool) -> list[Future[bytes | None]]:
        """What must be waited for, so that these blocks are there; unless `exact`, what will be wanted next is on its way, too."""
        with self._lock:
            wanted = [result for index in blocks if (result := self._wanted(index)) is not None]
            if not exact and self._disk is not None and not self._disk.is_complete:
                self._foresee(self._ahead.after(offset, stop, self._disk.missing_from))
        return wanted

    def _wanted(self, index: int) -> Future[bytes | None] | None:
        """What brings a block that somebody waits for; None if it is there. Under the lock."""
        if self._disk is not None and self._disk.states[index] == READABLE:
            return None
        flight = self._flights.get(index)
        if flight is None:
            flight = self._begin([index], urgent=True)
        elif not flight.urgent:
            flight.urgent = True
            self._queue.add(flight)
        return flight.results[index]

    def _foresee(self, blocks: Sequence[int]) -> None:
        """Have these come without hurry, neighbours by one request where the origin gives that. Under the lock."""
        if (disk := self._disk) is None:
            return
        fresh: list[int] = []
        for index in blocks:
            if disk.states[index] == READABLE or index in self._flights:
                continue
            if disk.states[index] == ABSENT and self._earlier is None and isinstance(self.origin, StreamsParts):
                fresh.append(index)
            elif disk.states[index] == CLAIMED or not self._refused:
                self._begin([index], urgent=False)
        for run in runs(fresh) if not self._refused else ():
            behind = run[-1] + 1
            is_cut = behind % RUN_BLOCKS and behind < disk.count and disk.states[behind] == ABSENT and behind not in self._flights
            if not is_cut or len(blocks) <= RUN_BLOCKS:  # else the next look, a block further on, has its rest
                self._begin(run, urgent=False)

    def _begin(self, blocks: Sequence[int], *, urgent: bool) -> Flight:
        flight = Flight(blocks, self._bring, urgent=urgent)
        self._flights.update(dict.fromkeys(blocks, flight))
        self._queue.add(flight)
        return flight

    def _bring(self, flight: Flight) -> None:
        """Have blocks in the file; the result of each is its bytes, if that does not take them."""
        try:
            with self._scratch.borrow() as buffer:
                origin, blocks = self.origin, list(flight.results)
                if len(blocks) > 1 and isinstance(origin, StreamsParts):
                    size_bytes = sum(block_length(index, self.file.size_bytes) for index in blocks)
                    origin.read_parts(self.file, blocks[0] * BLOCK_BYTES, size_bytes, self._landing(flight, buffer))
                else:
                    for index in blocks:
                        self._bring_one(flight, index, buffer)
        finally:
            with self._lock:
                for index in flight.results:
                    self._landed(flight, index)
                self._settle_one_more()

    def _bring_one(self, flight: Flight, index: int, buffer: memoryview) -> None:
        disk, earlier, view = self._disk, self._earlier, buffer[: block_length(index, self.file.size_bytes)]
        if disk is not None and disk.states[index] == CLAIMED and self._confirm(disk, index, buffer):
            self._land(flight, index, None)
            return
        if earlier is None or not earlier.gives(index, buffer):
            self._fetch(index, view)
        self._land(flight, index, view)

    def _landing(self, flight: Flight, buffer: memoryview) -> Iterator[memoryview]:
        """Where the origin is to put the blocks, one by one."""
        for index in flight.results:
            view = buffer[: block_length(index, self.file.size_bytes)]
            yield view
            self._keeper.fetched(self, len(view))
            if self._expected is not None and digest(view) != self._expected.block(index):
                self._fetch(index, view)
            self._land(flight, index, view)

    def _land(self, flight: Flight, index: int, view: memoryview | None) -> None:
        """Keep the block if it can be; None: it is there. Then tell those who wait for it."""
        if view is not None:
            self._refused = (disk := self._disk) is None or not self._keep(disk, index, view)
        data = bytes(view) if view is not None and self._refused else None
        with self._lock:
            self._landed(flight, index)
        flight.results[index].set_result(data)

    def _landed(self, flight: Flight, index: int) -> None:
        if self._flights.get(index) is flight:  # else it has landed before, and another is on its way by now
            del self._flights[index]

    def _settle(self) -> None:
        with self._lock:
            for _ in range(SETTLED_AT_ONCE):
                self._settle_one_more()

    def _settle_one_more(self) -> None:
        """Have one more block compared, or moved from an earlier file, without hurry. Under the lock."""
        disk = self._disk
        if disk is not None and not disk.is_complete:
            self._foresee(list(islice((index for index in disk.unsettled(self._earlier) if index not in self._flights), 1)))

    def _fetch(self, index: int, view: memoryview) -> None:
        for left in reversed(range(TRIES)):
            self.origin.read_into(self.file, index * BLOCK_BYTES, view)
            self._keeper.fetched(self, len(view))
            if self._expected is None or digest(view) == self._expected.block(index):
                return
            if not left:
                self._expected.check(index, view, operation="fetch", subject=self.file.path)

    def _confirm(self, disk: BlockFile, index: int, buffer: memoryview) -> bool:
        """Whether a block of an earlier boot is what entered then."""
        expected = self._expected.block(index) if self._expected is not None else None
        try:
            good = disk.confirm(index, buffer, expected)
        except OSError as error:
            self._keeper.disk_failed(error)
            return False
        if good:
            self._note_complete(disk)
        else:
            self._dropped(disk, index)
        return good

    def _keep(self, disk: BlockFile, index: int, view: memoryview) -> bool:
        if disk.states[index] == SPOILT:
            return False  # its file is being replaced
        found = digest(view)
        for _ in range(2):
            if not self._keeper.make_room(self, len(view)):
                return False
            try:
                disk.store(index, view, found)
            except OSError as error:
                self._keeper.dropped(self, len(view))
                if error.errno not in FULL:
                    self._keeper.disk_failed(error)
                    return False
                self._keeper.disk_is_full()
                continue
            self._note_complete(disk)
            return disk is self._disk
        return False

    def _note_complete(self, disk: BlockFile) -> None:
        """Have the disk take all of it; nobody waits for that, since every block can be read already."""
        if disk.is_complete:
            with suppress(RuntimeError):  # the daemon is ending: the next one does it
                self._syncing = self._readers.submit(self._sync, disk)

    def _sync(self, disk: BlockFile) -> None:
        """Call it whole once the disk has all of it: an error of the device shows here, or never."""
        try:
            disk.sync()
        except OSError as error:
            self._keeper.disk_failed(error)
            return
        with self._lock:
            if disk is self._disk and disk.is_complete:
                self._is_synced = True
                self._earlier = None

    # --- damage, and the end -------------------------------------------------------------------------------------------------------

    def _read_back(self, index: int) -> bytes | None:
        """A block of the file if it is what entered; else None, and it is being replaced."""
        if (disk := self._disk) is None or disk.states[index] != READABLE:
            return None
        with self._scratch.borrow() as buffer:
            if self._is_good(disk, index, buffer):
                return bytes(buffer[: block_length(index, self.file.size_bytes)])
        self.replace_block(index)
        return None

    def _is_good(self, disk: BlockFile, index: int, buffer: memoryview) -> bool:
        try:
            return disk.is_good(index, buffer)
        except OSError as error:
            self._keeper.disk_failed(error)
            return False

    def check(self, index: int) -> bool:
        """For the scrub: whether a block that is there is what entered; if not, it is replaced. Blocking."""
        if (disk := self._disk) is None or disk.states[index] == ABSENT:
            return True
        if disk.states[index] == CLAIMED:
            for coming in self.fetch([index]):
                coming.result(NEED_TIMEOUT_S)
            return True
        with self._scratch.borrow() as buffer:
            good = self._is_good(disk, index, buffer)
        if not good:
            self.replace_block(index)
        return good

    def replace_block(self, index: int) -> None:
        """It is damaged: the next who asks for it gets it fetched anew."""
        with self._lock:
            disk = self._disk
            if disk is None or disk.states[index] != READABLE:
                return
            self._is_synced = False
            with suppress(OSError):
                disk.forget(index)
        self._dropped(disk, index)

    def _dropped(self, disk: BlockFile, index: int) -> None:
        """A block is damaged: it is fetched into its place, or into a new file, in the place of one that others hold open."""
        if disk.states[index] != SPOILT:
            self._keeper.dropped(self, block_length(index, self.file.size_bytes))
            return
        fresh = self._keeper.new_file(self)
        with self._lock:
            self._disk, self._earlier = fresh, disk
        self._settle()

    def give_up_disk(self) -> None:
        """From now on it is streamed: its file is gone, or its disk. Who has the file open reads on."""
        with self._lock:
            self._disk = self._earlier = None
            self._is_synced, self._refused = False, True
