"""Questions to the namespace, answered from the catalog in the words of the wire."""

from __future__ import annotations

import json
from typing import Literal

from ckptstore.catalog.model import Entry, Publication, StoredFile
from ckptstore.errors import NotFound
from ckptstore.failpoints import declare, failpoint
from ckptstore.paths import LATEST, check_folder, check_path, is_below, parent_and_name
from ckptstore.tag_messages import Tag, check_tags
from ckptstore.tree_messages import TreeInfo
from ckptstore.wire import EntryInfo, EntryPage, FileInfo, FilePage, Move, Moved, PublicationInfo, Removed, Usage, WholeFile
from ckptstore_server.judging import refuse_never
from ckptstore_server.node import Node
from ckptstore_server.readers.attached import Attached

#: How long `du` counts what lies in attached storage, in seconds.
COUNT_S = 20.0

MOVED = declare("move.after_catalog")
TAGGED = declare("tag.after_catalog")


class Namespace:
    def __init__(self, node: Node, attached: Attached) -> None:
        self._node = node
        self._attached = attached

    async def resolve(self, path: str) -> PublicationInfo:
        check_path(path, operation="resolve", latest_allowed=True)
        try:
            return publication_info(await self._node.query(self._node.catalog.resolve, path))
        except NotFound as error:
            if path.endswith(f"/{LATEST}") or await self._node.query(self._node.catalog.attached_over, path) is None:
                raise
            hint = "it is attached storage: get it, or read it through the mount or ckpt://"
            raise NotFound(error.why, operation="resolve", subject=path, hint=hint) from error

    async def publication(self, publication_id: str, *, wait: str | None = None, timeout_s: float = 0.0) -> PublicationInfo:
        """The publication; with `wait`, once that tier holds all of it, at the latest after `timeout_s`.

        InvalidInput if it never will, because of policies.
        """
        if wait in (None, "snapshot"):
            return publication_info(await self._node.query(self._node.catalog.publication, publication_id))
        tier = self._node.handle(str(wait)).name

        async def look() -> Publication:
            publication = await self._node.query(self._node.catalog.publication, publication_id)
            await refuse_never(self._node, publication, tier)
            return publication

        def is_there(publication: Publication) -> bool:
            return self._node.is_as_safe_as(tier, publication.durability)

        return publication_info(await self._node.settled(look, is_there, timeout_s))

    async def drain_first(self, publication_id: str) -> PublicationInfo:
        found = await self._node.query(self._node.catalog.drain_first, publication_id)
        self._node.board.announce()
        return publication_info(found)

    async def files(self, publication_id: str, *, rank: int | None, name: str | None, after: str, limit: int) -> FilePage:
        files = self._node.catalog.files
        page = await self._node.query(files, publication_id, rank=rank, name=name, after=after, limit=limit)
        return FilePage(files=[self._file_info(file) for file in page], after=page[-1].name if len(page) == limit else None)

    async def object(self, object_id: str) -> FileInfo:
        return file_info(await self._node.query(self._node.catalog.object, object_id))

    def _file_info(self, file: StoredFile) -> FileInfo:
        info, whole = file_info(file), self._node.wholes.find(file.object_id)
        if whole is None:
            return info
        digests = whole.digests
        known = WholeFile(object_id=whole.segment_object_id, size_bytes=digests.size_bytes, digest=digests.root, blocks=digests.blocks)
        return info.model_copy(update={"whole": known})

    async def list(self, path: str, *, after: str, limit: int) -> EntryPage:
        folder = check_folder(path, operation="list")
        if (shown := await self._attached.over(folder)) is not None:
            listing = await shown.list(after, limit)
            return EntryPage(entries=[attached_info(file) for file in listing.entries], after=listing.after, skipped=listing.skipped)
        page = await self._node.query(self._node.catalog.list_folder, folder, after=after, limit=limit)
        return EntryPage(entries=[entry_info(entry) for entry in page], after=page[-1].name if len(page) == limit else None)

    async def stat(self, path: str) -> EntryInfo:
        check_folder(path, operation="stat") if not path.endswith("/@latest") else check_path(path, latest_allowed=True)
        if path.endswith("/@latest"):
            path = (await self._node.query(self._node.catalog.resolve, path)).path
        if (shown := await self._attached.over(path)) is not None:
            return attached_info(await shown.look())
        entry = await self._node.query(self._node.catalog.entry, path)
        if entry.publication is None or entry.publication.path != entry.path:
            return entry_info(entry)
        stored_bytes = await self._node.query(self._node.catalog.stored_bytes, entry.publication.publication_id)
        return entry_info(entry).model_copy(update={"stored_bytes": stored_bytes})

    async def usage(self, path: str) -> Usage:
        folder = check_folder(path, operation="du")
        if (shown := await self._attached.over(folder)) is not None:
            files, size_bytes, complete = await self._attached.measure(shown, limit_s=COUNT_S)
            return Usage(path=folder, publications=0, files=files, size_bytes=size_bytes, complete=complete)
        publications, files, size_bytes = await self._node.query(self._node.catalog.usage, folder)
        referred_bytes, kept_bytes = await self._node.query(self._node.catalog.shared_usage, folder)
        return Usage(
            path=folder,
            publications=publications,
            files=files,
            size_bytes=size_bytes,
            referred_bytes=referred_bytes,
            kept_bytes=kept_bytes,
            attached=[one.path for one in await self._node.query(self._node.catalog.attachments) if is_below(one.path, folder)],
        )

    async def remove(self, path: str, *, recursive: bool) -> Removed:
        check_path(path, operation="rm")
        removed = await self._node.query(self._node.catalog.remove, path, recursive=recursive)
        self._node.board.announce()
        return Removed(removed=sorted({publication.path for publication in removed}))

    async def move(self, message: Move) -> Moved:
        moved = await self._node.query(self._node.catalog.move, message.path, message.to, replace=message.replace)
        failpoint(MOVED)
        self._node.board.announce()
        return Moved(moved=moved)

    async def tag(self, message: Tag) -> PublicationInfo:
        check_tags(message.values, message.remove, message.path)
        found = await self._node.query(self._node.catalog.tag, message.path, message.values, message.remove)
        failpoint(TAGGED)
        self._node.board.announce()
        return publication_info(found)


def publication_info(publication: Publication) -> PublicationInfo:
    return PublicationInfo(
        publication_id=publication.publication_id,
        path=publication.path,
        kind=publication.kind.value,
        sequence=publication.sequence,
        world_size=publication.world_size,
        step=publication.step,
        metadata=json.loads(publication.metadata),
        size_bytes=publication.size_bytes,
        referred_bytes=publication.referred_bytes,
        file_count=publication.file_count,
        opened_at_s=publication.opened_at_s,
        published_at_s=publication.published_at_s,
        durability=list(publication.durability),
    )


def file_info(file: StoredFile) -> FileInfo:
    return FileInfo(
        object_id=file.object_id, name=file.name, rank=file.rank, size_bytes=file.size_bytes, digest=file.root, blocks=file.blocks
    )


def attached_info(file: TreeInfo) -> EntryInfo:
    """A file or folder of attached storage, as the namespace shows it."""
    return EntryInfo(
        path=file.path,
        name=parent_and_name(file.path)[1],
        kind="file" if file.kind == "file" else "folder",
        size_bytes=file.size_bytes,
        origin=file.origin,
        best_effort=file.best_effort,
        modified_s=file.modified_s or None,
    )


def entry_info(entry: Entry) -> EntryInfo:
    publication = entry.publication
    if publication is None:
        alone: Literal["file", "folder"] = "file" if entry.kind == "file" else "folder"
        return EntryInfo(path=entry.path, name=entry.name, kind=alone, size_bytes=entry.size_bytes, origin=entry.attached_from)
    kind = entry.kind if entry.kind in ("folder", "checkpoint", "file") else "folder"
    return EntryInfo(
        path=entry.path,
        name=entry.name,
        kind=kind,
        size_bytes=entry.size_bytes,
        referred_bytes=publication.referred_bytes,
        step=publication.step,
        world_size=publication.world_size,
        published_at_s=publication.published_at_s,
        durability=list(publication.durability),
        publication_id=publication.publication_id,
        metadata=json.loads(publication.metadata),
        files=publication.file_count,
    )
