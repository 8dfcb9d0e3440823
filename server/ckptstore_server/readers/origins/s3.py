"""A bucket, or what lies below a prefix in one, under the namespace: listed page by page, read on condition of the ETag.

A version is ETag and size. Every GET says If-Match, and its answer's own ETag is compared, since some servers ignore the condition.
Requests, retries, credentials that rotate and their errors are those of the object tier (`S3Connection`); keys are taken as they are.

A key is a file; what is in front of a slash in a key is a folder. Where a bucket has both under one name, the file is shown. Keys that no
path can name (an empty part, `..`, control characters, too long) are left out and counted. A bucket's order differs from the byte order of
names where a folder's name is the beginning of another's: it is `name/` that is sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from ckptstore.errors import AlreadyExists, NotFound, StaleVersion
from ckptstore_server.readers.origin import FileVersion
from ckptstore_server.readers.origins.gate import Gate
from ckptstore_server.readers.origins.storage import Found, FoundPage, inside, is_storable
from ckptstore_tiers.s3_buffers import PartBuffers
from ckptstore_tiers.s3_connection import S3Connection, StoredObject
from ckptstore_tiers.s3_options import S3Options, S3Place
from ckptstore_tiers.s3_reader import S3Reader

T = TypeVar("T")

#: Of one request; the most that S3 gives.
KEYS_PER_REQUEST = 1000
#: A page may take so many where a bucket is full of keys that no path can name.
REQUESTS_PER_PAGE = 100


class ForeignBucket(S3Connection):
    """A connection to a bucket that others fill: its keys are not ours to rewrite, and nobody waits for it twice while it is down."""

    def __init__(self, place: S3Place, options: S3Options, gate: Gate) -> None:
        self._gate = gate
        super().__init__(f"s3://{place.bucket}", place, options)

    def call(self, operation: str, key: str, request: Callable[[Any], T], *, retry_for_s: float | None = None) -> T:
        with self._gate.asking():
            return super().call(operation, key, request, retry_for_s=retry_for_s)

    def name(self, key: str) -> str:
        return self.prefix + key

    def key(self, name: str) -> str:
        return name[len(self.prefix) :]


class S3Storage:
    def __init__(self, place: S3Place, options: S3Options) -> None:
        self._url = f"s3://{place.bucket}/{place.prefix}"
        self.gate = Gate()
        self._bucket = ForeignBucket(place, options, self.gate)
        self.identity = f"{self._url} at {self._bucket.endpoint_url}"
        self._executor = ThreadPoolExecutor(options.parallel, thread_name_prefix="attached-s3")
        self._buffers = PartBuffers()

    def look(self, name: str) -> Found:
        if name:
            try:
                answer = self._bucket.ask("stat", name, "head_object", Key=self._bucket.name(name))
                return _file(name, answer["ContentLength"], answer.get("ETag", ""), answer["LastModified"])
            except NotFound:
                pass
        page = self._request(name, "", 1)
        if name and not page.get("Contents") and not page.get("CommonPrefixes"):
            raise NotFound("nothing is there", operation="stat", subject=self.where(name))
        return Found(name, is_folder=True)

    def page(self, folder: str, after: str, limit: int) -> FoundPage:
        """`after` is the server's own word for where to go on, behind an `@`, which no name begins with; or a name."""
        entries: list[Found] = []
        skipped = 0
        for _ in range(REQUESTS_PER_PAGE):
            page = self._request(folder, after, min(KEYS_PER_REQUEST, limit - len(entries)))
            if folder and not after and not page.get("Contents") and not page.get("CommonPrefixes"):
                raise NotFound("no such folder is there", operation="list", subject=self.where(folder))
            found = self._entries(folder, page, begins=not after)
            entries += [entry for entry in found if entry is not None]
            skipped += sum(entry is None for entry in found)
            if not page.get("IsTruncated"):
                return FoundPage(tuple(entries), None, skipped)
            after = "@" + page["NextContinuationToken"]
            if len(entries) >= limit:
                break
        return FoundPage(tuple(entries), after, skipped)

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        if len(into):
            with self._pinned(file) as reader:
                reader.read_into(offset_bytes, into)

    def read_parts(self, file: FileVersion, offset_bytes: int, size_bytes: int, parts: Iterator[memoryview]) -> None:
        with self._pinned(file) as reader:
            reader.read_parts(offset_bytes, size_bytes, parts)

    @contextmanager
    def _pinned(self, file: FileVersion) -> Iterator[S3Reader]:
        """A reader of that version; StaleVersion if it is another one by now."""
        stored = StoredObject(file.name, file.size_bytes, file.upstream, file.modified_s)
        try:
            yield S3Reader(self._bucket, self._executor, self._buffers, stored, if_match=True)
        except (NotFound, AlreadyExists) as error:
            why = "another object took its place, or none, since it was opened"
            raise StaleVersion(why, operation="read", subject=self.where(file.name)) from error

    def where(self, name: str) -> str:
        return self._url + name

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._bucket.close()

    def _request(self, folder: str, after: str, limit: int) -> dict[str, Any]:
        prefix = self._bucket.name(f"{folder}/" if folder else "")
        start: dict[str, Any] = {"StartAfter": prefix + after} if after else {}
        if after.startswith("@"):
            start = {"ContinuationToken": after[1:]}
        return self._bucket.ask("list", folder, "list_objects_v2", Prefix=prefix, Delimiter="/", MaxKeys=limit, **start)

    def _entries(self, folder: str, page: dict[str, Any], *, begins: bool) -> list[Found | None]:
        """What one answer shows, in the bucket's order; None for what is left out."""
        start = len(self._bucket.name(f"{folder}/" if folder else ""))
        files = {item["Key"][start:]: item for item in page.get("Contents", ())}
        files.pop("", None)  # what some programs put to mark a folder
        names = sorted([*files, *(item["Prefix"][start:] for item in page.get("CommonPrefixes", ()))])
        found: list[Found | None] = []
        for name in names:
            leaf = name.removesuffix("/")
            if not is_storable(leaf) or (name != leaf and self._is_also_a_file(folder, leaf, files, "" if begins else names[0])):
                found.append(None)
            elif name != leaf:
                found.append(Found(inside(folder, leaf), is_folder=True))
            else:
                item = files[name]
                found.append(_file(inside(folder, leaf), item["Size"], item.get("ETag", ""), item["LastModified"]))
        return found

    def _is_also_a_file(self, folder: str, leaf: str, files: dict[str, Any], first: str) -> bool:
        """Whether a folder's name is a key, too. That comes earlier, perhaps on another page: then the `first` name here begins alike."""
        if leaf in files or not first.startswith(leaf):
            return leaf in files
        try:
            self._bucket.ask("stat", leaf, "head_object", Key=self._bucket.name(inside(folder, leaf)))
        except NotFound:
            return False
        return True


def _file(name: str, size_bytes: int, etag: str, modified: Any) -> Found:
    return Found(name, size_bytes=int(size_bytes), modified_s=modified.timestamp(), upstream=etag, best_effort=not etag)
