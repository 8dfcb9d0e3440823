"""The node's copies of what its readers read: opened by path, kept on the disk of the fastest tier, evicted when room is needed.

`open` gives one version's copy: an own object that lies whole in a tier of this node is its own copy, everything else a `Copy`, whose
blocks come when they are asked for. Whatever goes wrong with the disk (no room, an error), the copy is streamed instead: a reader never
sees an error because of the cache. A disk that fails is taken out until it works again, and says so in `status`.

Invariant: one `Copy` a version at a time, so that one block is fetched once; what is on the shelf has its two files, and what has files is
on the shelf or about to be removed. A file's names are made and removed under its place's lock.

Threads: `open` and `find` belong to the event loop; everything else may be called from any thread. Lock order: a place, then the shelf's.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from ckptstore.errors import ChecksumMismatch, InvalidInput, NotFound, StaleVersion, TierUnavailable
from ckptstore.tree_messages import TreeInfo
from ckptstore_server.readers.cache import block_file
from ckptstore_server.readers.cache.block_file import BlockFile
from ckptstore_server.readers.cache.copy import Copy
from ckptstore_server.readers.cache.fetching import FetchQueue, FetchQueues
from ckptstore_server.readers.cache.gone_origin import GoneOrigin
from ckptstore_server.readers.cache.left_behind import left_behind
from ckptstore_server.readers.cache.needs import FindsOwn, OpensFiles
from ckptstore_server.readers.cache.outage import Outage, doubt_all
from ckptstore_server.readers.cache.own_replica import OwnReplica
from ckptstore_server.readers.cache.pins import Pins
from ckptstore_server.readers.cache.read_ahead import ReadAhead
from ckptstore_server.readers.cache.records import Records
from ckptstore_server.readers.cache.room import Room
from ckptstore_server.readers.cache.shelf import Held, Shelf
from ckptstore_server.readers.origin import FileVersion, Origin
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.key_locks import KeyLocks
from ckptstore_tiers.posix_errors import FULL, from_os_error
from ckptstore_tiers.scratch import ScratchPool

P = ParamSpec("P")
T = TypeVar("T")

NAME = "cache"
#: Copies whose files stay open between one need and the next.
KEPT_OPEN = 128
#: What leaves the shelf when the device is full although by our count it is not: room for a few blocks of everybody.
SQUEEZED_BYTES = 16 * BLOCK_BYTES
#: Files that a loader reads from the first tensor to the last, in an order of its own.
EAGER_SUFFIX = ".safetensors"

AnyCopy = Copy | OwnReplica


class Cache:
    def __init__(
        self,
        tree: OpensFiles,
        room: Room | None,
        *,
        digests_of: Callable[[str], BlockDigests],
        own_replica: FindsOwn,
        remark: Callable[[str, BaseException], None],
        scratch: ScratchPool,
        fetch_threads: int = 8,
        window_bytes: int = 32 * BLOCK_BYTES,
        quotas: dict[str, int] | None = None,
    ) -> None:
        """`room`: None without a disk for it; then everything is streamed."""
        self.room = room
        self._folder = folder = room.folder if room is not None else Path(os.devnull)
        self.pins, self.records = Pins(folder / "pins.json"), Records(folder / "records.json")
        self.shelf = Shelf(self.pins, quotas or {})
        self.state: Literal["off", "ok", "full", "down"] = "off"
        self.last_error: str | None = None
        self._tree = tree
        self._digests_of = digests_of
        self._own_replica = own_replica
        self.remark = remark
        self._scratch = scratch
        self._window_blocks = max(1, window_bytes // BLOCK_BYTES)
        self._files = self._folder / "files"
        self._outage = Outage(folder)
        self._lock, self._evicting = threading.Lock(), threading.Lock()
        self._places = KeyLocks()
        self._copies: weakref.WeakValueDictionary[str, Copy] = weakref.WeakValueDictionary()
        self._used_last: OrderedDict[str, Copy] = OrderedDict()  # keeps the last ones alive
        self._queues = FetchQueues(fetch_threads)
        self._readers = ThreadPoolExecutor(8, "cache-read")

    # --- life ------------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Find what a former daemon left (no data is read), within size and quotas as they are now. Blocking; to be called again and
        again: a disk that is not ready is waited for, one that failed is tried again, with growing pauses."""
        down = self.state == "down"
        if self.room is None or self.state in ("ok", "full") or not self.room.is_ready() or (down and not self._outage.is_over()):
            return
        try:
            self._files.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._outage.is_return:
                doubt_all(self._files)
                self.pins.rewrite()
            else:
                self.pins.load()
                self.records.load()
            self.shelf.found(left_behind(self._files))
            self._outage.in_use()
        except OSError as error:
            if down:
                self._outage.failed()
            self.disk_failed(error)
            return
        self.state, self.last_error = "ok", None
        self._shrink(self.limit_bytes)

    def close(self) -> None:
        """Blocking: reads from origins that are under way are waited for."""
        self._queues.close()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self.save_records()

    def save_records(self) -> None:
        """What was read, and when it was read last, for the next daemon. Blocking."""
        if self.state in ("ok", "full"):
            try:
                self.records.save()
                for held in self.shelf.used_since_asked():
                    block_file.note_use(self._files, held.file.version, held.used_s)
            except OSError as error:
                self.disk_refused(error)

    # --- opening ---------------------------------------------------------------------------------------------------------------------

    async def open(self, path: str, version: str = "", *, note: bool = True) -> AnyCopy:
        """The copy of the file at `path`, as it is now or as `version`. What the tree raises, if nothing kept here can answer instead.

        `note`: it is a reader that opens it, which counts for what stays.
        """
        try:
            file, origin = await self._tree.open(path, version)
        except (StaleVersion, TierUnavailable) as error:
            if (kept := await self._run(self._whole_all_the_same, path, version, error)) is None:
                raise
            return kept
        copy = await self._own(file, origin) or self._again(file, origin, note=note)
        if copy is None:
            copy = await self._run(self._copy_of, file, origin, note=note)
        if note:
            self.records.opened(file.path, hit=copy.kept_bytes == file.size_bytes)
        return copy

    async def open_object(self, object_id: str) -> AnyCopy:
        """The copy of an object of the store, whether or not its path still stands for it."""
        file, origin = await self._tree.open_object(object_id)
        own = await self._own(file, origin)
        return own if own is not None else await self._run(self._copy_of, file, origin, outdated=True)

    async def _own(self, file: FileVersion, origin: Origin) -> AnyCopy | None:
        if file.object_id is None:
            return None
        return await self._own_replica(file, origin, partial(self.records.served, file.path))

    async def find(self, version: str) -> Copy:
        """The copy of a version that somebody has opened before, perhaps with an earlier daemon. NotFound."""
        if (copy := self.loaded(version)) is not None:
            return copy
        held = self.shelf.get(version)
        if held is None:
            raise NotFound("this copy is kept no longer", operation="read", subject=version, hint="open the file again")
        copy_again = await self.open(held.file.path, version)
        if isinstance(copy_again, Copy):
            return copy_again
        raise NotFound("the file has another copy now", operation="read", subject=held.file.path, hint="open the file again")

    def loaded(self, version: str) -> Copy | None:
        """The copy, if it is in use or was a moment ago."""
        with self._lock:
            return self._copies.get(version)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, lambda: call(*args, **kwargs))

    def _whole_all_the_same(self, path: str, version: str, error: StaleVersion | TierUnavailable) -> Copy | None:
        """A whole copy that answers although the tree cannot: of the version asked for; of the last one seen, while the origin is down."""
        if not version and isinstance(error, StaleVersion):
            return None
        held = self.shelf.get(version or self.shelf.newest(path) or "")
        if held is None or held.file.path != path:
            return None
        copy = self._copy_of(held.file, GoneOrigin(error), outdated=isinstance(error, StaleVersion))
        return copy if copy.kept_bytes == held.file.size_bytes else None

    def _again(self, file: FileVersion, origin: Origin, *, note: bool) -> Copy | None:
        """The copy, if it is in use or was a moment ago: without a thread, since that touches no file."""
        if (copy := self.loaded(file.version)) is None or copy.streamed:
            return None
        copy.serve_from(origin, self._queue(origin))
        self.shelf.opened(file, note=note)
        self._remember(copy)
        return copy

    def _copy_of(self, file: FileVersion, origin: Origin, *, outdated: bool = False, note: bool = True) -> Copy:
        with self._places.held(file.version):
            if not outdated:
                self.shelf.opened(file, note=note)
            copy = self.loaded(file.version)
            if copy is None or (copy.streamed and self.state == "ok" and not copy.busy):
                copy = self._load(file, origin)
            elif not isinstance(origin, GoneOrigin):
                copy.serve_from(origin, self._queue(origin))
            self._remember(copy)
            return copy

    def _load(self, file: FileVersion, origin: Origin) -> Copy:
        expected = self._digests_of(file.object_id) if file.object_id is not None else None
        return Copy(
            file,
            origin,
            queue=self._queue(origin),
            keeper=self,
            scratch=self._scratch,
            readers=self._readers,
            disk=self._open_disk(file),
            expected=expected,
            ahead=ReadAhead(self._window_blocks, eager=file.path.endswith(EAGER_SUFFIX)),
        )

    def _remember(self, copy: Copy) -> None:
        with self._lock:
            self._copies[copy.file.version] = copy
            self._used_last[copy.file.version] = copy
            self._used_last.move_to_end(copy.file.version)
            while len(self._used_last) > KEPT_OPEN:
                self._used_last.popitem(last=False)

    def _queue(self, origin: Origin) -> FetchQueue:
        return self._queues.of(origin, GoneOrigin if isinstance(origin, GoneOrigin) else None)

    # --- files -----------------------------------------------------------------------------------------------------------------------

    def _open_disk(self, file: FileVersion) -> BlockFile | None:
        """The version's file, found or made; None if it is to be streamed. Under the place's lock."""
        if self.state not in ("ok", "full"):
            return None
        try:
            if file.version in self.shelf:
                with suppress(ChecksumMismatch, FileNotFoundError):
                    disk = BlockFile.open(self._files, file.version)
                    if disk.is_complete:
                        disk.sync()  # a daemon that was killed may not have got to it
                    self.shelf.resize(file.version, disk.kept_bytes)
                    return disk
            if self._could_fit(file):
                return self._create(file)
            if self.shelf.remove(file.version):
                block_file.remove(self._files, file.version)
        except InvalidInput:  # its names are too long to be written down
            pass
        except OSError as error:
            self.disk_refused(error)
        return None

    def _create(self, file: FileVersion) -> BlockFile:
        disk = BlockFile.create(self._files, file)
        self.shelf.put(file)
        return disk

    def _could_fit(self, file: FileVersion) -> bool:
        """Whether all of it could be kept, if everything went that may."""
        return file.size_bytes <= self.limit_bytes(self.shelf.held_bytes) - self.shelf.pinned_bytes()

    def limit_bytes(self, held_bytes: int) -> int:
        """What may be held now. Raises OSError."""
        return self.room.allowed_bytes(held_bytes) if self.room is not None else 0

    def new_file(self, copy: Copy) -> BlockFile | None:
        with self._places.held(copy.file.version):
            try:
                return self._create(copy.file) if self.loaded(copy.file.version) is copy else None
            except OSError as error:
                self.disk_refused(error)
                return None

    def _remove_files(self, versions: list[str]) -> None:
        for version in versions:
            with self._places.held(version):
                if version in self.shelf:
                    continue  # it was opened again meanwhile
                with self._lock:
                    copy = self._copies.pop(version, None)
                    self._used_last.pop(version, None)
                if copy is not None:
                    copy.give_up_disk()
                try:
                    block_file.remove(self._files, version)
                except OSError as error:
                    self.disk_failed(error)

    # --- room ------------------------------------------------------------------------------------------------------------------------

    def make_room(self, copy: Copy, size_bytes: int) -> bool:
        if self.state not in ("ok", "full") or self.loaded(copy.file.version) is not copy:
            return False  # without a disk, or evicted meanwhile
        with self._evicting:
            try:
                limit_bytes = self.limit_bytes(self.shelf.held_bytes)
            except OSError as error:
                self.disk_failed(error)
                return False
            there_is, gone = self.shelf.grow(copy.file.version, size_bytes, limit_bytes, self._is_busy)
            self._remove_files(gone)
            return self._note(there_is)

    def _note(self, there_is_room: bool) -> bool:
        with self._lock:
            if self.state in ("ok", "full"):
                self.state = "ok" if there_is_room else "full"
        return there_is_room

    def give_way(self, for_bytes: int = 0, *, mark: float | None = None) -> int:
        """Hold less, if the tier needs it: until it is below the mark with so many bytes more. How many bytes went. Blocking."""
        room = self.room
        if room is None or self.state not in ("ok", "full"):
            return 0
        return self._shrink(lambda held_bytes: room.allowed_bytes(held_bytes, mark=mark) - for_bytes)

    def disk_is_full(self) -> None:
        self._shrink(lambda held_bytes: held_bytes - SQUEEZED_BYTES)

    def _shrink(self, limit_bytes: Callable[[int], int]) -> int:
        with self._evicting:
            before = self.shelf.held_bytes
            try:
                limit = limit_bytes(before)
            except OSError as error:
                self.disk_failed(error)
                return 0
            self._remove_files(self.shelf.within_quotas(self._is_busy) + self.shelf.shrink(limit, self._is_busy))
        return before - self.shelf.held_bytes

    def _is_busy(self, version: str) -> bool:
        copy = self.loaded(version)
        return copy is not None and copy.busy

    def dropped(self, copy: Copy, size_bytes: int) -> None:
        if (held := self.shelf.get(copy.file.version)) is not None:
            self.shelf.resize(copy.file.version, max(0, held.size_bytes - size_bytes))

    def evict(self, below: Callable[[Held], bool]) -> list[Held]:
        """What `below` says goes, pinned or not; who has a file open reads on. Blocking."""
        with self._evicting:
            chosen = [held for held in self.shelf.held() if below(held) and self.shelf.remove(held.file.version)]
            self._remove_files([held.file.version for held in chosen])
        return chosen

    def note_scrubbed(self, version: str) -> None:
        """All of it was compared with its checksums now. Also the next daemon will know."""
        with suppress(OSError):
            os.utime(block_file.data_place(self._files, version))

    def tell(self, info: TreeInfo) -> TreeInfo:
        """The same, and `whole` if every byte of it is kept here."""
        held = None if info.whole or info.kind != "file" else self.shelf.get(info.version)
        if held is None or held.size_bytes < info.size_bytes or ((copy := self.loaded(info.version)) and not copy.whole):
            return info
        return info.model_copy(update={"whole": True})

    # --- what happens to copies ------------------------------------------------------------------------------------------------------

    def served(self, copy: Copy, size_bytes: int) -> None:
        self.records.served(copy.file.path, size_bytes)

    def fetched(self, copy: Copy, size_bytes: int) -> None:
        self.records.fetched(copy.file.path, size_bytes)

    # --- what goes wrong -------------------------------------------------------------------------------------------------------------

    def disk_refused(self, error: OSError) -> None:
        """It is full, or it fails."""
        if error.errno in FULL:
            self._note(False)
        else:
            self.disk_failed(error)

    def disk_failed(self, error: OSError) -> None:
        """Take the disk out: from now on everything is streamed. Said once."""
        with self._lock:
            if self.state == "down":
                return
            self.state, copies = "down", list(self._copies.values())
        self._outage.failed()
        translated = from_os_error(error, operation="use", key=str(self._folder), tier=NAME)
        self.last_error = str(translated)
        hint = "files are read from their origins until it works again; if it does not, replace the disk and start the daemon again"
        self.remark(NAME, TierUnavailable(translated.why, operation="use", subject=str(self._folder), tier=NAME, hint=hint))
        for copy in copies:
            copy.give_up_disk()
