"""What is in the namespace, and changing it; running jobs and the daemon: the part of `Store` that moves no bytes.

Errors are the leaves of `ckptstore.errors`. Questions are asked again when the connection was lost; changes are not, since the first
one may have worked. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, TypeVar

from ckptstore.cache_messages import WarmLine
from ckptstore.errors import NotFound
from ckptstore.paths import LATEST, check_folder, check_path, parent_and_name
from ckptstore.snapshot_messages import SnapshotInfo
from ckptstore.tag_messages import Tag, check_tags
from ckptstore.tree_messages import REFRESH_S, AttachmentInfo, AttachmentList, AttachStorage
from ckptstore.watch_messages import WatchEvent
from ckptstore.wire import (
    EntryInfo,
    EntryPage,
    FileInfo,
    FilePage,
    Hello,
    Move,
    Moved,
    PublicationInfo,
    Removed,
    Status,
    Usage,
    VerifyLine,
)
from ckptstore_client.api import Api
from ckptstore_client.connection import Connection
from ckptstore_client.hot_cache import HotCache, followed
from ckptstore_client.retention import RetentionControl
from ckptstore_client.snapshots import ask_for_snapshot
from ckptstore_client.tree import Tree
from ckptstore_client.watching import watch

Result = TypeVar("Result")
_PAGE = 1000


def _file_page(route: str, after: str, api: Api) -> FilePage:
    return api.call("GET", route, FilePage, after=after, limit=_PAGE)


class Namespace:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _ask(self, request: Callable[[Api], Result]) -> Result:
        return self._connection.run(lambda transport: request(transport.api))

    @cached_property
    def tree(self) -> Tree:
        """What readers see: files and folders, wherever their bytes come from."""
        return Tree(self._connection)

    def watch(self, path: str = "/", *, since: int | None = None) -> Iterator[WatchEvent]:
        """What is published at or below `path`, and which tiers come to hold it, as it happens; without end.

        It begins now, or after the event with the number `since` (`WatchEvent.sequence`). Each event has its kind (`published`, `durable`
        with its `tier`, or `tagged`), the path, step and metadata; just after `published`, a load on the same node comes from memory.
        """
        return watch(self._connection, check_folder(path, operation="watch"), since)

    @cached_property
    def retention(self) -> RetentionControl:
        """What is kept of checkpoints, what is held, and what can be had back."""
        return RetentionControl(self._connection)

    @cached_property
    def cache(self) -> HotCache:
        """What is kept on the node of what readers read."""
        return HotCache(self._connection)

    def warm(self, path: str, *, pin: bool = False, wait: bool = True, progress: Callable[[int, int], None] | None = None) -> WarmLine:
        """Have every file at or below `path` on the node before it is read; `pin`: and let it stay. What became of it.

        Without `wait` it goes on in the daemon. Files that could not be fetched or kept are counted (`problems`), and are no error.
        `progress` hears how many bytes are there, and how many there will be.
        """
        return followed(self.cache.warm(path, pin=pin, wait=wait), progress)

    def ls(self, path: str = "/", *, on_skipped: Callable[[int], None] | None = None) -> Iterator[EntryInfo]:
        """What lies in a folder, in the order of names, page by page. Errors come at the call, not at the first entry.

        `on_skipped` hears, at the end, how many entries of attached storage have names that no path can have, or lead out of it.
        """
        folder = check_folder(path, operation="list")
        return self._entries(folder, self._entry_page(folder, ""), on_skipped)

    def _entries(self, folder: str, page: EntryPage, on_skipped: Callable[[int], None] | None) -> Iterator[EntryInfo]:
        skipped = 0
        while True:
            yield from page.entries
            skipped += page.skipped
            if page.after is None:
                if skipped and on_skipped is not None:
                    on_skipped(skipped)
                return
            page = self._entry_page(folder, page.after)

    def _entry_page(self, folder: str, after: str) -> EntryPage:
        return self._ask(lambda api: api.call("GET", "entries", EntryPage, path=folder, after=after, limit=_PAGE))

    def stat(self, path: str) -> EntryInfo:
        check_path(path, operation="stat", latest_allowed=True)
        return self._ask(lambda api: api.call("GET", "entry", EntryInfo, path=path))

    def du(self, path: str = "/") -> Usage:
        """Publications, files and bytes under a path."""
        folder = check_folder(path, operation="du")
        return self._ask(lambda api: api.call("GET", "usage", Usage, path=folder))

    def rm(self, path: str, *, recursive: bool = False) -> list[str]:
        """Remove what is published at `path`, with `recursive` a folder and all below it; gives what was removed. Readers keep
        what they hold."""
        check_path(path, operation="rm")
        api = self._connection.transport().api
        return api.call("DELETE", "entries", Removed, path=path, recursive="true" if recursive else "false").removed

    def mv(self, path: str, to: str, *, replace: bool = False) -> list[str]:
        """Give what is at `path` the path `to`, in one transaction; gives the new paths. A folder moves whole, and replaces nothing."""
        check_path(path, operation="mv")
        check_path(to, operation="mv")
        api = self._connection.transport().api
        return api.call("POST", "entries/move", Moved, Move(path=path, to=to, replace=bool(replace))).moved

    def tag(self, path: str, values: Mapping[str, Any] | None = None, *, remove: Iterable[str] = ()) -> dict[str, Any]:
        """Say something about what is published at `path`: set these names of its metadata, and remove those; gives all that is said then.

        In one transaction, and kept when the catalog is rebuilt. `ls`, `stat`, policies and watchers see it. InvalidInput, by name.
        """
        check_path(path, operation="tag")
        given, gone = dict(values or {}), list(remove)
        check_tags(given, gone, path)
        api = self._connection.transport().api
        return api.call("POST", "entries/tag", PublicationInfo, Tag(path=path, values=given, remove=gone)).metadata

    # --- publications and their files --------------------------------------------------------------------------------------------

    def _resolve(self, path: str) -> PublicationInfo:
        return self._ask(lambda api: api.call("GET", "publications", PublicationInfo, path=path))

    def _find(self, path: str) -> tuple[PublicationInfo, str | None]:
        """The publication at `path`; or the one that it lies in, and the name inside."""
        publication, inner = path, ""
        while True:
            try:
                return self._resolve(publication), inner or None
            except NotFound as error:
                publication, name = parent_and_name(publication)
                if publication == "/" or name == LATEST:
                    raise NotFound("nothing is published there", operation="get", subject=path) from error
                inner = f"{name}/{inner}" if inner else name

    def _file(self, publication: PublicationInfo, name: str) -> FileInfo:
        page = self._ask(lambda api: api.call("GET", f"publications/{publication.publication_id}/files", FilePage, name=name))
        for file in page.files:
            if file.name == name:
                return file
        raise NotFound(f"the {publication.kind} has no file {name!r}", operation="read", subject=publication.path)

    def _object(self, object_id: str) -> FileInfo:
        return self._ask(lambda api: api.call("GET", f"objects/{object_id}", FileInfo))

    def _files(self, publication: PublicationInfo) -> Iterator[FileInfo]:
        after: str | None = ""
        while after is not None:
            route = f"publications/{publication.publication_id}/files"
            page = self._ask(partial(_file_page, route, after))
            yield from page.files
            after = page.after

    # --- storage of others -------------------------------------------------------------------------------------------------------

    def attach(
        self,
        url: str,
        path: str,
        *,
        read_only: bool = True,
        refresh_s: float = REFRESH_S,
        credentials: str | None = None,
        options: dict[str, str] | None = None,
    ) -> AttachmentInfo:
        """Show what lies at `url` (`s3://bucket/prefix`, a folder's absolute path, any fsspec URL) below `path`; nothing is copied.

        What is told of it is at most `refresh_s` old. `credentials` is the name of a profile that the daemon's node has. Attaching the
        same again changes nothing. TierUnavailable if it does not answer; AlreadyExists, PathConflict where something else is at the
        path, above or below it. Only on the daemon's own node.
        """
        message = AttachStorage(
            path=check_path(path, operation="attach"),
            url=url,
            read_only=read_only,
            refresh_s=refresh_s,
            credentials=credentials,
            options=options or {},
        )
        return self._ask(lambda api: api.call("POST", "attachments", AttachmentInfo, message))

    def detach(self, path: str) -> AttachmentInfo:
        """Show it no longer. Nothing changes where it lies, and files that are open are read on. NotFound."""
        check_path(path, operation="detach")
        api = self._connection.transport().api
        return api.call("DELETE", "attachments", AttachmentInfo, path=path)

    def attachments(self) -> list[AttachmentInfo]:
        """What is attached where, in the order of paths."""
        return self._ask(lambda api: api.call("GET", "attachments", AttachmentList)).attachments

    # --- running jobs ------------------------------------------------------------------------------------------------------------

    def snapshot(self, folder: str, *, why: str = "", wait: bool = False, timeout_s: float | None = None) -> SnapshotInfo:
        """Ask the job that saves in `folder` for a checkpoint at its next safe point (`Store.preemption`); the request waits for an hour.

        With `wait`, return when one is published whose save was begun after this call; WaitTimeout. Else tells who has heard of it.
        """
        return ask_for_snapshot(self._ask, folder, why=why, wait=wait, timeout_s=timeout_s)

    # --- the daemon --------------------------------------------------------------------------------------------------------------

    def verify(self, path: str = "/") -> Iterator[VerifyLine]:
        """Have every replica under `path` read again and compared, and give each finding as it comes; the last line sums up."""
        folder = check_folder(path, operation="verify")
        with self._connection.transport().api.stream("POST", "verify", path=folder) as response:
            for line in response.iter_lines():
                if line:
                    yield VerifyLine.model_validate_json(line)

    def status(self) -> Status:
        return self._ask(lambda api: api.call("GET", "status", Status))

    def hello(self) -> Hello:
        return self._ask(lambda api: api.call("GET", "hello", Hello))
