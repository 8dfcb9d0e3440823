"""An S3-compatible bucket as a tier: objects under readable keys, whole or absent, verified before they count.

Durable when `put` or `put_document` returns: the server has acknowledged the object, and its content has been checked, by the server
against a checksum header or, where a probe shows that it does not check, by reading back. The probe runs when the tier is opened; a
store that is down then is asked again at the first write, and `facts.details["probe"]` says so.

Exclusive documents are If-None-Match on the server. Where the probe shows that a server ignores it, they are refused by name: no
sequence of look-ups and writes of ours would make one winner for certain.

Any method may be called from any thread. Parts and ranges run in one executor, which the tier owns.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ckptstore.config import TierSettings
from ckptstore.errors import AlreadyExists, ChecksumMismatch, CkptStoreError, InvalidInput, NotFound, TierFull
from ckptstore_tiers.checksums import BlockDigests
from ckptstore_tiers.interface import BlockSource, ObjectStat, TierFacts, TierUsage
from ckptstore_tiers.keys import check_object_key
from ckptstore_tiers.s3_buffers import PartBuffers
from ckptstore_tiers.s3_connection import S3Connection
from ckptstore_tiers.s3_options import read_s3_settings
from ckptstore_tiers.s3_probe import PROBE_FOLDER, S3Abilities, checksum_of, probe
from ckptstore_tiers.s3_reader import S3Reader, pieces
from ckptstore_tiers.s3_upload import DIGEST_KEY, PUT_KEY, S3Upload
from ckptstore_tiers.transfer_figures import TransferFigures

LIST_PAGE = 1000


class S3Tier:
    def __init__(self, settings: TierSettings) -> None:
        place, options = read_s3_settings(settings)
        self._settings = settings
        self._connection = S3Connection(settings.name, place, options)
        self._executor = ThreadPoolExecutor(options.parallel, thread_name_prefix=f"s3-{settings.name}")
        self._buffers = PartBuffers()
        self._lock = threading.Lock()
        self._abilities: S3Abilities | None = None
        self._probe_failure = ""
        self._used_bytes: int | None = None
        #: Keys under which a failed put may have left an unfinished upload.
        self._left: set[str] = set()
        # Opening waits for no store that is down: saves go on without it, and its drains are retried.
        with contextlib.suppress(CkptStoreError):
            self._probed(retry_for_s=0)

    @property
    def facts(self) -> TierFacts:
        connection, abilities = self._connection, self._abilities
        figures, bounds = self.transfers, connection.options.window
        found = abilities.details() if abilities else {"probe": f"not answered yet: {self._probe_failure}"}
        details = {
            "endpoint": connection.endpoint_url,
            "region": connection.region,
            "parallel": f"{figures.parallel} of {bounds.least} to {bounds.most}",
            "part_size": f"{figures.part_bytes} of {bounds.part_least} to {bounds.part_most}",
        }
        location = f"s3://{connection.bucket}/{connection.prefix}"
        return TierFacts(
            self._settings.name, "object", self._settings.is_shared, self._settings.durable, location, details | found
        )

    @property
    def transfers(self) -> TransferFigures:
        return self._connection.window.figures

    def put(self, key: str, source: BlockSource, *, expected: BlockDigests | None = None) -> BlockDigests:
        self._check(key, "put")
        self._require_room(key, source.size_bytes)
        self._sweep_left(key)
        upload = S3Upload(self._connection, self._probed(), self._executor, self._buffers, key, source, expected)
        try:
            digests = upload.run()
        finally:
            if upload.may_be_left:
                self._left.add(key)
        self._count(source.size_bytes)
        return digests

    def _sweep_left(self, key: str) -> None:
        """What this tier's last put of the key could not take back; left again where uploads may not be listed or aborted."""
        if key in self._left:
            with contextlib.suppress(CkptStoreError):
                self.sweep([key.rpartition("~")[2]])
                self._left.discard(key)

    def open(self, key: str) -> S3Reader:
        self._check(key, "open")
        return S3Reader(self._connection, self._executor, self._buffers, self._connection.head("open", key))

    def stat(self, key: str) -> ObjectStat:
        self._check(key, "stat")
        found = self._connection.head("stat", key)
        return ObjectStat(key, found.size_bytes, found.modified_s)

    def delete(self, key: str) -> None:
        self._check(key, "delete")
        self._connection.delete(key)
        with self._lock:
            self._used_bytes = None  # counted anew when somebody asks

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        connection = self._connection
        token: dict[str, Any] = {}
        while True:
            page = connection.ask(
                "list", prefix, "list_objects_v2", Prefix=connection.name_prefix(prefix), MaxKeys=LIST_PAGE, **token
            )
            for entry in page.get("Contents", ()):
                key = connection.key(entry["Key"])
                # Names that end in a slash are what other programs put for a folder.
                if key.startswith(prefix) and not key.startswith(PROBE_FOLDER) and not key.endswith("/"):
                    yield ObjectStat(key, int(entry["Size"]), entry["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def put_document(self, key: str, data: bytes, *, exclusive: bool = False) -> None:
        self._check(key, "put document")
        abilities = self._probed()
        if exclusive and not abilities.conditional_put:
            raise self._refused(
                "put document", key, "this S3 server ignores If-None-Match, so that no key can be created exclusively"
            )
        nonce = os.urandom(16).hex()
        parameters: dict[str, Any] = {
            "Key": self._connection.name(key),
            **checksum_of(abilities.checksum, data),
            **({"IfNoneMatch": "*"} if exclusive else {}),
            "Metadata": {PUT_KEY: nonce, DIGEST_KEY: BlockDigests.of(data).root},
        }
        try:
            self._connection.ask("put document", key, "put_object", body=data, **parameters)
        except AlreadyExists:
            # Unless it is ours: the server did as asked, and its answer was lost before the second try.
            if self._connection.head("put document", key).metadata.get(PUT_KEY) != nonce:
                raise
        if abilities.checksum == "none":
            self._verify_document(key, data, nonce)

    def _verify_document(self, key: str, data: bytes, nonce: str) -> None:
        try:
            found, metadata = self._read_document(key, "put document", max(len(data), 1) * 2)
        except ChecksumMismatch:
            self._connection.delete(key)
            raise
        # Another nonce: a later writer has replaced the document, as it may, and verifies its own.
        if metadata.get(PUT_KEY) == nonce and found != data:
            self._connection.delete(key)
            raise ChecksumMismatch(
                "what was stored reads back differently",
                operation="put document",
                subject=key,
                tier=self._settings.name,
            )

    def get_document(self, key: str, *, limit_bytes: int = 1 << 30) -> bytes:
        self._check(key, "get document")
        return self._read_document(key, "get document", limit_bytes)[0]

    def _read_document(self, key: str, operation: str, limit_bytes: int) -> tuple[bytes, dict[str, str]]:
        def request(s3: Any) -> tuple[bytes, dict[str, str]]:
            answer = s3.get_object(Bucket=self._connection.bucket, Key=self._connection.name(key))
            size_bytes = int(answer["ContentLength"])
            if size_bytes > limit_bytes:
                answer["Body"].close()
                raise self._refused(operation, key, f"the document has {size_bytes} bytes; {limit_bytes} are allowed")
            data = bytearray(size_bytes)
            received = sum(pieces(answer["Body"], memoryview(data)))
            return bytes(data[:received]), answer.get("Metadata", {})

        data, metadata = self._connection.call(operation, key, request)
        # Written by another program, a document has no digest; its reader parses it either way.
        if DIGEST_KEY in metadata and BlockDigests.of(data).root != metadata[DIGEST_KEY]:
            raise ChecksumMismatch(
                "the document differs from what was written", operation=operation, subject=key, tier=self._settings.name
            )
        return data, metadata

    def sweep(self, owned_ids: Iterable[str] | None) -> int:
        """Abort the unfinished uploads of these ids, and nothing else: the bucket may hold other stores' uploads."""
        owned = None if owned_ids is None else frozenset(owned_ids)
        if owned is not None and not owned:
            return 0
        aborted = 0
        for key, upload_id in self._unfinished_uploads():
            if owned is None or key.rpartition("~")[2] in owned:
                with contextlib.suppress(NotFound):  # it ended meanwhile
                    self._connection.ask(
                        "sweep", key, "abort_multipart_upload", Key=self._connection.name(key), UploadId=upload_id
                    )
                    aborted += 1
        return aborted

    def _unfinished_uploads(self) -> Iterator[tuple[str, str]]:
        connection = self._connection
        markers: dict[str, Any] = {}
        while True:
            page = connection.ask(
                "sweep", connection.prefix, "list_multipart_uploads", Prefix=connection.prefix, **markers
            )
            for upload in page.get("Uploads", ()):
                yield connection.key(upload["Key"]), upload["UploadId"]
            last = markers
            markers = {"KeyMarker": page.get("NextKeyMarker", ""), "UploadIdMarker": page.get("NextUploadIdMarker", "")}
            if not page.get("IsTruncated") or markers == last:
                return

    def usage(self) -> TierUsage:
        """Without a configured capacity nothing is counted: a bucket has no end, and counting it means listing it."""
        capacity = self._settings.capacity
        if capacity is None:
            return TierUsage(0, None, None)
        with self._lock:
            used = self._used_bytes
        if used is None:
            used = sum(entry.size_bytes for entry in self.list(""))
            with self._lock:
                self._used_bytes = used
        return TierUsage(used, capacity, max(0, capacity - used))

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._connection.close()

    def _check(self, key: str, operation: str) -> None:
        check_object_key(key, operation=operation, tier=self._settings.name, named=self._connection.name)

    def _probed(self, *, retry_for_s: float | None = None) -> S3Abilities:
        abilities = self._abilities
        if abilities is None:
            try:
                abilities = probe(self._connection, retry_for_s=retry_for_s)
            except CkptStoreError as error:
                self._probe_failure = str(error)
                raise
            self._abilities = abilities
        return abilities

    def _require_room(self, key: str, size_bytes: int) -> None:
        if self._settings.capacity is not None and (free := self.usage().free_bytes or 0) < size_bytes:
            raise TierFull(
                f"{size_bytes} bytes do not fit into the {free} that are left of the configured capacity",
                operation="put",
                subject=key,
                tier=self._settings.name,
            )

    def _count(self, size_bytes: int) -> None:
        with self._lock:
            if self._used_bytes is not None:
                self._used_bytes += size_bytes

    def _refused(self, operation: str, key: str, why: str) -> InvalidInput:
        return InvalidInput(why, operation=operation, subject=key, tier=self._settings.name)
