"""Which steps of deletions does this node owe in a tier, and what follows from one that is done?

The daemon does a chore in the tier and then says so; doing it twice is harmless. What a chore's end queues is decided in `deletion`.
A chore can be withdrawn (an evicted object is wanted again): `still_due` asks once more, under the daemon's lock of that object and
tier, right before the bytes go.
"""

from __future__ import annotations

from sqlalchemy import Connection, Select, delete, select, update

from ckptstore import records
from ckptstore.catalog import deletion
from ckptstore.catalog.core import Core, fact
from ckptstore.catalog.model import Act, AttemptState, Chore, TierRow, record_key, tombstone_key
from ckptstore.catalog.references import ENDED
from ckptstore.catalog.schema import attempts, chores, now_s, objects, publications, replicas


class Chores(Core):
    def chores(self, tier: str, *, grace_s: float, limit: int) -> list[Chore]:
        """What is to be done now: steps without a grace period first, then those whose period is over."""
        row = self._tier(tier)

        def work(tx: Connection) -> list[Chore]:
            owners = self._owners(tx, row)
            store_id: str | None = None
            found: list[Chore] = []
            for query in (self._due_chores(row, owners, False, 0.0), self._due_chores(row, owners, True, grace_s)):
                for line in tx.execute(query.limit(limit - len(found))):
                    act = Act(line.act)
                    document = b""
                    if act is Act.WRITE_TOMBSTONE:
                        store_id = store_id or fact(tx, "store_id") or ""
                        document = records.write_tombstone(store_id, line.publication_id, line.path, line.sequence, line.ended_at_s)
                    key = line.key or (record_key if act is Act.DELETE_RECORD else tombstone_key)(line.publication_id)
                    found.append(Chore(line.chore_id, act, line.tier, line.publication_id, line.object_id, key, document))
                if len(found) >= limit:
                    break
            return found

        return self._db.read("list chores", work, tier)

    def still_due(self, chore: Chore) -> bool:
        """Whether the chore was neither withdrawn nor done by another node."""
        query = select(chores.c.chore_id).where(chores.c.chore_id == chore.chore_id)
        return self._db.read("look up chore", lambda tx: tx.execute(query).first() is not None, chore.key)

    def chore_done(self, chore: Chore) -> None:
        """The step is done, durably; the next one is queued."""
        self._db.write("finish chore", lambda tx: self._done(tx, chore), chore.key)

    def chore_failed(self, chore: Chore, error: str, retry_in_s: float) -> None:
        later = update(chores).where(chores.c.chore_id == chore.chore_id)
        values = {"tries": chores.c.tries + 1, "error": error[:2000], "due_s": now_s() + retry_in_s, "graced": False}
        self._db.write("put back chore", lambda tx: tx.execute(later.values(values)), chore.key)

    def _due_chores(self, tier: TierRow, owners: list[str], graced: bool, grace_s: float) -> Select[tuple[object, ...]]:
        return (
            select(chores, objects.c.key, publications.c.path, publications.c.sequence, publications.c.ended_at_s)
            .outerjoin(objects, objects.c.object_id == chores.c.object_id)
            .outerjoin(publications, publications.c.publication_id == chores.c.publication_id)
            .where(chores.c.tier == tier.name, chores.c.owner.in_(owners), chores.c.graced == graced, chores.c.due_s <= now_s() - grace_s)
            .order_by(chores.c.due_s, chores.c.chore_id)
        )

    def _done(self, tx: Connection, chore: Chore) -> None:
        owner = chore.publication_id or ""
        locked = select(publications.c.state).where(publications.c.publication_id == owner).with_for_update()
        state = tx.execute(locked).scalar_one_or_none()
        gone = delete(chores).where(chores.c.chore_id == chore.chore_id).returning(chores.c.place)
        place = tx.execute(gone).scalar_one_or_none()
        if place is None:
            return  # withdrawn, or done twice
        if state in ENDED:
            self._next_step(tx, chore, owner, place)
        elif chore.act is Act.DELETE_OBJECT and state is None and _is_aborted(tx, owner):
            here = (replicas.c.object_id == chore.object_id, replicas.c.tier == chore.tier, replicas.c.place == place)
            tx.execute(delete(replicas).where(*here))

    def _next_step(self, tx: Connection, chore: Chore, publication_id: str, place: str) -> None:
        match chore.act:
            case Act.WRITE_TOMBSTONE:
                deletion.tombstone_written(tx, publication_id, chore.tier, place, self.node)
            case Act.DELETE_RECORD:
                deletion.record_deleted(tx, publication_id, chore.tier, place, self.node)
            case Act.DELETE_OBJECT:
                deletion.object_deleted(tx, publication_id, chore.object_id or "", chore.tier, place, self.node)
            case Act.DELETE_TOMBSTONE:
                deletion.tombstone_deleted(tx, publication_id, chore.tier, place, self.node)


def _is_aborted(tx: Connection, attempt_id: str) -> bool:
    return tx.execute(select(attempts.c.state).where(attempts.c.attempt_id == attempt_id)).scalar_one_or_none() == AttemptState.ABORTED
