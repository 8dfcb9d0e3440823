"""How an object gets into S3: one PutObject, or parts sent at once, verified before `put` returns, never over something else.

Steps of a put, and what a crash after each leaves:
1. HEAD: the key is free, or holds the right bytes already (then the put is done). Nothing is left.
2. Small objects: PutObject with a checksum, If-None-Match where the server honours it. The object is visible, whole.
   Large ones: CreateMultipartUpload, then the parts. An unfinished upload is left, invisible; `sweep` aborts it by the id in its key,
   in the next process or before this one tries the put again.
3. CompleteMultipartUpload, conditional where honoured. The object is visible, whole.
4. HEAD says size and whose it is. Where the server checks no checksums, the object is read back and removed if it differs: on such a
   server only, wrong bytes may be visible until then, and a repeated put reads back what it finds instead of trusting it.

An answer may get lost after the server has acted. Every try carries a random `ckptstore-put` in its metadata, by which it knows its own.
`ckptstore-digest` holds the digest of the content where it was known before the first byte was sent.

The bytes of a part are read once, from the NVMe file into page-aligned memory past the page cache, hashed there, and sent from there;
bytes that lie in memory already, and cannot change, are hashed and sent where they lie. What was hashed is what is sent, also when a
client still writes into the source: such blocks are copied first.

Memory: each put holds at most 128 MiB of parts (or one part, where a part is larger), and the tier as many parts as its window has slots.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from ckptstore.errors import AlreadyExists, ChecksumMismatch, CkptStoreError, NotFound, TierUnavailable
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, DigestedBlocks
from ckptstore_tiers.interface import BlockSource
from ckptstore_tiers.s3_buffers import OBJECT_MEMORY_BYTES, PartBuffers
from ckptstore_tiers.s3_connection import S3Connection, StoredObject
from ckptstore_tiers.s3_probe import S3Abilities, algorithm_of, checksum_of, part_of
from ckptstore_tiers.s3_reader import S3Reader

MAX_PARTS = 10_000
DIGEST_KEY = "ckptstore-digest"
PUT_KEY = "ckptstore-put"


def part_bytes(size_bytes: int, configured: int) -> int:
    """Bytes of one part: as configured, more where 10,000 such parts would not hold the object; whole blocks."""
    blocks = -(-size_bytes // BLOCK_BYTES)
    return max(configured, -(-blocks // MAX_PARTS) * BLOCK_BYTES)


class S3Upload:
    """One put: a key, a source, and what the server is able to do. Used once, by one thread; its parts run in the tier's executor."""

    def __init__(
        self,
        connection: S3Connection,
        abilities: S3Abilities,
        executor: ThreadPoolExecutor,
        buffers: PartBuffers,
        key: str,
        source: BlockSource,
        expected: BlockDigests | None,
    ) -> None:
        self._connection = connection
        self._abilities = abilities
        self._executor = executor
        self._buffers = buffers
        self._key = key
        self._size_bytes = source.size_bytes
        self._blocks = DigestedBlocks(source, expected, subject=key, tier=connection.tier)
        self._nonce = os.urandom(16).hex()
        self._metadata = {PUT_KEY: self._nonce} | ({DIGEST_KEY: expected.root} if expected is not None else {})
        self._part_bytes = part_bytes(self._size_bytes, connection.window.part_bytes(self._size_bytes, held=True))
        self._stop = threading.Event()
        self._may_be_visible = False
        #: Whether an unfinished upload may have stayed: it could not be aborted, or the answer that names it was lost.
        self.may_be_left = False

    def run(self) -> BlockDigests:
        with self._buffers.in_use():
            return self._run()

    def _run(self) -> BlockDigests:
        stored = self._find()
        if stored is not None:
            return self._accept(stored)
        try:
            if self._size_bytes < self._part_bytes:
                self._put_whole()
            else:
                self._put_parts()
        except (AlreadyExists, TierUnavailable, NotFound) as error:
            stored = self._find_after(error)
            if stored.metadata.get(PUT_KEY) != self._nonce:
                return self._accept(stored)
        return self._verified(self._blocks.digests())

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._connection.ask("put", self._key, method, Key=self._connection.name(self._key), **parameters)

    def _find(self) -> StoredObject | None:
        try:
            return self._connection.head("put", self._key)
        except NotFound:
            return None

    def _find_after(self, error: CkptStoreError) -> StoredObject:
        """What stands under the key after a failure: another's object, or ours if only the answer was lost; else `error` again."""
        if not self._may_be_visible:
            raise error
        try:
            return self._connection.head("put", self._key, retry_for_s=0)
        except CkptStoreError:
            raise error from None

    def _accept(self, stored: StoredObject) -> BlockDigests:
        """The source's digests, if `stored` holds its bytes: by the digest kept with it where the server checks, else by reading."""
        if stored.size_bytes != self._size_bytes:
            raise self._other_bytes(
                f"an object of {stored.size_bytes} bytes is stored under this key, not {self._size_bytes}"
            )
        with self._buffer(BLOCK_BYTES) as scratch:
            for index in range(self._blocks.count):
                self._blocks.pump(index, scratch, lambda view: None)
        digests = self._blocks.digests()
        if self._abilities.checksum == "none" or stored.metadata.get(DIGEST_KEY) != digests.root:
            try:
                self._read_back(stored, digests)
            except ChecksumMismatch as error:
                raise self._other_bytes("other bytes are stored under this key") from error
        return digests

    def _other_bytes(self, why: str) -> AlreadyExists:
        return AlreadyExists(
            why, operation="put", subject=self._key, tier=self._connection.tier, hint="delete the object first"
        )

    def _put_whole(self) -> None:
        condition = {"IfNoneMatch": "*"} if self._abilities.conditional_put else {}
        with self._connection.window.slot() as transfer, self._gathered(0, self._size_bytes) as pieces:
            metadata = self._metadata | {DIGEST_KEY: self._blocks.digests().root}
            check = checksum_of(self._abilities.checksum, *pieces)
            self._may_be_visible = True
            self._ask("put_object", body=pieces, Metadata=metadata, **condition, **check)
            transfer.moved_bytes = self._size_bytes

    @contextlib.contextmanager
    def _gathered(self, start: int, length: int) -> Iterator[list[memoryview]]:
        """The bytes from `start`, a whole block's first, as pieces that stay as they are for a `with` block; their digests are noted."""
        pieces: list[memoryview] = []
        with self._buffer(max(1, -(-length // BLOCK_BYTES)) * BLOCK_BYTES) as buffer:
            for offset in range(0, length, BLOCK_BYTES):
                scratch = buffer[offset : offset + BLOCK_BYTES]
                self._blocks.pump((start + offset) // BLOCK_BYTES, scratch, pieces.append)
            yield pieces

    @contextlib.contextmanager
    def _buffer(self, size_bytes: int) -> Iterator[memoryview]:
        buffer = self._buffers.borrow(size_bytes)
        try:
            yield buffer
        finally:
            self._buffers.give_back(buffer)

    def _put_parts(self) -> None:
        self.may_be_left = True
        begun = self._ask("create_multipart_upload", Metadata=self._metadata, **algorithm_of(self._abilities.checksum))
        upload_id = begun["UploadId"]
        try:
            self._complete(upload_id, self._send_parts(upload_id))
        except BaseException:
            # If the store is gone, the upload stays until `sweep`; the first error says more than a second one would.
            with contextlib.suppress(CkptStoreError):
                self._ask("abort_multipart_upload", UploadId=upload_id, retry_for_s=0)
                self.may_be_left = False
            raise
        self.may_be_left = False

    def _send_parts(self, upload_id: str) -> list[dict[str, Any]]:
        """Send every part, a bounded number at a time; at the first failure the rest is not begun, and what runs is waited for."""
        in_flight = max(1, OBJECT_MEMORY_BYTES // self._part_bytes)
        numbers = iter(range(1, 1 + -(-self._size_bytes // self._part_bytes)))
        running: set[Future[dict[str, Any]]] = set()
        parts: list[dict[str, Any]] = []
        try:
            while True:
                for number in numbers:
                    running.add(self._executor.submit(self._send_part, upload_id, number))
                    if len(running) >= in_flight:
                        break
                if not running:
                    return sorted(parts, key=lambda part: int(part["PartNumber"]))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                parts += [one.result() for one in done]
        finally:
            self._stop.set()
            for one in running:
                one.cancel()
            wait(running)

    def _send_part(self, upload_id: str, number: int) -> dict[str, Any]:
        with self._connection.window.slot() as transfer:
            if self._stop.is_set():
                raise TierUnavailable(
                    "another part failed", operation="put", subject=self._key, tier=self._connection.tier
                )
            start = (number - 1) * self._part_bytes
            length = min(self._part_bytes, self._size_bytes - start)
            with self._gathered(start, length) as pieces:
                check = checksum_of(self._abilities.checksum, *pieces)
                answer = self._ask("upload_part", UploadId=upload_id, PartNumber=number, body=pieces, **check)
            transfer.moved_bytes = length
        return part_of(number, answer, check)

    def _complete(self, upload_id: str, parts: list[dict[str, Any]]) -> None:
        condition = {"IfNoneMatch": "*"} if self._abilities.conditional_complete else {}
        self._may_be_visible = True
        # botocore takes an error in the body of a 200 for the failure that it is.
        self._ask("complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts}, **condition)

    def _verified(self, digests: BlockDigests) -> BlockDigests:
        """`digests`, once what is visible has been shown to be just that."""
        stored = self._connection.head("put", self._key)
        if stored.size_bytes == self._size_bytes and self._abilities.checksum != "none":
            return digests
        try:
            if stored.size_bytes != self._size_bytes:
                why = f"{self._size_bytes} bytes were sent, {stored.size_bytes} are stored"
                raise ChecksumMismatch(why, operation="put", subject=self._key, tier=self._connection.tier)
            self._read_back(stored, digests)
        except CkptStoreError:
            # Ours, and not shown to be whole: it must not stay. If the store is gone, a repeated put or a delete finds it.
            with contextlib.suppress(CkptStoreError):
                self._connection.delete(self._key)
            raise
        return digests

    def _read_back(self, stored: StoredObject, digests: BlockDigests) -> None:
        reader = S3Reader(self._connection, self._executor, self._buffers, stored)
        with reader.blocks() as found, self._buffer(BLOCK_BYTES) as scratch:
            for index in range(digests.count):
                digests.check(
                    index, found.block(index, scratch), operation="put", subject=self._key, tier=self._connection.tier
                )
