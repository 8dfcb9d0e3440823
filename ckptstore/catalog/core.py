"""What do all parts of the catalog stand on: the database, this node, its tiers, and the few statements that everybody uses?

`Core` is what `Catalog`'s parts inherit. Its only state besides the database is this node's view of the tiers, which `register_tiers`
replaces as a whole, and the store id, which never changes once something is recorded. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, case, delete, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ckptstore.catalog.engine import Database
from ckptstore.catalog.model import TierRow
from ckptstore.catalog.schema import counters, nodes, now_s, store, tiers
from ckptstore.errors import InvalidInput, WrongStore

T = TypeVar("T")

#: A node whose daemon has not been heard of for this long loses its work in shared tiers to others.
TAKE_OVER_S = 300.0
#: Ids in one IN (…): both databases take thousands of parameters, and a chunk keeps a transaction's statements short.
CHUNK = 500


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def insert_unless_there(tx: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """INSERT … ON CONFLICT DO NOTHING, which SQLAlchemy spells per database."""
    if tx.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def upsert(tx: Connection, table: Table, row: dict[str, Any], changed: Sequence[str]) -> None:
    """Insert a row, or set its `changed` columns where its key is there already."""
    made = sqlite.insert(table) if tx.dialect.name == "sqlite" else postgresql.insert(table)
    filled = made.values(**row)
    tx.execute(
        filled.on_conflict_do_update(
            index_elements=[column.name for column in table.primary_key], set_={name: filled.excluded[name] for name in changed}
        )
    )


def upsert_all(tx: Connection, table: Table, rows: Sequence[dict[str, Any]], changed: Sequence[str]) -> None:
    """`upsert` for many rows of plain values, which all have the same columns."""
    made = sqlite.insert(table) if tx.dialect.name == "sqlite" else postgresql.insert(table)
    keys = [column.name for column in table.primary_key]
    tx.execute(made.on_conflict_do_update(index_elements=keys, set_={name: made.excluded[name] for name in changed}), rows)


def next_value(tx: Connection, name: str) -> int:
    """The next number of a counter. Holds the counter's row until the transaction ends: numbers are given in the order of commits."""
    raised = update(counters).where(counters.c.name == name).values(value=counters.c.value + 1).returning(counters.c.value)
    return int(tx.execute(raised).scalar_one())


def clock(tx: Connection) -> float:
    """What the database's clock says."""
    return float(tx.execute(select(now_s())).scalar_one())


def lock_namespace(tx: Connection) -> int:
    """Be the only transaction that changes the namespace, and get the next publish sequence. Take it before any other lock."""
    return next_value(tx, "sequence")


def tier_of_object(me: str, ingest_node: ColumnElement[str]) -> ColumnElement[bool]:
    """Join condition: the durable tiers that an object belongs in. Shared ones as this node knows them, local ones of its ingest node."""
    view = or_(and_(tiers.c.shared, tiers.c.node == me), and_(~tiers.c.shared, tiers.c.node == ingest_node))
    return and_(tiers.c.active, tiers.c.durable, view)


#: The place within the joined tier.
TIER_PLACE = case((tiers.c.shared, literal("")), else_=tiers.c.node)


def tier_owner(me: str) -> ColumnElement[str]:
    """Who has to work there: this node in a shared tier, its node in a local one."""
    return case((tiers.c.shared, literal(me)), else_=tiers.c.node)


class Core:
    def __init__(self, database: Database, node: str) -> None:
        self._db = database
        self.node = node
        self._tiers: dict[str, TierRow] = {}
        self._store_id: str | None = None

    # --- the store's identity --------------------------------------------------------------------------------------------------

    @property
    def store_id(self) -> str:
        if self._store_id is None:
            self._store_id = self._db.read("read store id", lambda tx: str(fact(tx, "store_id")))
        return self._store_id

    def is_empty(self) -> bool:
        """Whether no publication, attempt or object was ever recorded, nor a rebuild begun."""
        return self._db.read("look whether the catalog is empty", is_empty)

    def adopt_store_id(self, store_id: str) -> None:
        """Become the catalog of an existing store: the first step of a rebuild. WrongStore unless the catalog is empty."""

        def work(tx: Connection) -> None:
            if not is_empty(tx):
                raise WrongStore("the catalog is not empty: it keeps its own store id", operation="adopt store id", subject=store_id)
            tx.execute(update(store).where(store.c.key == "store_id").values(value=store_id))

        self._db.write("adopt store id", work, store_id)
        self._store_id = store_id

    def close(self) -> None:
        self._db.close()

    # --- tiers and nodes -------------------------------------------------------------------------------------------------------

    def register_tiers(self, rows: Sequence[TierRow]) -> None:
        """Say which tiers this node has, in order; those it had before and has no longer become inactive."""

        def work(tx: Connection) -> None:
            if fact(tx, "rebuilding") is not None:
                raise WrongStore(
                    "a rebuild of this catalog was interrupted: it does not know all that exists",
                    operation="register tiers",
                    hint="run `ckptstore catalog rebuild` again",
                )
            self._record_tiers(tx, rows)

        self._db.write("register tiers", work)
        self._tiers = {row.name: row for row in sorted(rows, key=lambda row: row.position)}

    def _record_tiers(self, tx: Connection, rows: Sequence[TierRow]) -> None:
        tx.execute(update(tiers).where(tiers.c.node == self.node).values(active=False))
        for row in rows:
            differs = (tiers.c.name == row.name, tiers.c.shared != row.shared, tiers.c.active, tiers.c.node != self.node)
            other = tx.execute(select(tiers.c.node).where(*differs)).first()
            if other is not None:
                raise InvalidInput(
                    f"node {other.node} says that the tier is {'node-local' if row.shared else 'shared'}",
                    operation="register tiers",
                    tier=row.name,
                    hint="give it the same `shared` in the configuration of every node",
                )
            filled = {"node": self.node, "name": row.name, "position": row.position, "shared": row.shared, "durable": row.durable}
            upsert(tx, tiers, filled | {"active": True}, ("position", "shared", "durable", "active"))
        self._heard(tx)

    def _load_tiers(self) -> None:
        """What this node registered last time, so that a catalog opened for reading knows its tiers."""
        query = select(tiers).where(tiers.c.node == self.node, tiers.c.active).order_by(tiers.c.position)
        rows = self._db.read("read tiers", lambda tx: tx.execute(query).all())
        self._tiers = {row.name: TierRow(row.name, row.position, row.shared, row.durable) for row in rows}

    def _tier(self, name: str) -> TierRow:
        tier = self._tiers.get(name)
        if tier is None:
            known = ", ".join(self._tiers) or "none"
            raise InvalidInput(f"there is no tier {name!r} here", operation="use tier", hint=f"the configured tiers are: {known}")
        return tier

    def _place(self, tier: TierRow) -> str:
        return "" if tier.shared else self.node

    def _heard(self, tx: Connection) -> None:
        tx.execute(update(nodes).where(nodes.c.node == self.node).values(seen_s=now_s()))

    def _owners(self, tx: Connection, tier: TierRow) -> list[str]:
        """Whose work in this tier this node does: its own, and in a shared tier that of nodes long unheard of."""
        if not tier.shared:
            return [self.node]
        gone = select(nodes.c.node).where(nodes.c.seen_s < now_s() - TAKE_OVER_S, nodes.c.node != self.node).limit(CHUNK)
        return [self.node, *tx.execute(gone).scalars()]


def fact(tx: Connection, key: str) -> str | None:
    return tx.execute(select(store.c.value).where(store.c.key == key)).scalar_one_or_none()


def set_fact(tx: Connection, key: str, value: str | None) -> None:
    tx.execute(delete(store).where(store.c.key == key))
    if value is not None:
        tx.execute(insert(store).values(key=key, value=value))


def is_empty(tx: Connection) -> bool:
    counted = tx.execute(select(counters.c.name).where(counters.c.value > 0)).first()
    return counted is None and fact(tx, "rebuilding") is None


def first(rows: Sequence[Row[Any]]) -> Row[Any] | None:
    return rows[0] if rows else None
