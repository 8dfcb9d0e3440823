"""What every tier can do, and what each method promises when it returns or fails.

A tier keeps immutable objects under keys. It knows nothing of checkpoints, the catalog or the network of daemons. Bytes enter through
`put` from a `BlockSource` and leave through an `ObjectReader`; small documents (commit records, tombstones, the store's identity) go
through `put_document` / `get_document`. All calls block: the daemon runs them in executors that it owns. A tier may be used from
several threads at once.

Errors: `TierFull` (no space), `TierUnavailable` (EIO, EROFS, no answer: try again later), `NotFound`, `AlreadyExists`,
`ChecksumMismatch` (the source's bytes are not the expected ones, or what was stored reads back differently). Every error names
operation, key and tier. After an error of `put` or `put_document` nothing is visible under the key; leftovers of a crash are what
`sweep` removes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ckptstore_tiers.checksums import BlockDigests


@dataclass(frozen=True)
class TierFacts:
    """What is true of a tier for as long as the daemon runs; `details` holds what a probe found, for `status`."""

    name: str
    kind: str  # memory | posix | object
    shared: bool
    durable: bool
    location: str
    details: dict[str, str]


@dataclass(frozen=True)
class ObjectStat:
    key: str
    size_bytes: int
    #: seconds since the epoch, by the tier's clock
    modified_s: float
    #: what the object takes in the tier, where a codec makes that differ from `size_bytes`
    stored_bytes: int | None = None


@dataclass(frozen=True)
class TierUsage:
    """Bytes; `limit_bytes` is the configured capacity or the device's size, `free_bytes` what can still be written now."""

    used_bytes: int
    limit_bytes: int | None
    free_bytes: int | None


class BlockSource(Protocol):
    """Where the bytes of a `put` come from, 4 MiB block by block, any order, several threads at once."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def stable(self) -> bool:
        """False if the bytes may change while they are read (a segment that a client still maps)."""
        ...

    def block(self, index: int, scratch: memoryview) -> memoryview:
        """Block `index`: a view of the source's own memory, or of `scratch` (4 MiB, page-aligned) after reading into it.

        The view is valid until the next call with the same scratch. Raises TierUnavailable, ChecksumMismatch, NotFound.
        """
        ...


@runtime_checkable
class ObjectReader(Protocol):
    """An open object. It goes on reading the same bytes when the object is deleted meanwhile, where the tier can do that."""

    @property
    def size_bytes(self) -> int: ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` from `offset`. A short object raises ChecksumMismatch, never a short read."""
        ...

    def fileno(self) -> int | None:
        """A read-only descriptor that another process may read from directly, if the tier has one; owned by the reader."""
        ...

    def close(self) -> None: ...


class Tier(Protocol):
    @property
    def facts(self) -> TierFacts: ...

    def put(self, key: str, source: BlockSource, *, expected: BlockDigests | None = None) -> BlockDigests:
        """Store the source's bytes under `key`, whole, durable and verified at return; give the digests of what was stored.

        Atomic: before it returns nothing is visible under `key`, after a crash either nothing or all of it. If the key exists
        with the right bytes (a repeated put after a crash) it succeeds; a put never changes what was visible. With `expected`,
        each block read from the source must match, else ChecksumMismatch. A source that is not stable is copied block by
        block, and the copy is what is hashed and stored.
        """
        ...

    def open(self, key: str) -> ObjectReader:
        """Open for reading; NotFound if there is none."""
        ...

    def stat(self, key: str) -> ObjectStat: ...

    def delete(self, key: str) -> None:
        """Remove the object, durably. Removing what is not there succeeds. Empty folders left behind may be removed too."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """Every visible object or document whose key begins with `prefix`, in no promised order, never all held in memory."""
        ...

    def put_document(self, key: str, data: bytes, *, exclusive: bool = False) -> None:
        """Store a small document, atomically and durably. Overwrites, unless `exclusive`: then AlreadyExists, by one atomic test."""
        ...

    def get_document(self, key: str, *, limit_bytes: int = 1 << 30) -> bytes: ...

    def sweep(self, owned_ids: Iterable[str] | None) -> int:
        """Remove what crashed puts of these object ids (or document keys' last names) left unfinished; how many were removed.

        None: whatever was left below the tier's place, for one who knows that nobody else writes there now.

        A name without an id is the whole store's: another node may be writing that document into a shared tier right now, so that
        only what has been lying there for a while goes.
        """
        ...

    def usage(self) -> TierUsage: ...

    def close(self) -> None: ...


@runtime_checkable
class PutsMany(Protocol):
    """A tier that stores many small objects for less than each costs by itself."""

    def put_many(self, files: Sequence[tuple[str, memoryview]]) -> list[BlockDigests]:
        """Store each one's bytes under its key: as `put` does it, but all or, after an error, none. The bytes must not change meanwhile."""
        ...
