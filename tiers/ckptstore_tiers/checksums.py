"""Is this the content that was saved? XXH3-128 of each 4 MiB block, and one digest over those for the object.

The algorithm is XXH3-128 (https://github.com/Cyan4973/xxHash, specification v0.2.0), 26 GB/s on one core where it was measured: fast
enough to be nearly free next to a copy. It detects damage; it is no defence against somebody who forges blocks.

`BlockDigests` is a value: 16 bytes a block, concatenated, and the object's size. The object's own digest is XXH3-128 over the size
(8 bytes, little endian) followed by the block digests, so that no two objects of different length share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from ckptstore.errors import ChecksumMismatch, InvalidInput
from ckptstore_tiers.private_copy import PrivateCopy

if TYPE_CHECKING:
    from ckptstore_tiers.interface import BlockSource

BLOCK_BYTES = 4 * 1024 * 1024
DIGEST_BYTES = 16
ALGORITHM = "xxh3-128/4MiB"


def digest(data: memoryview | bytes) -> bytes:
    """The 16-byte digest of one block (or of a small document)."""
    return xxhash.xxh3_128_digest(data)


def block_count(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES)


def block_length(index: int, size_bytes: int) -> int:
    """Bytes in block `index` of an object of `size_bytes`."""
    return min(BLOCK_BYTES, size_bytes - index * BLOCK_BYTES)


@dataclass(frozen=True)
class BlockDigests:
    size_bytes: int
    blocks: bytes  # DIGEST_BYTES for each block, in order

    def __post_init__(self) -> None:
        if self.size_bytes < 0 or len(self.blocks) != DIGEST_BYTES * block_count(self.size_bytes):
            raise InvalidInput(
                f"{len(self.blocks)} bytes of block digests do not fit an object of {self.size_bytes} bytes", operation="read digests"
            )

    @classmethod
    def of(cls, data: bytes | memoryview) -> BlockDigests:
        """The digests of bytes that are all in memory."""
        view = memoryview(data).cast("B")
        parts = (digest(view[start : start + BLOCK_BYTES]) for start in range(0, len(view), BLOCK_BYTES))
        return cls(len(view), b"".join(parts))

    def block(self, index: int) -> bytes:
        return self.blocks[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    @property
    def count(self) -> int:
        return block_count(self.size_bytes)

    @property
    def root(self) -> str:
        """The object's digest, 32 hexadecimal digits."""
        return xxhash.xxh3_128_hexdigest(self.size_bytes.to_bytes(8, "little") + self.blocks)

    def check(self, index: int, data: memoryview | bytes, *, operation: str, subject: str, tier: str | None = None) -> None:
        """Raise ChecksumMismatch, naming block and place, unless `data` is block `index`."""
        if digest(data) != self.block(index):
            start = index * BLOCK_BYTES
            raise ChecksumMismatch(
                f"block {index} of {self.count} (bytes {start} to {start + len(data)}) differs from what was saved",
                operation=operation,
                subject=subject,
                tier=tier,
            )


class DigestedBlocks:
    """Reads a source block by block, hands each block on, and keeps the digest of exactly what was handed on.

    A tier's `put` drives it, from several threads at once (one scratch buffer each). What was hashed is what was written: bytes that
    can change (`source.stable` is False) are copied first, see `private_copy`.
    """

    def __init__(self, source: BlockSource, expected: BlockDigests | None, *, subject: str, tier: str) -> None:
        self.source = source if source.stable else PrivateCopy(source)
        self.expected = expected
        self._subject = subject
        self._tier = tier
        self._digests = bytearray(DIGEST_BYTES * block_count(source.size_bytes))
        if expected is not None and expected.size_bytes != source.size_bytes:
            raise ChecksumMismatch(
                f"the source has {source.size_bytes} bytes, {expected.size_bytes} were saved", operation="put", subject=subject, tier=tier
            )

    @property
    def count(self) -> int:
        return block_count(self.source.size_bytes)

    def pump(self, index: int, scratch: memoryview, write: Callable[[memoryview], None]) -> None:
        """Read block `index`, check it against `expected`, note its digest, give it to `write`."""
        view = self.source.block(index, scratch)
        found = digest(view)
        if self.expected is not None and found != self.expected.block(index):
            self.expected.check(index, view, operation="put", subject=self._subject, tier=self._tier)
        write(view)
        self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = found

    def digests(self) -> BlockDigests:
        """The digests of all blocks; call it after the last `pump`."""
        return BlockDigests(self.source.size_bytes, bytes(self._digests))
