"""What is a model, a version of it, and a file of that version? The namespace in the hub's words.

A model `org/name` is the folder `/models/org/name`. A folder that was put whole, or a checkpoint, is one commit: its publication, so a
version that was replaced can be read by its commit as long as it is kept. A folder of single files, and attached storage, is the commit
of what lies in it when somebody asks; the files of a commit that was handed out stay pinned, and are refused once they have changed.
`main` is what is there now; the revision `v1` is the folder `/models/org/name@v1`.

A `Snapshot` never changes. Some are kept, so that a model of many files is listed once and not for each of them. Event loop only.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

from ckptstore.catalog.model import Publication
from ckptstore.errors import InvalidInput, NotFound
from ckptstore.paths import is_id, join
from ckptstore.tree_messages import TreeInfo
from ckptstore_server.hugging_face.faults import RepoNotFound, RevisionNotFound
from ckptstore_server.hugging_face.fingerprinting import Fingerprinter
from ckptstore_server.hugging_face.snapshots import ModelFile, Snapshot, model_file
from ckptstore_server.hugging_face.upstream import Upstream
from ckptstore_server.node import Node
from ckptstore_server.readers.tree import Tree

KEPT_SNAPSHOTS = 256
#: A folder with more files than this is no model; they are held in memory while it is served.
MOST_FILES = 20_000
_PAGE = 1000


class Models:
    def __init__(self, node: Node, tree: Tree, fingerprinter: Fingerprinter, upstream: Upstream | None) -> None:
        self._node = node
        self._upstream = upstream
        self._tree = tree
        self._fingerprinter = fingerprinter
        self._folder = node.settings.hugging_face.models
        self._kept: OrderedDict[tuple[str, str], Snapshot] = OrderedDict()

    async def snapshot(self, repo: str, revision: str) -> Snapshot:
        """RepoNotFound, RevisionNotFound. What is not here is looked for upstream, if there is one."""
        try:
            return await self._here(repo, revision)
        except RepoNotFound:
            if self._upstream is None:
                raise
            return await self._upstream.snapshot(repo, revision)

    async def _here(self, repo: str, revision: str) -> Snapshot:
        folder = self.folder_of(repo)
        if _is_commit(revision):
            return self._known(repo, revision) or await self._earlier(repo, folder, revision) or await self._current(repo, folder, revision)
        if revision != "main":
            try:
                return await self._of_folder(repo, f"{folder}@{revision}")
            except RepoNotFound as error:
                await self._look(repo, folder)
                raise RevisionNotFound("there is no such revision", operation="read", subject=f"{repo}@{revision}") from error
        return await self._of_folder(repo, folder)

    def folder_of(self, repo: str) -> str:
        return join(self._folder, repo)

    async def revisions(self, repo: str) -> dict[str, str]:
        """Name → commit: `main`, and the folders beside it that are named `name@revision`."""
        folder = self.folder_of(repo)
        parent, _, name = folder.rpartition("/")
        found = {"main": (await self.snapshot(repo, "main")).commit}
        async for entry in self._entries(parent, after=name):
            leaf = entry.path.rpartition("/")[2]
            if not leaf.startswith(name):
                break
            if leaf.startswith(f"{name}@") and entry.kind == "folder":
                found[leaf.removeprefix(f"{name}@")] = (await self._of_folder(repo, entry.path)).commit
        return found

    async def ids(self, *, limit: int) -> list[str]:
        """The models that are there: folders right below the models' folder that were put whole, and those one level below others."""
        found: list[str] = []
        try:
            async for entry in self._entries(self._folder):
                if len(found) >= limit:
                    break
                name = entry.path.removeprefix(f"{self._folder}/")
                if entry.kind == "folder" and entry.version:
                    found.append(name)
                elif entry.kind == "folder":
                    found += await self._ids_of(entry.path, limit - len(found))
        except NotFound:
            return []
        return [name for name in found if "@" not in name]

    async def _ids_of(self, organisation: str, limit: int) -> list[str]:
        found: list[str] = []
        async for entry in self._entries(organisation):
            if len(found) >= limit:
                break
            if entry.kind == "folder":
                found.append(entry.path.removeprefix(f"{self._folder}/"))
        return found

    async def arrived(self, paths: Iterable[str]) -> None:
        """These were moved: what has become a model gets its fingerprints before somebody asks."""
        found: list[TreeInfo] = []
        for path in paths:
            if path.startswith(f"{self._folder}/"):
                with suppress(NotFound):  # removed since
                    info = await self._tree.look(path)
                    found += [info] if info.kind == "file" else [inner async for inner in self._walk(path)]
        if found:
            await self._fingerprinter.soon(file.version for file in found)

    # --- snapshots -------------------------------------------------------------------------------------------------------------------

    def _known(self, repo: str, commit: str) -> Snapshot | None:
        snapshot = self._kept.get((repo, commit))
        if snapshot is not None:
            self._kept.move_to_end((repo, commit))
        return snapshot

    def _keep(self, snapshot: Snapshot) -> Snapshot:
        self._kept[snapshot.repo, snapshot.commit] = snapshot
        while len(self._kept) > KEPT_SNAPSHOTS:
            self._kept.popitem(last=False)
        return snapshot

    async def _look(self, repo: str, folder: str) -> TreeInfo:
        try:
            info = await self._tree.look(folder)
        except (NotFound, InvalidInput) as error:
            raise RepoNotFound("there is no such model", operation="read", subject=repo) from error
        if info.kind != "folder":
            raise RepoNotFound("it is a file, and no model", operation="read", subject=repo)
        return info

    async def _current(self, repo: str, folder: str, commit: str) -> Snapshot:
        snapshot = await self._of_folder(repo, folder)
        if snapshot.commit != commit:
            raise RevisionNotFound("that version is not kept any more", operation="read", subject=f"{repo}@{commit}")
        return snapshot

    async def _of_folder(self, repo: str, folder: str) -> Snapshot:
        info = await self._look(repo, folder)
        if info.origin is None and info.version:
            if (known := self._known(repo, commit_of(info.version))) is not None:
                return known
            publication: Publication = await self._node.query(self._node.catalog.publication, info.version)
            if publication.path == info.path:  # else it is a folder inside a publication
                return await self._published(publication, repo)
        return await self._gathered(repo, folder)

    async def _earlier(self, repo: str, folder: str, commit: str) -> Snapshot | None:
        """A publication that is at this place, or was and is kept."""
        publication_id = commit[:32]
        if commit_of(publication_id) != commit or not await self._node.query(self._node.catalog.is_live, publication_id):
            return None
        publication: Publication = await self._node.query(self._node.catalog.publication, publication_id)
        if publication.path != folder and not publication.path.startswith(f"{folder}@"):
            return None
        return await self._published(publication, repo)

    async def _published(self, publication: Publication, repo: str) -> Snapshot:
        infos: list[TreeInfo] = []
        after = ""
        while True:
            query = self._node.catalog.files
            page = await self._node.query(query, publication.publication_id, after=after, limit=_PAGE, with_blocks=False)
            infos += [
                TreeInfo(path=join(publication.path, file.name), kind="file", size_bytes=file.size_bytes, version=file.object_id)
                for file in page
                if file.name
            ]
            if len(page) < _PAGE:
                break
            after = page[-1].name
        files = await self._files(publication.path, infos)
        return self._keep(Snapshot(repo, commit_of(publication.publication_id), publication.published_at_s, files))

    async def _gathered(self, repo: str, folder: str) -> Snapshot:
        """Of single files: the commit is a digest of their names and versions."""
        infos = [info async for info in self._walk(folder)]
        if len(infos) > MOST_FILES:
            raise RepoNotFound(f"it holds more than {MOST_FILES} files", operation="read", subject=repo)
        digest = hashlib.sha1(usedforsecurity=False)
        for info in infos:
            digest.update(f"{info.path.removeprefix(folder)}\0{info.version}\n".encode())
        known = self._known(repo, digest.hexdigest())
        if known is not None:
            return known
        modified_s = max((info.modified_s for info in infos), default=0.0)
        return self._keep(Snapshot(repo, digest.hexdigest(), modified_s, await self._files(folder, infos)))

    async def _files(self, folder: str, infos: Iterable[TreeInfo]) -> dict[str, ModelFile]:
        infos = list(infos)
        prints = await self._fingerprinter.of(info.version for info in infos if info.origin is None)
        files = [model_file(folder, info, prints.get(info.version)) for info in infos]
        return {file.name: file for file in sorted(files, key=lambda file: file.name.encode())}

    # --- folders -------------------------------------------------------------------------------------------------------------------

    async def _walk(self, folder: str) -> AsyncIterator[TreeInfo]:
        count = 0
        folders = [folder]
        while folders and count <= MOST_FILES:
            async for entry in self._entries(folders.pop()):
                if entry.kind == "folder":
                    folders.append(entry.path)
                elif entry.kind == "file":
                    yield entry
                    count += 1
                if count > MOST_FILES:
                    return

    async def _entries(self, folder: str, *, after: str = "") -> AsyncIterator[TreeInfo]:
        position: str | None = after
        while position is not None:
            page = await self._tree.list(folder, after=position, limit=_PAGE)
            for entry in page.entries:
                yield entry
            position = page.after


def commit_of(publication_id: str) -> str:
    """40 hexadecimal digits: the publication's id, and a check of it, so that a commit of somewhere else is not taken for one of ours."""
    return publication_id + hashlib.sha256(f"ckptstore {publication_id}".encode()).hexdigest()[:8]


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and is_id(revision[:32]) and all(character in "0123456789abcdef" for character in revision)
