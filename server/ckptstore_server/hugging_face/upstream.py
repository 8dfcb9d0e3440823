"""Models that are not here: which endpoint has them, and how do their bytes come into this node's cache?

One question for a version gives all its files with sizes and ETags. The hub's ETag follows from the content, so it is what a file's version
here is made of: files that two versions of a model share are fetched once. Bytes are read by ranges at the commit, and kept by the cache
under `/@upstream/…`, a place that no path of the namespace can name. While upstream does not answer, the last version that it told of is
served from what is kept.

`snapshot` and `open` belong to the event loop; ranges are read on the cache's threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from datetime import datetime
from urllib.parse import quote

import httpx
import stamina
from pydantic import BaseModel, ValidationError

from ckptstore.config import HuggingFaceSettings
from ckptstore.errors import InvalidInput, NotFound, StaleVersion, TierUnavailable
from ckptstore.paths import check_relative
from ckptstore_server.hugging_face.faults import RepoNotFound, RevisionNotFound
from ckptstore_server.hugging_face.snapshots import ModelFile, Snapshot
from ckptstore_server.readers.cache.needs import OpensFiles
from ckptstore_server.readers.origin import FileVersion, Origin

PLACE = "/@upstream"
#: What upstream said of a branch is believed for so long, in seconds: a client that loads asks for each file.
BELIEVED_S = 10.0
KEPT_SNAPSHOTS, KEPT_FILES = 256, 100_000
CONNECT_S, ANSWER_S = 10.0, 30.0
ATTEMPTS, PATIENCE_S = 5, 60.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})


class _Lfs(BaseModel):
    sha256: str
    size: int


class _Sibling(BaseModel):
    rfilename: str
    size: int | None = None
    blobId: str | None = None
    lfs: _Lfs | None = None


class _Info(BaseModel):
    sha: str
    siblings: list[_Sibling] = []
    lastModified: str | None = None


class _Passing(Exception):
    """An answer that another try may better."""


class Upstream:
    """An endpoint beside this one; also the `Origin` of its files."""

    def __init__(self, settings: HuggingFaceSettings) -> None:
        assert settings.upstream is not None
        self._url = settings.upstream.rstrip("/")
        token = settings.upstream_token
        headers = {"authorization": f"Bearer {token.get_secret_value()}"} if token is not None else {}
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        self._client = httpx.Client(headers=headers | {"accept-encoding": "identity"}, timeout=timeout, follow_redirects=True)
        self._told: OrderedDict[tuple[str, str], tuple[float, Snapshot]] = OrderedDict()
        self._files: OrderedDict[str, FileVersion] = OrderedDict()

    async def snapshot(self, repo: str, revision: str) -> Snapshot:
        """RepoNotFound, RevisionNotFound; TierUnavailable if it does not answer and has not told of this version before."""
        told_s, known = self._told.get((repo, revision), (0.0, None))
        if known is not None and (known.commit == revision or time.monotonic() - told_s < BELIEVED_S):
            return known
        try:
            snapshot = await asyncio.to_thread(self._ask, repo, revision)
        except TierUnavailable:
            if known is None:
                raise
            return known
        for name in (revision, snapshot.commit):
            self._told[repo, name] = (time.monotonic(), snapshot)
        while len(self._told) > KEPT_SNAPSHOTS:
            self._told.popitem(last=False)
        for file in snapshot.files.values():
            where = f"{self._url}/{repo}/resolve/{snapshot.commit}/{quote(file.name)}"
            self._files[file.version] = FileVersion(
                file.version, file.path, file.size_bytes, snapshot.modified_s, where, file.sha256, name=file.name, upstream=snapshot.commit
            )
        while len(self._files) > KEPT_FILES:
            self._files.popitem(last=False)
        return snapshot

    def open(self, path: str, version: str) -> FileVersion:
        """A file of a snapshot that was handed out."""
        file = self._files.get(version)
        if file is None or file.path != path:
            raise NotFound("upstream has told of no such file", operation="open", subject=path)
        return file

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        view = into.cast("B")
        stop = offset_bytes + len(view)
        try:
            for attempt in stamina.retry_context(on=_Passing, attempts=ATTEMPTS, timeout=PATIENCE_S):
                with attempt:
                    self._read(file, offset_bytes, stop, view)
        except _Passing as error:
            raise TierUnavailable(str(error), operation="read", subject=file.where) from error

    def _read(self, file: FileVersion, start: int, stop: int, view: memoryview) -> None:
        try:
            with self._client.stream("GET", file.where, headers={"range": f"bytes={start}-{stop - 1}"}) as answer:
                _refuse(answer, file.where)
                if answer.status_code != 206 and (start, stop) != (0, file.size_bytes):
                    raise TierUnavailable("upstream does not answer by ranges", operation="read", subject=file.where)
                filled = 0
                for chunk in answer.iter_raw():
                    if filled + len(chunk) > len(view):
                        raise StaleVersion("the file upstream is longer now", operation="read", subject=file.path)
                    view[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
        except httpx.TransportError as error:
            raise _Passing(f"upstream broke off: {error!r}") from error
        if filled < len(view):
            raise _Passing(f"the answer ended after {filled} of {len(view)} bytes")

    # --- what there is ---------------------------------------------------------------------------------------------------------------

    def _ask(self, repo: str, revision: str) -> Snapshot:
        url = f"{self._url}/api/models/{repo}/revision/{quote(revision, safe='')}"
        try:
            answer = self._client.get(url, params={"blobs": "true"})
        except httpx.TransportError as error:
            raise TierUnavailable(f"upstream does not answer: {error!r}", operation="read", subject=url) from error
        if answer.status_code in (401, 403, 404):
            kind = RevisionNotFound if answer.headers.get("x-error-code") == "RevisionNotFound" else RepoNotFound
            raise kind("neither here nor upstream is such a model", operation="read", subject=f"{repo}@{revision}")
        if answer.status_code != 200:
            raise TierUnavailable(f"upstream answers {answer.status_code}", operation="read", subject=url)
        try:
            info = _Info.model_validate_json(answer.content)
            files = [_file(repo, sibling) for sibling in info.siblings]
        except (ValidationError, InvalidInput) as error:
            raise TierUnavailable(f"upstream's answer is none of a hub: {error!s:.200}", operation="read", subject=url) from error
        return Snapshot(repo, info.sha, _seconds(info.lastModified), {file.name: file for file in sorted(files, key=_in_order)})


class WithUpstream:
    """The tree, and beside it the files of upstream: what the cache opens."""

    def __init__(self, tree: OpensFiles, upstream: Upstream) -> None:
        self._tree = tree
        self._upstream = upstream

    async def open(self, path: str, version: str = "") -> tuple[FileVersion, Origin]:
        if path.startswith(f"{PLACE}/"):
            return self._upstream.open(path, version), self._upstream
        return await self._tree.open(path, version)

    async def open_object(self, object_id: str) -> tuple[FileVersion, Origin]:
        return await self._tree.open_object(object_id)


def _file(repo: str, sibling: _Sibling) -> ModelFile:
    name = check_relative(sibling.rfilename, operation="read")
    size_bytes = sibling.lfs.size if sibling.lfs is not None else sibling.size
    etag = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blobId
    if size_bytes is None or etag is None:
        raise InvalidInput("it does not tell the sizes of its files", operation="read", subject=name)
    version = hashlib.sha256(f"{etag} {size_bytes}".encode()).hexdigest()[:32]
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    return ModelFile(name, f"{PLACE}/{repo}/{name}", version, size_bytes, etag, sibling.blobId or etag, sha256)


def _in_order(file: ModelFile) -> bytes:
    return file.name.encode()


def _seconds(text: str | None) -> float:
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0


def _refuse(answer: httpx.Response, where: str) -> None:
    if answer.status_code in _PASSING:
        raise _Passing(f"upstream answers {answer.status_code}")
    if answer.status_code in (403, 404, 410):
        raise StaleVersion("upstream does not have the file any more", operation="read", subject=where)
    if answer.status_code not in (200, 206):
        raise TierUnavailable(f"upstream answers {answer.status_code}", operation="read", subject=where)
