"""What is kept of a folder's checkpoints, and what waits in the trash?

A folder's policies are kept where all nodes see them; what they decide is worked out above (`ckptstore.retention`). Here is what makes a
decision safe to carry out: `discard` tests again, in the transaction that takes a checkpoint away, that nobody holds it and that the newer
one because of which it may go is still there and still safe. So two daemons that decide at once, or one that decides on what has just
changed, take away nothing that should stay.

The trash is a part of the namespace that users cannot name: `/@trash/<second>/<where it was>`. What lies there is whole, drained and
recorded like anything else, and a rebuild finds it; moving it back is a move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, select, true

from ckptstore import paths
from ckptstore.catalog.core import chunks, clock, lock_namespace, upsert
from ckptstore.catalog.entries import published_below
from ckptstore.catalog.held import hold, is_any_held
from ckptstore.catalog.model import Kind, Publication, Retention, Trashed
from ckptstore.catalog.moving import Moving
from ckptstore.catalog.namespace import Namespace
from ckptstore.catalog.schema import entries, now_s, publications, tier_retentions
from ckptstore.catalog.views import publication_row, read_publication, read_publications
from ckptstore.catalog.written_by_file import WRITTEN_LAST, as_folder, inside, measured, written_by_file
from ckptstore.durability import is_as_safe_as
from ckptstore.errors import InvalidInput, NotFound

_PAGE = 500


class Retaining(Moving, Namespace):
    # --- policies ----------------------------------------------------------------------------------------------------------------

    def set_retention(self, wanted: Retention) -> Retention:
        """Judge the checkpoints of a folder by these policies from now on, in place of any before. The folder need not exist yet."""
        wanted = self.checked_retention(wanted)
        key = {"path": wanted.path, "tier": wanted.tier}
        row = {"policies": wanted.policies, "safe_in": wanted.safe_in, "trash_s": wanted.trash_s, "set_at_s": now_s()}

        def work(tx: Connection) -> Retention:
            upsert(tx, tier_retentions, key | row, [*row])
            return _retention(tx.execute(select(tier_retentions).filter_by(**key)).one())

        return self._db.write("keep", work, wanted.path)

    def checked_retention(self, wanted: Retention) -> Retention:
        """As it would be set. InvalidInput, without a look at the database, if it could not be."""
        path, order = paths.check_folder(wanted.path, operation="keep"), self._durable_tiers()
        for tier in (wanted.tier, wanted.safe_in):
            if tier and tier not in order:
                hint = f"known are: {', '.join(order)}"
                raise InvalidInput(f"there is no durable tier {tier!r}", operation="keep", subject=path, hint=hint)
        return replace(wanted, path=path)

    def is_safe(self, checkpoint: Publication, tier: str) -> bool:
        """Whether that tier ("": the deepest) or a deeper one holds all of it; never, once the tier is configured no more."""
        order = self._durable_tiers()
        return (tier in order or not tier) and is_as_safe_as(tier or order[-1], checkpoint.durability, order)

    def _durable_tiers(self) -> list[str]:
        return [row.name for row in self._tiers.values() if row.durable]

    def clear_retention(self, path: str, tier: str | None = None) -> list[Retention]:
        """Keep everything in the folder from now on, or in one tier of it what the folder's own policies want; what was said before.

        NotFound if nothing was.
        """
        path = paths.check_folder(path, operation="keep")
        here = (tier_retentions.c.path == path, tier_retentions.c.tier == tier if tier is not None else true())

        def work(tx: Connection) -> list[Retention]:
            rows = tx.execute(select(tier_retentions).where(*here).order_by(tier_retentions.c.tier)).all()
            if not rows:
                raise NotFound("there are no such policies", operation="keep", subject=path, tier=tier)
            tx.execute(delete(tier_retentions).where(*here))
            return [_retention(row) for row in rows]

        return self._db.write("keep", work, path)

    def retentions(self, path: str | None = None) -> list[Retention]:
        """All, or those of one folder, in the order of their paths and tiers."""
        query = select(tier_retentions).order_by(tier_retentions.c.path, tier_retentions.c.tier)
        query = query.where(tier_retentions.c.path == path) if path is not None else query
        return [_retention(row) for row in self._db.read("list retentions", lambda tx: tx.execute(query).all())]

    def clock_s(self) -> float:
        """What the database's clock says: that by which checkpoints are opened."""
        return self._db.read("look at the clock", clock)

    def checkpoints(self, folder: str) -> Iterator[Publication]:
        """The checkpoints that are directly in the folder, oldest first; those too that were written file by file, and are complete."""

        def written(tx: Connection) -> list[Publication]:
            found = [measured(tx, one, self._tiers) for one in written_by_file(tx, folder, self._tiers, after=-1)]
            return [one for one in reversed(found) if one is not None]

        by_file = self._db.read("list checkpoints", written, folder)
        yield from merge(self._saved(folder), by_file, key=lambda one: one.opened)

    def _saved(self, folder: str) -> Iterator[Publication]:
        """Those that were saved as one, a page at a time."""
        opened = -1
        while page := self._db.read("list checkpoints", lambda tx, after=opened: self._checkpoints(tx, folder, after), folder):  # type: ignore[misc]
            yield from page
            opened = page[-1].opened

    def _checkpoints(self, tx: Connection, folder: str, after: int) -> list[Publication]:
        here = (publications.c.parent == folder) & (publications.c.state == "live") & (publications.c.kind == Kind.CHECKPOINT)
        query = select(publications).where(here, publications.c.opened > after).order_by(publications.c.opened).limit(_PAGE)
        return read_publications(tx, tx.execute(query).all(), self._tiers)

    # --- the trash ---------------------------------------------------------------------------------------------------------------

    def discard(self, publication_id: str, *, because_of: str, tier: str, trash_s: float) -> str | None:
        """Take a checkpoint out of its folder, into the trash for `trash_s`, or for good if that is 0. Where it is now; "" if it is gone.

        None, and nothing is changed, if it may not go any more: it is held, or elsewhere, or `because_of` is not a newer checkpoint beside
        it that `tier` or a deeper one holds whole.
        """

        def work(tx: Connection) -> str | None:
            lock_namespace(tx)
            going, newer = self._live(tx, publication_id), self._live(tx, because_of)
            if going is None or newer is None or not self._may_go(tx, going, newer, tier):
                return None
            if trash_s <= 0:
                self._remove(tx, going.path, going.kind is Kind.FOLDER)
                return ""
            place = _free_place(tx, going.path, clock(tx) + trash_s)
            self._move(tx, going.path, place, False)
            return place

        return self._db.write("discard", work, publication_id)

    def _live(self, tx: Connection, publication_id: str, *, locked: bool = False) -> Publication | None:
        row = publication_row(tx, publication_id, locked=locked)
        if row is None or row.state != "live":
            return None
        found = as_folder(read_publication(tx, row, self._tiers))
        return measured(tx, found, self._tiers) if found.kind is Kind.FOLDER else found

    def _may_go(self, tx: Connection, going: Publication, newer: Publication, tier: str) -> bool:
        ids = [going.publication_id]
        if going.kind is Kind.FOLDER:
            ids = list(tx.execute(select(publications.c.publication_id).where(inside(going.path))).scalars())
        return self._is_followed(going, newer, tier) and not is_any_held(tx, ids)

    def _is_followed(self, going: Publication, newer: Publication, tier: str) -> bool:
        beside = paths.parent_and_name(going.path)[0] == paths.parent_and_name(newer.path)[0]
        return beside and self.is_safe(newer, tier) and newer.opened > going.opened

    def trashed(self) -> list[Trashed]:
        """What waits in the trash, what goes first first."""

        def work(tx: Connection) -> list[Trashed]:
            rows = tx.execute(select(publications).where(_in_trash()).order_by(publications.c.path)).all()
            found = [one for page in chunks(rows) for one in read_publications(tx, page, self._tiers)]
            folders = [folder for last in found if (folder := as_folder(last)) is not last]
            whole = [one for one in (measured(tx, folder, self._tiers) for folder in folders) if one is not None]
            inner = {one.path for one in found for folder in whole if paths.is_below(one.path, folder.path)}
            lying = [*whole, *(one for one in found if one.path not in inner)]
            return [_trashed(one) for one in sorted(lying, key=lambda one: one.path)]

        return self._db.read("list trash", work)

    def undo(self, path: str, why: str = "brought back from the trash") -> str:
        """Put back what was last thrown away from `path`, and hold it, since the policies would let it go again; its path.

        NotFound if the trash has nothing from there; AlreadyExists if something else is there now.
        """
        paths.check_path(path, operation="undo")

        def work(tx: Connection) -> str:
            found = _lying(tx, path) or [paths.parent_and_name(last)[0] for last in _lying(tx, paths.join(path, WRITTEN_LAST))]
            if not found:
                raise NotFound("the trash has nothing from there", operation="undo", subject=path, hint="see `ckptstore trash`")
            back = self._move(tx, max(found), path, False)
            hold(tx, self._published_at(tx, path if path in back else paths.join(path, WRITTEN_LAST)), why)
            return path

        return self._db.write("undo", work, path)

    def empty_trash(self, *, all_of_it: bool = False) -> list[Publication]:
        """Remove for good what has waited long enough, or everything."""

        def work(tx: Connection) -> list[Publication]:
            now = clock(tx)
            lying = tx.execute(select(publications.c.path).where(_in_trash()).order_by(publications.c.path).limit(_PAGE)).scalars().all()
            due = [there for there in lying if (was := paths.from_trash(there)) is not None and (all_of_it or was[1] <= now)]
            return [publication for path in due for publication in self._remove(tx, path, False)]

        removed: list[Publication] = []
        while page := self._db.write("empty trash", work):
            removed += page
        return removed


def _retention(row: Row[Any]) -> Retention:
    return Retention(**row._mapping)


def _trashed(publication: Publication) -> Trashed:
    was = paths.from_trash(publication.path)
    assert was is not None
    return Trashed(path=was[0], until_s=was[1], publication=publication)


def _in_trash() -> ColumnElement[bool]:
    return published_below(f"/{paths.TRASH}", "live", itself=False)


def _lying(tx: Connection, path: str) -> list[str]:
    """Where in the trash what was published at `path` lies."""
    lying = tx.execute(select(publications.c.path).where(_in_trash(), publications.c.path.endswith(path, autoescape=True))).scalars()
    return [there for there in lying if (was := paths.from_trash(there)) is not None and was[0] == path]


def _free_place(tx: Connection, path: str, until_s: float) -> str:
    """In the trash, at that second or the first after it in which nothing from the same path waits."""
    while True:
        place = paths.trash_path(path, until_s)
        if tx.execute(select(entries.c.path).where(entries.c.path == place)).first() is None:
            return place
        until_s += 1
