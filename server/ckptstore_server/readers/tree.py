"""What is at a path, whoever keeps it? The one tree of all readers: published checkpoints and files, `@latest`, and attached storage.

A path is looked up by its names from the root: `@latest` stands for the newest checkpoint of its folder, so a path may go through it, and
it is shown as a link in a folder that has one. Below an attached path the storage that lies there answers (`attached`), elsewhere the
catalog. Listings come page by page and are never held whole. The event loop's thread calls; what blocks runs in executors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ckptstore.catalog.model import Entry, Kind, Publication
from ckptstore.errors import InvalidInput, NotFound, StaleVersion, TierUnavailable
from ckptstore.paths import LATEST, check_tree_path, join, parent_and_name
from ckptstore.tree_messages import FileListing, TreeInfo
from ckptstore_server.node import Node
from ckptstore_server.readers.attached import Attached
from ckptstore_server.readers.origin import FileVersion, Origin
from ckptstore_server.readers.published import PublishedOrigin
from ckptstore_server.replicas import Replicas


class Tree:
    def __init__(self, node: Node, replicas: Replicas, attached: Attached) -> None:
        self._node = node
        self._replicas = replicas
        self._attached = attached
        self._published = PublishedOrigin(node, replicas)
        #: What of attached storage the node has copies of, for when an origin is down that this daemon has not asked before.
        self.kept: Callable[[], Iterable[FileVersion]] = tuple

    async def look(self, path: str, *, resolve: bool = False) -> TreeInfo:
        """What is at `path`, which may go through `@latest`; with `resolve`, a link at its end is followed, too."""
        path = check_tree_path(path)
        parent, name = parent_and_name(path)
        if name == LATEST and not resolve:
            return _link(await self._latest(await self._real(parent)))
        path = await self._real(path)
        if (shown := await self._attached.over(path)) is not None:
            try:
                return await shown.look()
            except TierUnavailable:
                if (known := shown.look_among(self.kept())) is None:
                    raise
                return known
        entry = await self._node.query(self._node.catalog.entry, path)
        info = file_info(entry)
        if entry.object_id is not None:
            info = info.model_copy(update={"whole": await self._node.query(self._is_here, entry.object_id)})
        return info

    async def list(self, path: str, *, after: str = "", limit: int = 1000) -> FileListing:
        """A page of what is in a folder: what follows `after`, in the byte order of names."""
        path = await self._real(check_tree_path(path, operation="list"))
        if (shown := await self._attached.over(path)) is not None:
            return await shown.list(after, limit)
        page = await self._node.query(self._node.catalog.list_folder, path, after=after, limit=limit)
        infos, more = [file_info(entry) for entry in page], len(page) == limit
        if after < LATEST and (not more or page[-1].name > LATEST) and all(entry.within is None for entry in page):
            link = await self._link_in(path)
            infos = infos if link is None else sorted([*infos, link], key=lambda info: info.path)
            more, infos = more or len(infos) > limit, infos[:limit]
        return FileListing(entries=infos, after=parent_and_name(infos[-1].path)[1] if more else None)

    async def open(self, path: str, version: str = "") -> tuple[FileVersion, Origin]:
        """The file's version as it is now, or the one named, and where its bytes come from.

        NotFound; InvalidInput for a folder; StaleVersion if `version` is not the file's any more, and its bytes are gone.
        """
        path = check_tree_path(path, operation="open")
        try:
            real = await self._real(path)
            if (shown := await self._attached.over(real)) is not None:
                return await shown.open(version), shown.answers
            entry = await self._node.query(self._node.catalog.entry, real)
        except NotFound:
            if version:
                return await self._earlier(path, version), self._published
            raise
        if entry.object_id is None and entry.kind != Kind.FILE:
            raise InvalidInput("it is a folder", operation="open", subject=path, hint="list it")
        if version and version != entry.object_id:
            return await self._earlier(path, version), self._published
        return _version(file_info(entry)), self._published

    def close_idle(self) -> None:
        """What stayed open for reads that did not come. Blocking."""
        self._published.close_idle()

    async def open_object(self, object_id: str) -> tuple[FileVersion, Origin]:
        """An object of the store, wherever it is published, or was. NotFound."""
        file = await self._node.query(self._node.catalog.object, object_id)
        published = await self._node.query(self._node.catalog.path_of, object_id)
        return FileVersion(object_id, published, file.size_bytes, 0.0, published, object_id=object_id), self._published

    # --- what was published --------------------------------------------------------------------------------------------------------

    async def _real(self, path: str) -> str:
        """The path without `@latest`."""
        folder, found, rest = f"{path}/".partition(f"/{LATEST}/")
        if not found:
            return path
        publication = await self._latest(folder or "/")
        return join(publication.path, rest.removesuffix("/")) if rest else publication.path

    async def _latest(self, folder: str) -> Publication:
        return await self._node.query(self._node.catalog.resolve, join(folder, LATEST))

    async def _link_in(self, folder: str) -> TreeInfo | None:
        """`@latest`, if the folder holds a checkpoint."""
        try:
            return _link(await self._latest(folder))
        except NotFound:
            return None

    async def _earlier(self, path: str, version: str) -> FileVersion:
        """A version that is not the path's any more: of an own object, as long as anything holds its bytes."""
        try:
            file = await self._node.query(self._node.catalog.object, version)
            published = await self._node.query(self._node.catalog.path_of, version)
            kept = await self._node.query(self._node.catalog.replicas, version)
        except NotFound:
            published, kept = "", []
        if not kept or not _was_at(path, published):
            why = "it is another version now, and the one that was opened is gone"
            raise StaleVersion(why, operation="open", subject=path, hint="open it again")
        return FileVersion(version, path, file.size_bytes, 0.0, published, object_id=version)

    def _is_here(self, object_id: str) -> bool:
        """Whether one of the node's own tiers has the file as it is."""
        own = {handle.name for handle in self._node.node_local}
        return any(handle.name in own and replica.stored_bytes is None for handle, replica in self._replicas.recorded(object_id))


def file_info(entry: Entry) -> TreeInfo:
    """An entry of the catalog as readers see it: a checkpoint is a folder."""
    publication = entry.publication or entry.within
    return TreeInfo(
        path=entry.path,
        kind="file" if entry.kind == Kind.FILE else "folder",
        size_bytes=entry.size_bytes if entry.kind == Kind.FILE else 0,
        version=entry.object_id or (publication.publication_id if publication is not None else ""),
        modified_s=publication.published_at_s if publication is not None else 0.0,
        durability=publication.durability if publication is not None else (),
        origin=entry.attached_from,
    )


def _link(publication: Publication) -> TreeInfo:
    path, target = join(parent_and_name(publication.path)[0], LATEST), publication.path
    return TreeInfo(path=path, kind="link", target=target, version=publication.publication_id, modified_s=publication.published_at_s)


def _version(info: TreeInfo) -> FileVersion:
    return FileVersion(info.version, info.path, info.size_bytes, info.modified_s, info.path, info.sha256, object_id=info.version)


def _was_at(path: str, published: str) -> bool:
    """Whether an object that was published as this file may have been what `path` stood for."""
    folder, found, rest = path.partition(f"/{LATEST}/")
    return published.startswith(f"{folder}/") and published.endswith(f"/{rest}") if found else published == path
