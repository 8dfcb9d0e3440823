"""What is at a path?

Everything is read from `entries` (what is visible) and `publications`; a page at a time, in byte order. A published folder lists its
files and, one level at a time, the folders in which they are. What `@latest` stands for is told by `latest`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, Text, func, literal, select, union_all

from ckptstore import paths
from ckptstore.catalog.core import Core, lock_namespace
from ckptstore.catalog.deletion import delete_publications
from ckptstore.catalog.entries import below, published_below, refuse_to_take_away, remove_entries, visible_at
from ckptstore.catalog.held import refuse_held
from ckptstore.catalog.latest import latest
from ckptstore.catalog.model import Entry, Kind, Publication, StoredFile
from ckptstore.catalog.schema import attachments, attempts, drains, entries, inner_folders, objects, publications
from ckptstore.catalog.storing import UNFINISHED
from ckptstore.catalog.views import file_columns, publication_row, read_publication, read_publications, stored_file
from ckptstore.errors import NotFound, PathConflict

FOLDER = "folder"


class Namespace(Core):
    def entry(self, path: str) -> Entry:
        """What is at `path`: a publication, a folder, or a file or folder inside a publication."""
        if paths.check_folder(path, operation="stat") == "/":
            return Entry("/", "", FOLDER, 0, None)
        path = paths.check_folder(path, operation="stat")
        return self._db.read("stat", lambda tx: self._entry(tx, path), path)

    def list_folder(self, path: str, *, after: str = "", limit: int = 1000) -> list[Entry]:
        """A page of what is directly in the folder, whose names follow `after`. NotFound if there is no such folder."""
        path = paths.check_folder(path, operation="list")
        return self._db.read("list", lambda tx: self._list(tx, path, after, limit), path)

    def publication(self, publication_id: str) -> Publication:
        """By id: also one that was replaced or removed, as long as it is known (`live` tells)."""

        def work(tx: Connection) -> Publication:
            row = publication_row(tx, publication_id)
            if row is None:
                raise NotFound("no such publication is known", operation="look up publication", subject=publication_id)
            return read_publication(tx, row, self._tiers)

        return self._db.read("look up publication", work, publication_id)

    def resolve(self, path: str) -> Publication:
        """The publication at `path`, which may end with `/@latest`."""
        path = paths.check_path(path, operation="resolve", latest_allowed=True)
        parent, name = paths.parent_and_name(path)
        if name == paths.LATEST:
            return self._db.read("resolve", lambda tx: latest(tx, self.node, parent, self._tiers), path)
        return self._db.read("resolve", lambda tx: self._published_at(tx, path), path)

    def files(
        self,
        publication_id: str,
        *,
        rank: int | None = None,
        name: str | None = None,
        after: str = "",
        limit: int = 1000,
        with_blocks: bool = True,
    ) -> list[StoredFile]:
        """A page of a publication's files, of one rank or of one name if asked, in byte order of names; `after` "" begins at the first."""

        def work(tx: Connection) -> list[StoredFile]:
            if tx.execute(select(publications.c.state).where(publications.c.publication_id == publication_id)).first() is None:
                raise NotFound("no such publication is known", operation="list files", subject=publication_id)
            query = select(*file_columns(with_blocks)).where(objects.c.attempt_id == publication_id)
            if rank is not None:
                query = query.where(objects.c.rank == rank)
            if name is not None:
                query = query.where(objects.c.name == name)
            if after:
                query = query.where(objects.c.name > after)
            return [stored_file(row) for row in tx.execute(query.order_by(objects.c.name).limit(limit))]

        return self._db.read("list files", work, publication_id)

    def file(self, path: str) -> tuple[Publication, StoredFile]:
        """The file at `path`: a publication that is one file, or a file inside a publication."""
        path = paths.check_path(path, operation="look up file", latest_allowed=False)

        def work(tx: Connection) -> tuple[Publication, StoredFile]:
            entry, rest = visible_at(tx, path)
            if entry is not None and entry.publication_id is not None:
                query = select(*file_columns(True)).where(objects.c.attempt_id == entry.publication_id, objects.c.name == rest)
                row, owner = tx.execute(query).first(), publication_row(tx, entry.publication_id)
                if row is not None and owner is not None:
                    return read_publication(tx, owner, self._tiers), stored_file(row)
            raise NotFound("no file is there", operation="look up file", subject=path)

        return self._db.read("look up file", work, path)

    def object(self, object_id: str) -> StoredFile:
        query = select(*file_columns(True)).where(objects.c.object_id == object_id)
        row = self._db.read("look up object", lambda tx: tx.execute(query).first(), object_id)
        if row is None:
            raise NotFound("no such object is known", operation="look up object", subject=object_id)
        return stored_file(row)

    def path_of(self, object_id: str) -> str:
        """Where the object's file is published, or was."""
        query = select(publications.c.path, objects.c.name).join(objects, objects.c.attempt_id == publications.c.publication_id)
        row = self._db.read("look up object", lambda tx: tx.execute(query.where(objects.c.object_id == object_id)).first(), object_id)
        if row is None:
            raise NotFound("no such object was published", operation="look up object", subject=object_id)
        return paths.join(row.path, row.name) if row.name else str(row.path)

    def usage(self, path: str) -> tuple[int, int, int]:
        """Publications, files and bytes at and below `path`."""
        path = paths.check_folder(path, operation="measure")
        counted = select(
            func.count(), func.coalesce(func.sum(publications.c.file_count), 0), func.coalesce(func.sum(publications.c.size_bytes), 0)
        ).where(published_below(path, "live"))
        row = self._db.read("measure", lambda tx: tx.execute(counted).one(), path)
        return int(row[0]), int(row[1]), int(row[2])

    def count(self) -> dict[str, int]:
        """What there is of each kind of row, for `status`."""
        live = select(func.count()).where(publications.c.state == "live").scalar_subquery()
        superseded = select(func.count()).where(publications.c.state == "superseded").scalar_subquery()
        deleted = select(func.count()).where(publications.c.state == "deleted").scalar_subquery()
        unfinished = select(func.count()).where(attempts.c.state.in_(UNFINISHED)).scalar_subquery()
        waiting = select(func.count(drains.c.object_id)).scalar_subquery()
        row = self._db.read("count", lambda tx: tx.execute(select(live, superseded, deleted, unfinished, waiting)).one())
        return dict(zip(("publications", "superseded", "deleted", "attempts", "drains"), map(int, row), strict=True))

    def remove(self, path: str, *, recursive: bool = False) -> list[Publication]:
        """Remove what is at `path`, with its superseded versions; a folder and all below it only if `recursive`.

        PathConflict for a folder otherwise, and for a file inside a publication: published folders are closed.
        """
        path = paths.check_path(path, operation="remove")
        return self._db.write("remove", lambda tx: self._remove(tx, path, recursive), path)

    # --- reading ---------------------------------------------------------------------------------------------------------------

    def _entry(self, tx: Connection, path: str) -> Entry:
        entry, rest = visible_at(tx, path)
        if entry is not None and not rest:
            if entry.publication_id is None:
                return Entry(path, entry.name, FOLDER, 0, None)
            row = publication_row(tx, entry.publication_id)
            if row is not None:
                published = read_publication(tx, row, self._tiers)
                object_id = _single_objects(tx, [published]).get(published.publication_id)
                return Entry(path, entry.name, published.kind.value, published.size_bytes, published, object_id)
        if entry is not None and entry.publication_id is not None:
            row = publication_row(tx, entry.publication_id)
            if row is not None:
                return _inside(tx, read_publication(tx, row, self._tiers), path, rest)
        raise NotFound("nothing is published there", operation="stat", subject=path)

    def _list(self, tx: Connection, path: str, after: str, limit: int) -> list[Entry]:
        if path != "/":
            entry, rest = visible_at(tx, path)
            if entry is None or (rest and entry.publication_id is None):
                raise NotFound("nothing is published there", operation="list", subject=path)
            if entry.publication_id is not None:
                row = publication_row(tx, entry.publication_id)
                assert row is not None
                return _list_inside(tx, read_publication(tx, row, self._tiers), path, rest, after, limit)
        shown = entries.outerjoin(attachments, attachments.c.path == entries.c.path)
        query = select(entries, attachments.c.url).select_from(shown).where(entries.c.parent == path, entries.c.name > after)
        if path == "/":
            query = query.where(entries.c.name != paths.TRASH)
        rows = tx.execute(query.order_by(entries.c.name).limit(limit)).all()
        ids = [row.publication_id for row in rows if row.publication_id is not None]
        found = tx.execute(select(publications).where(publications.c.publication_id.in_(ids))).all() if ids else []
        published = {item.publication_id: item for item in read_publications(tx, found, self._tiers)}
        object_ids = _single_objects(tx, published.values())
        listed = []
        for row in rows:
            item = published.get(row.publication_id)
            kind, size_bytes = (item.kind.value, item.size_bytes) if item is not None else (FOLDER, 0)
            object_id = object_ids.get(row.publication_id)
            listed.append(Entry(row.path, row.name, kind, size_bytes, item, object_id, attached_from=row.url))
        return listed

    def _published_at(self, tx: Connection, path: str) -> Publication:
        entry, rest = visible_at(tx, path)
        if entry is not None and not rest and entry.publication_id is not None:
            row = publication_row(tx, entry.publication_id)
            if row is not None:
                return read_publication(tx, row, self._tiers)
        hint = None
        if tx.execute(select(attempts.c.attempt_id).where(attempts.c.path == path, attempts.c.state.in_(UNFINISHED)).limit(1)).first():
            hint = "a save is on its way there: it can be loaded once it is in a durable tier (`pending.wait_published()`)"
        elif entry is not None:
            hint = f"{entry.path} is published: name that" if entry.publication_id is not None and rest else f"list {entry.path}"
        raise NotFound("nothing is published there", operation="resolve", subject=path, hint=hint)

    # --- removing --------------------------------------------------------------------------------------------------------------

    def _remove(self, tx: Connection, path: str, recursive: bool) -> list[Publication]:
        lock_namespace(tx)
        refuse_to_take_away(tx, path, "remove")
        entry, rest = visible_at(tx, path)
        if entry is None or (rest and entry.publication_id is None):
            raise NotFound("nothing is published there", operation="remove", subject=path)
        if rest:
            raise PathConflict(
                f"{entry.path} is published: a published folder is closed", operation="remove", subject=path, hint=f"remove {entry.path}"
            )
        if entry.publication_id is None and not recursive:
            raise PathConflict("it is a folder with entries", operation="remove", subject=path, hint="remove it recursively")
        gone_paths = [path]
        if entry.publication_id is None:
            low, high = below(path)
            inside = select(entries.c.path).where(entries.c.path >= low, entries.c.path < high)
            gone_paths += tx.execute(inside).scalars()
        here = published_below(path, "live", "superseded", itself=entry.publication_id is not None)
        rows = tx.execute(select(publications).where(here).with_for_update()).all()
        refuse_held(tx, [row.publication_id for row in rows], "remove", path)
        removed = read_publications(tx, rows, self._tiers)
        delete_publications(tx, self.node, [row.publication_id for row in rows])
        remove_entries(tx, gone_paths)
        return removed


def _single_objects(tx: Connection, published: Iterable[Publication]) -> dict[str, str]:
    """The objects of those publications that are one file, by publication."""
    ids = [publication.publication_id for publication in published if publication.kind is Kind.FILE]
    query = select(objects.c.attempt_id, objects.c.object_id).where(objects.c.attempt_id.in_(ids), objects.c.name == "")
    return {row.attempt_id: row.object_id for row in tx.execute(query)} if ids else {}


def _inside(tx: Connection, publication: Publication, path: str, name: str) -> Entry:
    """A file or folder inside a publication."""
    publication_id, leaf = publication.publication_id, name.rpartition("/")[2]
    query = select(objects.c.size_bytes, objects.c.object_id).where(objects.c.attempt_id == publication_id, objects.c.name == name)
    file = tx.execute(query).first()
    if file is not None:
        return Entry(path, leaf, Kind.FILE.value, file.size_bytes or 0, None, file.object_id, publication)
    if _is_inner_folder(tx, publication_id, name):
        return Entry(path, leaf, FOLDER, 0, None, None, publication)
    raise NotFound("nothing is published there", operation="stat", subject=path)


def _is_inner_folder(tx: Connection, publication_id: str, name: str) -> bool:
    folder, _, leaf = name.rpartition("/")
    named = (inner_folders.c.attempt_id == publication_id, inner_folders.c.folder == folder, inner_folders.c.leaf == leaf)
    return tx.execute(select(inner_folders.c.leaf).where(*named)).first() is not None


def _list_inside(tx: Connection, publication: Publication, path: str, folder: str, after: str, limit: int) -> list[Entry]:
    publication_id = publication.publication_id
    if folder and not _is_inner_folder(tx, publication_id, folder):
        raise NotFound("no such folder is in this publication", operation="list", subject=path)
    rows = tx.execute(_inside_query(publication_id, folder, after, limit)).all()
    if not rows and not after:
        raise NotFound("it is a file, not a folder", operation="list", subject=path, hint="stat it")
    return [
        Entry(paths.join(path, row.leaf), row.leaf, row.kind, row.size_bytes or 0, None, row.object_id, publication) for row in rows
    ]


def _inside_query(publication_id: str, folder: str, after: str, limit: int) -> Select[Any]:
    files = select(objects.c.leaf, literal(Kind.FILE.value).label("kind"), objects.c.size_bytes, objects.c.object_id)
    files = files.where(objects.c.attempt_id == publication_id, objects.c.folder == folder, objects.c.leaf > after, objects.c.leaf != "")
    folders = select(
        inner_folders.c.leaf, literal(FOLDER).label("kind"), literal(0).label("size_bytes"), literal(None, Text()).label("object_id")
    )
    folders = folders.where(inner_folders.c.attempt_id == publication_id, inner_folders.c.folder == folder, inner_folders.c.leaf > after)
    page = [query.order_by("leaf").limit(limit).subquery() for query in (files, folders)]
    both = union_all(*(select(part.c.leaf, part.c.kind, part.c.size_bytes, part.c.object_id) for part in page)).subquery()
    return select(both).order_by(both.c.leaf).limit(limit)


