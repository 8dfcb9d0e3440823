"""A tier in a folder: NVMe of the node, or any mounted parallel file system.

    <root>/objects/<path>~<id>    whole objects, plain files: any program can read them
    <root>/records, tombstones    small documents
    <root>/tmp/<id>.<random>      unfinished files, which `sweep` removes

Invariant: a name outside `tmp` belongs to a whole file whose bytes were on the disk before it got that name, and it never
comes to mean other bytes (documents aside, which are replaced whole). So a reader needs no lock, and a crash at any point
leaves an object whole or absent.

Durable at return of `put` and `put_document`: data and size (fsync of the file), the name (fsync of its folder) and every
folder that leads to it. On a shared mount the data is also read back past the caches before it is named. A put takes these
steps; a crash after each leaves what stands behind it:

    1. write `tmp/<id>.<random>`, fsync it           an unfinished file, which `sweep` removes
    2. shared mounts: read it back, compare          the same
    3. make and fsync the folders on the way         the same, and perhaps empty folders
    4. move it to its name, which must be new        the whole object, or after a power cut perhaps the unfinished file
    5. fsync its folder                              the whole object

A source that may change while it is read is copied, block by block, and the copy is hashed and written. Hashing it before and
after the write instead would save a tenth of the time and miss a byte that is changed and changed back.

Threading: any thread. Puts and deletes of one key exclude each other within this process; everything else runs side by side.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import stamina

from ckptstore.errors import AlreadyExists, CkptStoreError, ConfigInvalid, InvalidInput, NotFound
from ckptstore.failpoints import declare
from ckptstore.paths import is_id
from ckptstore_tiers import disk_calls
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, DigestedBlocks
from ckptstore_tiers.followed import follower_of
from ckptstore_tiers.interface import BlockSource, ObjectStat, TierFacts, TierUsage
from ckptstore_tiers.key_locks import KeyLocks
from ckptstore_tiers.keys import UNFINISHED, check_key, unfinished_owner
from ckptstore_tiers.posix_batch import SmallPuts
from ckptstore_tiers.posix_errors import from_os_error, translated
from ckptstore_tiers.posix_folders import Folders
from ckptstore_tiers.posix_list import list_files
from ckptstore_tiers.posix_naming import SYNC_FOLDER, Naming
from ckptstore_tiers.posix_probe import TOKEN, MountAbilities, is_left_over, probe_mount, refuse_file_system
from ckptstore_tiers.posix_read import PosixReader, check_content
from ckptstore_tiers.posix_space import Space
from ckptstore_tiers.posix_write import WRITE_THREADS, BlockWriter, WriteWays, discard, write_all, write_file
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.sources import MemorySource

REPLACE_DOCUMENT = declare("posix.put_document.rename")
DELETE = declare("posix.delete.unlink")
SYNC_DELETED = declare("posix.delete.fsync_folder")
SWEEP = declare("posix.sweep.unlink")
SYNC_ROOT = declare("posix.open_tier.fsync_root")

#: How often a document that is missing is looked for on a mount where replacing one is not atomic, and how far apart.
LOOKS_FOR_DOCUMENT, LOOK_AGAIN_S = 5, 0.005

DirectIO = Literal["auto", "always", "never"]


class PosixTier:
    """Implements `ckptstore_tiers.interface.Tier`. `direct_io="always"` refuses a mount without O_DIRECT.

    `write_threads` are shared by all puts; `write_size_bytes`, whole pages, is the longest single write.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        shared: bool = False,
        durable: bool = True,
        capacity_bytes: int | None = None,
        direct_io: DirectIO = "auto",
        write_threads: int = WRITE_THREADS,
        write_size_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._name = name
        self._root = root
        self._shared = shared
        self._direct_io = direct_io
        refuse_file_system(root, tier=name)
        self._make_root()
        self._folders = Folders(root, tier=name, shared=shared)
        self._abilities = self._probe()
        direct = self._abilities.direct and direct_io != "never"
        self._ways = WriteWays(direct, self._abilities.preallocate, write_threads, write_size_bytes)
        self._facts = TierFacts(name, "posix", shared, durable, str(root), dict(self._abilities.details))
        with translated("open tier", str(root), name):
            self._space = Space(root, tier=name, shared=shared, capacity_bytes=capacity_bytes)
        self._locks = KeyLocks()
        self._scratch = ScratchPool(keep=4 * write_threads)
        self._writers = ThreadPoolExecutor(write_threads, thread_name_prefix=f"ckptstore-{name}-write")
        self._naming = Naming(self._folders, self._abilities.publisher, tier=name)
        self._small = SmallPuts(
            self._folders,
            self._naming,
            self._space,
            self._locks,
            tier=name,
            read_back=self._read_back if shared else None,
            put_alone=lambda key, data: self.put(key, MemorySource(data)),
        )

    def _make_root(self) -> None:
        """Make the root and its folder for unfinished files. What is above the root is the operator's, and not fsynced."""
        with translated("open tier", str(self._root), self._name):
            if not (self._root / UNFINISHED).is_dir():
                (self._root / UNFINISHED).mkdir(parents=True, exist_ok=True)
                for folder in (self._root, self._root.parent):
                    fd = disk_calls.open_folder(SYNC_ROOT, str(folder))
                    try:
                        disk_calls.fsync(SYNC_ROOT, fd)
                    finally:
                        os.close(fd)

    def _probe(self) -> MountAbilities:
        location = str(self._root)
        with translated("open tier", location, self._name), self._folders.unfinished() as tmp:
            found = probe_mount(tmp, token=f"{TOKEN}{secrets.token_hex(8)}", tier=self._name, location=location)
        if self._direct_io == "always" and not found.direct:
            raise ConfigInvalid(
                "the mount has no O_DIRECT, which `direct_io = \"always\"` asks for",
                operation="open tier",
                subject=location,
                tier=self._name,
                hint="use direct_io = \"auto\"",
            )
        return found

    @property
    def facts(self) -> TierFacts:
        return self._facts

    # -- put --------------------

    def put(self, key: str, source: BlockSource, *, expected: BlockDigests | None = None) -> BlockDigests:
        names, name = self._split(key, "put")
        blocks = DigestedBlocks(source, expected, subject=key, tier=self._name)
        with self._locks.held(key):
            if (found := self._put_before(key, names, name, blocks)) is not None:
                return found
            with self._space.reserved(source.size_bytes, operation="put", key=key):
                writer = BlockWriter(blocks, self._writers, self._scratch, self._ways, follower_of(source))
                with translated("put", key, self._name), self._unfinished_file(key) as (tmp, unfinished):
                    write_file(
                        unfinished,
                        source.size_bytes,
                        writer.fill,
                        dir_fd=tmp,
                        ways=self._ways,
                        must_be_direct=self._direct_io == "always",
                    )
                    digests = blocks.digests()
                    if self._shared:
                        self._read_back(key, tmp, unfinished, digests)
                    published = self._publish(names, name, tmp, unfinished)
                if not published:
                    return self._check_repeated(key, names, name, digests)
                self._space.changed(source.size_bytes)
                return digests

    def _put_before(
        self, key: str, names: tuple[str, ...], name: str, blocks: DigestedBlocks
    ) -> BlockDigests | None:
        """The digests of an object that is there already, verified and made durable; None if there is none."""
        try:
            with self._folders.opened(names) as folder:
                os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise from_os_error(error, operation="put", key=key, tier=self._name) from error
        return self._check_repeated(key, names, name, blocks.expected or self._digest_source(blocks))

    def _digest_source(self, blocks: DigestedBlocks) -> BlockDigests:
        with self._scratch.borrow() as scratch:
            for index in range(blocks.count):
                blocks.pump(index, scratch, lambda view: None)
        return blocks.digests()

    def _check_repeated(self, key: str, names: tuple[str, ...], name: str, digests: BlockDigests) -> BlockDigests:
        """A put of what is there: right bytes are a success, once all that a crash may have left undone is done again."""
        with translated("put", key, self._name), self._folders.durable(names) as folder:
            reader = PosixReader(key, name, dir_fd=folder, tier=self._name, direct=self._ways.direct)
            try:
                check_content(reader, digests, self._scratch, operation="put", key=key, tier=self._name)
            finally:
                reader.close()
            disk_calls.fsync(SYNC_FOLDER, folder)
        return digests

    def _read_back(self, key: str, tmp: int, unfinished: str, digests: BlockDigests) -> None:
        reader = PosixReader(key, unfinished, dir_fd=tmp, tier=self._name, direct=self._ways.direct)
        try:
            check_content(reader, digests, self._scratch, operation="put", key=key, tier=self._name)
        finally:
            reader.close()

    @contextmanager
    def _unfinished_file(self, key: str) -> Iterator[tuple[int, str]]:
        """The folder for unfinished files and a new name in it; whatever is left under that name at the end is removed."""
        unfinished = f"{unfinished_owner(key)}.{secrets.token_hex(6)}"
        with self._folders.unfinished() as tmp:
            try:
                yield tmp, unfinished
            except BaseException:
                discard(unfinished, dir_fd=tmp)
                raise

    def _publish(self, names: tuple[str, ...], name: str, tmp: int, unfinished: str) -> bool:
        """Steps 3 to 5: the finished file gets its name, durably. False if something has that name already."""
        return not self._naming.give(names, [(unfinished, name)], tmp)

    def put_many(self, files: Sequence[tuple[str, memoryview]]) -> list[BlockDigests]:
        """See `interface.PutsMany`."""
        return self._small.put(files)

    # -- open, stat, list, delete --------------------

    def open(self, key: str) -> PosixReader:
        names, name = self._split(key, "open")
        with self._looking_for(key, "open"), self._folders.opened(names) as folder:
            return PosixReader(key, name, dir_fd=folder, tier=self._name, direct=self._ways.direct)

    def stat(self, key: str) -> ObjectStat:
        names, name = self._split(key, "stat")
        with self._looking_for(key, "stat"), self._folders.opened(names) as folder:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise NotFound("what is there is no plain file", operation="stat", subject=key, tier=self._name)
        return ObjectStat(key, found.st_size, found.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        with translated("list", prefix, self._name):
            self._folders.check_mounted()
            yield from list_files(self._folders, prefix, tier=self._name)

    def delete(self, key: str) -> None:
        """1. unlink, 2. fsync of the folder: from here on it stays away, 3. empty folders go.

        Where there is nothing to unlink the folder is fsynced all the same: a crash may have come between 1 and 2 before.
        """
        names, name = self._split(key, "delete")
        with self._locks.held(key), translated("delete", key, self._name):
            self._folders.check_mounted()
            with self._folders.deepest(names) as (folder, depth):
                if depth == len(names):
                    self._unlink(name, folder)
                disk_calls.fsync(SYNC_DELETED, folder)
            self._folders.remove_empty(names[:depth])

    def _unlink(self, name: str, folder: int) -> None:
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                with suppress(OSError):  # an empty folder is nobody's; one with something in it stays
                    os.rmdir(name, dir_fd=folder)
                return
            disk_calls.unlink(DELETE, name, dir_fd=folder)
            self._space.changed(-found.st_size)

    # -- documents --------------------

    def put_document(self, key: str, data: bytes, *, exclusive: bool = False) -> None:
        names, name = self._split(key, "put document")

        def fill(fd: int, direct: bool) -> None:
            write_all(fd, memoryview(data), 0)

        buffered = WriteWays(direct=False, preallocate=False)
        with self._locks.held(key), self._space.reserved(len(data), operation="put document", key=key):
            with translated("put document", key, self._name), self._unfinished_file(key) as (tmp, unfinished):
                write_file(unfinished, len(data), fill, dir_fd=tmp, ways=buffered)
                before_bytes = self._size_before(names, name)
                if before_bytes is not None and not exclusive:
                    self._replace(names, name, tmp, unfinished)
                elif not self._publish(names, name, tmp, unfinished):
                    if exclusive:
                        raise AlreadyExists("there is such a document", operation="put document", subject=key, tier=self._name)
                    # Another node was first: a plain document is simply the last one written.
                    write_file(unfinished, len(data), fill, dir_fd=tmp, ways=buffered)
                    self._replace(names, name, tmp, unfinished)
            self._space.changed(len(data) - (before_bytes or 0))

    def _size_before(self, names: tuple[str, ...], name: str) -> int | None:
        try:
            with self._folders.opened(names) as folder:
                return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _replace(self, names: tuple[str, ...], name: str, tmp: int, unfinished: str) -> None:
        """The old document or the new one, at every moment and after any crash; the new one once this returns."""
        with self._folders.durable(names) as folder:
            disk_calls.rename(REPLACE_DOCUMENT, unfinished, name, dir_fd=tmp, new_dir_fd=folder)
            disk_calls.fsync(SYNC_FOLDER, folder)

    def get_document(self, key: str, *, limit_bytes: int = 1 << 30) -> bytes:
        if self._abilities.replace_is_atomic:
            return self._read_document(key, limit_bytes)
        # On such a mount (GlusterFS is one) "not found" may only mean "being replaced".
        for attempt in stamina.retry_context(
            on=NotFound, attempts=LOOKS_FOR_DOCUMENT, timeout=1.0, wait_initial=LOOK_AGAIN_S, wait_max=LOOK_AGAIN_S, wait_jitter=0.0
        ):
            with attempt:
                return self._read_document(key, limit_bytes)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read_document(self, key: str, limit_bytes: int) -> bytes:
        names, name = self._split(key, "get document")
        with self._looking_for(key, "get document"), self._folders.opened(names) as folder:
            reader = PosixReader(key, name, dir_fd=folder, tier=self._name, direct=False)
        try:
            if reader.size_bytes > limit_bytes:
                raise InvalidInput(
                    f"the document has {reader.size_bytes} bytes; at most {limit_bytes} are read",
                    operation="get document",
                    subject=key,
                    tier=self._name,
                )
            data = bytearray(reader.size_bytes)
            reader.read_into(0, memoryview(data))
            return bytes(data)
        finally:
            reader.close()

    # -- the rest --------------------

    def sweep(self, owned_ids: Iterable[str] | None) -> int:
        owned, removed = None if owned_ids is None else set(owned_ids), 0
        with translated("sweep", UNFINISHED, self._name), self._folders.unfinished() as tmp, os.scandir(tmp) as entries:
            now_s = os.fstat(tmp).st_mtime  # by the clock of the file system, which its clients share; opening the tier touched it
            for entry in entries:
                owner, dot, _ = entry.name.rpartition(".")
                certain = not self._shared or is_id(owner.partition(".")[0])
                if dot and (owned is None or (owner in owned and (certain or is_left_over(entry, now_s)))):
                    with suppress(FileNotFoundError):
                        disk_calls.unlink(SWEEP, entry.name, dir_fd=tmp)
                        removed += 1
        return removed

    def usage(self) -> TierUsage:
        with translated("usage", str(self._root), self._name):
            return self._space.usage()

    def close(self) -> None:
        """Wait for the writers, give back threads and buffers. Readers stay open: they are their users'."""
        self._writers.shutdown(wait=True)
        self._scratch.close()

    def _split(self, key: str, operation: str) -> tuple[tuple[str, ...], str]:
        *names, name = check_key(key, operation=operation, tier=self._name).split("/")
        return tuple(names), name

    @contextmanager
    def _looking_for(self, key: str, operation: str) -> Iterator[None]:
        """Translate errors; and let NotFound only be said while the root is mounted."""
        try:
            with translated(operation, key, self._name):
                yield
        except NotFound as missing:
            self._check_still_there(missing)
            raise

    def _check_still_there(self, missing: CkptStoreError) -> None:
        with translated(missing.operation or "open", missing.subject or "", self._name):
            self._folders.check_mounted()
