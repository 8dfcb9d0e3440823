"""How does a publication leave one tier, or come back into it, while it stays elsewhere?

What policies decide is worked out above (`ckptstore.tier_retention`), on what was seen a moment ago. Here it is made safe: the
transaction that takes a publication out of a tier tests again that nobody holds it, that a tier that wants it, or a deeper one, holds
all of it with its commit record, and that the newer one because of which it may leave is still safe. It keeps the publication from the
tier, gives up replicas, drains and records there, and notes the deletions that are owed: a crash before the bytes are gone leaves chores.

So of two transactions that would take something out of two tiers, the second sees what the first has left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import Connection, delete, select

from ckptstore import paths
from ckptstore.catalog.core import chunks, lock_namespace
from ckptstore.catalog.deletion import leave_tier
from ckptstore.catalog.drains import free_superseded
from ckptstore.catalog.entries import below, in_state
from ckptstore.catalog.held import is_held
from ckptstore.catalog.model import Act, Kind, Publication
from ckptstore.catalog.publish import queue_drains
from ckptstore.catalog.replicas import Replicas
from ckptstore.catalog.retention import Retaining
from ckptstore.catalog.schema import chores, publications, tiers, unkept
from ckptstore.catalog.unkept import keep_from
from ckptstore.catalog.views import publication_row


class Leaving(Retaining, Replicas):
    def leave_tier(self, publication_id: str, tier: str, *, wanted_in: Collection[str], because_of: tuple[str, str] | None) -> bool:
        """Keep a publication from a tier, and take it out of it. `because_of`: a newer publication, and the tier that must hold that;
        None will do if the tier does not hold all of it.

        False, and nothing is changed, if it may not: it is held, or nowhere else that will do (a tier of `wanted_in`, or a deeper one).
        """
        row = self._tier(tier)

        def work(tx: Connection) -> bool:
            lock_namespace(tx)
            leaving = self._live(tx, publication_id, locked=True)
            if leaving is None or leaving.kind is Kind.FOLDER or is_held(tx, publication_id):
                return False
            elsewhere = [other for other in leaving.durability if other in wanted_in or self._tier(other).position > row.position]
            if not {*elsewhere} - {tier}:
                return False
            if tier in leaving.durability and not self._has_newer(tx, leaving, because_of):
                return False
            keep_from(tx, publication_id, tier)
            leave_tier(tx, self.node, publication_id, tier)
            free_superseded(tx, self.node, leaving.path, self._tiers)
            return True

        return self._db.write("leave tier", work, publication_id)

    def return_to_tier(self, publication_id: str, tier: str) -> bool:
        """Keep it from the tier no longer, and drain it there, unless a deeper tier holds all of it. False if it was not kept from it."""
        row = self._tier(tier)

        def work(tx: Connection) -> bool:
            back = self._live(tx, publication_id, locked=True)
            mine = (unkept.c.publication_id == publication_id, unkept.c.tier == tier)
            if back is None or not tx.execute(delete(unkept).where(*mine)).rowcount:
                return False
            record = (chores.c.publication_id == publication_id, chores.c.tier == tier, chores.c.act == Act.DELETE_RECORD.value)
            tx.execute(delete(chores).where(*record))
            if not self.is_safe(back, tier):
                queue_drains(tx, self.node, publication_id, back.opened, back.sequence, only=tiers.c.name == tier)
                found = publication_row(tx, publication_id)
                assert found is not None
                self._note_if_whole(tx, found, row, self._place(row))
            return True

        return self._db.write("return to tier", work, publication_id)

    def unkept(self, publication_ids: Iterable[str]) -> dict[str, frozenset[str]]:
        """The tiers that each of them is kept from; those that are kept from none are left out."""

        def work(tx: Connection) -> dict[str, frozenset[str]]:
            found: dict[str, frozenset[str]] = {}
            for ids in chunks(publication_ids):
                for row in tx.execute(select(unkept).where(unkept.c.publication_id.in_(ids))):
                    found[row.publication_id] = found.get(row.publication_id, frozenset()) | {row.tier}
            return found

        publication_ids = list(publication_ids)
        return self._db.read("list unkept", work)

    def unkept_folders(self) -> list[str]:
        """Folders with live publications that are kept from some tier; not the trash."""
        low, high = below(f"/{paths.TRASH}")
        query = select(publications.c.parent).where(publications.c.publication_id.in_(select(unkept.c.publication_id))).distinct()
        here = (in_state("live"), ~((publications.c.path >= low) & (publications.c.path < high)))
        return self._db.read("list unkept", lambda tx: list(tx.execute(query.where(*here)).scalars()))

    def _has_newer(self, tx: Connection, leaving: Publication, because_of: tuple[str, str] | None) -> bool:
        newer = self._live(tx, because_of[0]) if because_of is not None else None
        return newer is not None and because_of is not None and self._is_followed(leaving, newer, because_of[1])
