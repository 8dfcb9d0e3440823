"""The catalog as a whole: every public method is one transaction, durable when it returns.

The parts answer one question each: `attempts` (who takes part), `publish` (what becomes visible), `namespace` (what is at a path),
`moving` (what gets another path), `attachments` (which storage of others is shown where), `changes` (what changed since), `retention`
(what is kept, and the trash), `leaving` (what is kept from which tier), `holding` (what nobody may remove), `snapshots` (what running
jobs are asked for), `references` (who needs whose objects), `replicas` (where objects lie), `drains` (what has to move, which records are
owed), `chores` and `deletion` (how things cease to exist), `restore` (how the catalog is made anew). Several processes on several nodes
may use one PostgreSQL catalog at once, and several processes of one machine one SQLite catalog. Methods block and may be called from any
thread; they raise the leaves of `ckptstore.errors`, CatalogUnavailable when the database stays locked, full or silent.
"""

from __future__ import annotations

from ckptstore.catalog.attachments import Attachments
from ckptstore.catalog.changes import Changes
from ckptstore.catalog.chores import Chores
from ckptstore.catalog.core import upsert
from ckptstore.catalog.drains import Drains
from ckptstore.catalog.engine import PATIENCE_S, Database
from ckptstore.catalog.fingerprints import Fingerprints
from ckptstore.catalog.holding import Holding
from ckptstore.catalog.leaving import Leaving
from ckptstore.catalog.migrations import migrate
from ckptstore.catalog.publish import Publishing
from ckptstore.catalog.restore import Restore
from ckptstore.catalog.schema import nodes, now_s
from ckptstore.catalog.snapshots import Snapshots
from ckptstore.catalog.tagging import Tagging


class Catalog(Publishing, Leaving, Holding, Tagging, Snapshots, Attachments, Changes, Fingerprints, Drains, Chores, Restore):
    @classmethod
    def open(cls, url: str, *, node: str, node_name: str = "", patience_s: float = PATIENCE_S) -> Catalog:
        """The catalog at `url` (sqlite:////path or postgresql://…), made or migrated if need be, as `node` uses it.

        ConfigInvalid for a schema newer than this program and for SQLite on a network file system; CatalogUnavailable when the
        database does not answer within `patience_s`.
        """
        database = Database(url, patience_s=patience_s)
        try:
            database.write("open catalog", lambda tx: migrate(tx, database.name))
            catalog = cls(database, node)
            seen = {"node": node, "name": node_name, "seen_s": now_s()}
            database.write("open catalog", lambda tx: upsert(tx, nodes, seen, ("name", "seen_s")))
            catalog._load_tiers()
        except BaseException:
            database.close()
            raise
        return catalog
