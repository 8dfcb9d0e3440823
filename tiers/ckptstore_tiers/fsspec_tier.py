"""Any fsspec URL as a tier: `gs://`, `oss://`, `memory://`, `file://`, …

Promised: an object is visible whole or not at all, and was read back and compared with its digests before `put` returns. Durability is
that of the backend when it acknowledges; for `file://` nothing is fsynced (a posix tier does that), for `memory://` it ends with the
process. Two ways to be atomic, by what the backend is:

- An object store shows an object when its upload is closed. The bytes go to their key directly, in chunks; a failure discards the
  upload. What reads back differently is removed again, so that wrong bytes may be visible until then.
- Everything else shows a file while it grows. The bytes go to `tmp/<random>~<id>`, are verified there, then renamed. A crash leaves the
  temporary file, which `sweep` removes by its id.

Exclusive documents are one atomic act of the backend (a conditional upload, a link, the process's own lock for `memory://`), or they
are refused by name. Retries are the backend's own. Blocks and ranges move in the caller's thread, one at a time; any method may be
called from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import fsspec.exceptions
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ckptstore.config import TierSettings
from ckptstore.errors import (
    AlreadyExists,
    ChecksumMismatch,
    CkptStoreError,
    ConfigInvalid,
    InvalidInput,
    NotFound,
    PathConflict,
    TierFull,
    TierUnavailable,
)
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, DigestedBlocks, block_length
from ckptstore_tiers.fsspec_reader import FsspecReader
from ckptstore_tiers.interface import BlockSource, ObjectStat, TierFacts, TierUsage
from ckptstore_tiers.keys import check_object_key
from ckptstore_tiers.scratch import ScratchPool

T = TypeVar("T")

#: Protocols whose objects become visible when their upload is closed, and whose `pipe_file(mode="create")` is one conditional request.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
#: The first of these only.
_SHOWN_AT_CLOSE = _OBJECT_STORES | {"oss", "obs", "cos", "tos"}
_TEMPORARY = "tmp/"
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: `memory://` is one dict for the whole process, so its test and its write are made one act by a lock of the process.
_MEMORY_LOCK = threading.Lock()


class FsspecTier:
    def __init__(self, settings: TierSettings) -> None:
        self._settings = settings
        self._protocol = (settings.url or "").partition("://")[0]
        try:
            # A listing cache would go on showing what another node has deleted.
            options = {"use_listings_cache": False} | settings.options
            self._fs, root = fsspec.core.url_to_fs(settings.url, **options)
        except (ValueError, ImportError, TypeError) as error:
            # Not the error's own words: they may quote an option that is a secret.
            raise ConfigInvalid(
                f"fsspec cannot open {self._protocol}:// with these options ({type(error).__name__})",
                operation="open",
                subject=settings.name,
                hint=f"is the fsspec package for {self._protocol}:// installed?",
            ) from None
        self._root = root.rstrip("/")
        self._renames = self._protocol not in _SHOWN_AT_CLOSE
        self._scratch = ScratchPool(keep=4)
        if isinstance(self._fs, LocalFileSystem):
            self._refuse_a_file(Path(self._root))

    def _refuse_a_file(self, root: Path) -> None:
        """A root that can hold nothing, now and as long as that file is there."""
        lowest = next((place for place in (root, *root.parents) if os.path.lexists(place)), root)
        if lowest.exists() and not lowest.is_dir():
            raise TierUnavailable(
                f"{lowest} is a file, not a folder",
                operation="open tier",
                subject=str(root),
                tier=self._settings.name,
                hint="name another folder in the tier's url, or move the file away",
            )

    @property
    def facts(self) -> TierFacts:
        details = {
            "filesystem": type(self._fs).__name__,
            "atomic_by": "rename" if self._renames else "upload shown when closed",
            "checksum": "every put is read back",
            "exclusive_documents": "yes"
            if self._can_create()
            else "refused: no atomic creation is known for this backend",
        }
        return TierFacts(
            self._settings.name,
            "object",
            self._settings.is_shared,
            self._settings.durable,
            f"{self._protocol}://{self._root}",
            details,
        )

    def put(self, key: str, source: BlockSource, *, expected: BlockDigests | None = None) -> BlockDigests:
        self._check(key, "put")
        blocks = DigestedBlocks(source, expected, subject=key, tier=self._settings.name)
        free = self.usage().free_bytes
        if free is not None and free < source.size_bytes:
            why = f"{source.size_bytes} bytes do not fit into the {free} that are left of the configured capacity"
            raise TierFull(why, operation="put", subject=key, tier=self._settings.name)
        if self._exists(key):
            return self._accept(key, blocks)
        place = self._temporary(key) if self._renames else self._place(key)
        try:
            self._write(key, place, blocks)
            digests = blocks.digests()
            self._read_back(key, place, digests)
            if place != self._place(key):
                self._call("put", key, self._rename, place, self._place(key))
        except CkptStoreError:
            with contextlib.suppress(CkptStoreError):  # the first error says more; `sweep` finds what is left
                self._remove("put", key, place)
            raise
        return digests

    def open(self, key: str) -> FsspecReader:
        size_bytes, place = self.stat(key).size_bytes, self._place(key)
        return FsspecReader(
            self._settings.name, key, size_bytes, lambda start, view: self._read_range("read", key, place, start, view)
        )

    def stat(self, key: str) -> ObjectStat:
        self._check(key, "stat")
        found = self._call("stat", key, self._fs.info, self._place(key))
        if found["type"] == "directory":
            raise NotFound(
                "a folder is stored there, not an object", operation="stat", subject=key, tier=self._settings.name
            )
        return ObjectStat(key, int(found["size"]), _modified_s(found))

    def delete(self, key: str) -> None:
        self._check(key, "delete")
        self._remove("delete", key, self._place(key))

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        folder = prefix.rpartition("/")[0]
        top = f"{self._root}/{folder}" if folder else self._root
        walk = self._fs.walk(top, detail=True, on_error=_unless_missing)
        while (found := self._call("list", prefix, next, walk, None)) is not None:
            _, _, files = found
            for entry in list(files.values()):
                key = self._fs._strip_protocol(entry["name"])[len(self._root) :].lstrip("/")
                # An empty folder may be listed as an entry of itself.
                if key.startswith(prefix) and not key.startswith(_TEMPORARY) and entry["type"] != "directory":
                    yield ObjectStat(key, int(entry["size"]), _modified_s(entry))

    def put_document(self, key: str, data: bytes, *, exclusive: bool = False) -> None:
        self._check(key, "put document")
        if not exclusive and not self._renames:
            self._call("put document", key, self._fs.pipe_file, self._place(key), data)
        elif exclusive and self._protocol in _OBJECT_STORES:
            self._create_on_store(key, data)
        elif exclusive and not self._can_create():
            why = f"no atomic creation is known for {self._protocol}://"
            raise InvalidInput(
                why, operation="put document", subject=key, tier=self._settings.name, hint="use a posix or s3 tier"
            )
        else:
            self._put_renamed_document(key, data, exclusive)
        if self.get_document(key, limit_bytes=max(len(data) * 2, 1 << 20)) != data and exclusive:
            self._remove("put document", key, self._place(key))
            why = "what was stored reads back differently"
            raise ChecksumMismatch(why, operation="put document", subject=key, tier=self._settings.name)

    def _create_on_store(self, key: str, data: bytes) -> None:
        try:
            self._call("put document", key, self._fs.pipe_file, self._place(key), data, mode="create")
        except TierUnavailable as error:
            # s3fs gives EINVAL for a condition that does not hold, others their own: what is there tells it from an outage.
            if self._exists(key):
                why = "something is stored under this key"
                raise AlreadyExists(why, operation="put document", subject=key, tier=self._settings.name) from error
            raise

    def _put_renamed_document(self, key: str, data: bytes, exclusive: bool) -> None:
        temporary = self._temporary(key)

        def write() -> None:
            self._fs.makedirs(self._parent(temporary), exist_ok=True)
            self._fs.pipe_file(temporary, data)
            (self._create if exclusive else self._rename)(temporary, self._place(key))

        try:
            self._call("put document", key, write)
        finally:
            with contextlib.suppress(CkptStoreError):
                self._remove("put document", key, temporary)

    def get_document(self, key: str, *, limit_bytes: int = 1 << 30) -> bytes:
        found = self.stat(key)
        if found.size_bytes > limit_bytes:
            why = f"the document has {found.size_bytes} bytes; {limit_bytes} are allowed"
            raise InvalidInput(why, operation="get document", subject=key, tier=self._settings.name)
        return bytes(self._call("get document", key, self._fs.cat_file, self._place(key)))

    def sweep(self, owned_ids: Iterable[str] | None) -> int:
        """Remove the temporary files of these ids; uploads to an object store that were never closed are the store's to expire."""
        owned = None if owned_ids is None else frozenset(owned_ids)
        if (owned is not None and not owned) or not self._renames:
            return 0
        folder = f"{self._root}/{_TEMPORARY.rstrip('/')}"
        try:
            names = self._call("sweep", _TEMPORARY, self._fs.ls, folder, detail=False)
        except NotFound:
            return 0
        left = [name for name in names if owned is None or name.rpartition("~")[2] in owned]
        for name in left:
            self._remove("sweep", _TEMPORARY, name)
        return len(left)

    def usage(self) -> TierUsage:
        """With a configured capacity what is there is listed and added up, at each call; without one nothing is."""
        capacity = self._settings.capacity
        used = sum(entry.size_bytes for entry in self.list("")) if capacity is not None else 0
        return TierUsage(used, capacity, None if capacity is None else max(0, capacity - used))

    def close(self) -> None:
        """fsspec's file systems hold nothing that a caller could give back; the buffers are ours."""
        self._scratch.close()

    def _read_range(self, operation: str, key: str, place: str, start: int, view: memoryview) -> None:
        """Fill `view` from `start` of what lies at `place`, a block at a time."""
        for offset in range(0, len(view), BLOCK_BYTES):
            piece = view[offset : offset + BLOCK_BYTES]
            first = start + offset
            data = self._call(operation, key, self._fs.cat_file, place, start=first, end=first + len(piece))
            if len(data) != len(piece):
                why = f"{len(data)} of {len(piece)} bytes came from byte {first}"
                raise ChecksumMismatch(why, operation=operation, subject=key, tier=self._settings.name)
            piece[:] = data

    # -- the inside --------------------

    def _write(self, key: str, place: str, blocks: DigestedBlocks) -> None:
        if self._renames:
            self._call("put", key, self._fs.makedirs, self._parent(place), exist_ok=True)
        # An object store's upload is committed by hand, so that leaving this block by an error does not show half an object.
        commits = {} if self._renames else {"autocommit": False}
        file = self._call("put", key, self._fs.open, place, "wb", block_size=4 * BLOCK_BYTES, **commits)
        try:
            with self._scratch.borrow() as scratch:
                for index in range(blocks.count):
                    blocks.pump(index, scratch, lambda view: self._call("put", key, file.write, view))
            self._call("put", key, file.close)
            if commits:
                self._call("put", key, file.commit)
        except BaseException:
            with contextlib.suppress(OSError, ValueError, NotImplementedError, AttributeError):
                if commits:
                    file.discard()
                    file.closed = True  # else its finaliser would upload what is buffered
                else:
                    file.close()
            raise

    def _accept(self, key: str, blocks: DigestedBlocks) -> BlockDigests:
        """The source's digests, if its bytes are what is stored already."""
        with self._scratch.borrow() as scratch:
            for index in range(blocks.count):
                blocks.pump(index, scratch, lambda view: None)
        digests = blocks.digests()
        try:
            self._read_back(key, self._place(key), digests)
        except ChecksumMismatch as error:
            why = "other bytes are stored under this key"
            raise AlreadyExists(
                why, operation="put", subject=key, tier=self._settings.name, hint="delete the object first"
            ) from error
        return digests

    def _read_back(self, key: str, place: str, digests: BlockDigests) -> None:
        found = int(self._call("put", key, self._fs.info, place)["size"])
        if found != digests.size_bytes:
            why = f"{found} bytes are stored, not {digests.size_bytes}"
            raise ChecksumMismatch(why, operation="put", subject=key, tier=self._settings.name)
        with self._scratch.borrow() as buffer:
            for index in range(digests.count):
                view = buffer[: block_length(index, digests.size_bytes)]
                self._read_range("put", key, place, index * BLOCK_BYTES, view)
                digests.check(index, view, operation="put", subject=key, tier=self._settings.name)

    def _exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def _rename(self, temporary: str, place: str) -> None:
        self._fs.makedirs(self._parent(place), exist_ok=True)
        if isinstance(self._fs, MemoryFileSystem):
            # Its own `mv` expands wildcards in names, and copies; the copy appears in one assignment.
            self._fs.cp_file(temporary, place)
            self._fs.rm_file(temporary)
        else:
            self._fs.mv(temporary, place)

    def _can_create(self) -> bool:
        return self._protocol in _OBJECT_STORES or isinstance(self._fs, LocalFileSystem | MemoryFileSystem)

    def _create(self, temporary: str, place: str) -> None:
        """Show a finished temporary file under `place` unless something is there; FileExistsError then."""
        self._fs.makedirs(self._parent(place), exist_ok=True)
        if isinstance(self._fs, LocalFileSystem):
            self._fs.link(temporary, place)
            return
        with _MEMORY_LOCK:
            if self._fs.exists(place):
                raise FileExistsError(place)
            self._fs.cp_file(temporary, place)

    def _remove(self, operation: str, key: str, place: str) -> None:
        with contextlib.suppress(NotFound):
            self._call(operation, key, self._fs.rm_file, place)

    def _place(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _temporary(self, key: str) -> str:
        return f"{self._root}/{_TEMPORARY}{os.urandom(8).hex()}~{key.rpartition('/')[2].rpartition('~')[2]}"

    @staticmethod
    def _parent(place: str) -> str:
        return place.rpartition("/")[0]

    def _check(self, key: str, operation: str) -> None:
        check_object_key(key, operation=operation, tier=self._settings.name)
        if key.startswith(_TEMPORARY):
            raise InvalidInput(
                f"keys below {_TEMPORARY} are the tier's own",
                operation=operation,
                subject=key,
                tier=self._settings.name,
            )

    def _call(self, operation: str, key: str, act: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """`act(…)`, its failure as one of our errors. Backends raise what they like for an outage; OSError is what fsspec asks of them."""
        try:
            return act(*arguments, **named)
        except FileNotFoundError as error:
            raise NotFound(
                "nothing is stored under this key", operation=operation, subject=key, tier=self._settings.name
            ) from error
        except FileExistsError as error:
            raise AlreadyExists(
                "something is stored under this key", operation=operation, subject=key, tier=self._settings.name
            ) from error
        except (IsADirectoryError, NotADirectoryError) as error:
            if operation in ("put", "put document"):
                why = "a file stands where a folder would have to be, or a folder in the object's place"
                raise PathConflict(why, operation=operation, subject=key, tier=self._settings.name) from error
            raise NotFound(
                "a folder is stored there, not an object", operation=operation, subject=key, tier=self._settings.name
            ) from error
        except (OSError, fsspec.exceptions.FSTimeoutError) as error:
            leaf = TierFull if isinstance(error, OSError) and error.errno in _FULL_ERRNOS else TierUnavailable
            raise leaf(
                f"{type(error).__name__}: {error}", operation=operation, subject=key, tier=self._settings.name
            ) from error


def _modified_s(entry: dict[str, Any]) -> float:
    """When an entry was last changed: backends tell it under different names, as a number, a text or a datetime."""
    names = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
    value = next((entry[name] for name in names if entry.get(name) is not None), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _unless_missing(error: OSError) -> None:
    """What `walk` does about a folder that it cannot list: one that was deleted meanwhile is left out, anything else ends the listing."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
