"""Which tiers is a publication kept from, because no policy wants it there?

A row for each publication and tier. Nothing brings such a publication into that tier: no drain, no repair, no recall; and what arrives
there all the same is not taken (`Replicas.add_replica`). An object stays away from a tier only if everybody who needs it does: see
`references.wanted`. Functions for use inside a transaction; `leaving` is what callers see.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, select

from ckptstore.catalog.core import insert_unless_there
from ckptstore.catalog.references import needed, wanted
from ckptstore.catalog.schema import drains, objects, replicas, unkept


def keep_from(tx: Connection, publication_id: str, tier: str) -> bool:
    """Whether it was not kept from that tier before."""
    return tx.execute(insert_unless_there(tx, unkept).values(publication_id=publication_id, tier=tier)).rowcount > 0


def skip_tiers(tx: Connection, publication_id: str, tiers: Collection[str]) -> None:
    """Right after its publishing: do not drain it into these tiers; those excepted in which something of it lies already."""
    if not tiers:
        return
    mine = select(replicas.c.tier).join(objects, objects.c.object_id == replicas.c.object_id)
    begun = set(tx.execute(mine.where(objects.c.attempt_id == publication_id).distinct()).scalars())
    for tier in {*tiers} - begun:
        keep_from(tx, publication_id, tier)
        stop = select(objects.c.object_id).where(needed([publication_id]), ~wanted(tier))
        tx.execute(delete(drains).where(drains.c.tier == tier, drains.c.object_id.in_(stop)))
