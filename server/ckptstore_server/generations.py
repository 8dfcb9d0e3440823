"""Was this root there when the catalog was last rebuilt? Each root carries the number of the last rebuild that it knows of.

A node that was away during a rebuild comes back with records of what was removed meanwhile; their tombstones lie elsewhere, and go when
all that the new catalog knows of have acknowledged them. So what only such a root knows is not believed by a later rebuild, and not
deleted either: it is reported by name.

`rebuilt.json` is written by a daemon's `catch_up` at its start: into the node's own tiers first, then into shared ones, so that after a
crash in between a node's own roots are ahead, never behind. A root without the document knows of no rebuild.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ckptstore.catalog import Catalog
from ckptstore.catalog.model import record_key
from ckptstore.errors import ChecksumMismatch, CkptStoreError, InvalidInput, NotFound, WrongStore
from ckptstore.paths import is_id
from ckptstore.records import read_record
from ckptstore_server.identity import REBUILT_KEY
from ckptstore_server.node import Node
from ckptstore_tiers.interface import Tier

FORMAT = "ckptstore-rebuilt"
_LIMIT_BYTES = 64 * 1024
#: Paths that a report quotes.
_QUOTED = 5


def generation_of(tier: Tier) -> int:
    """The number of the last rebuild that the root knows of; 0 for none. InvalidInput if that cannot be read."""
    try:
        document = json.loads(tier.get_document(REBUILT_KEY, limit_bytes=_LIMIT_BYTES))
        if document["format"] != FORMAT or not isinstance(document["generation"], int):
            raise ValueError(f"format {document['format']!r}")
        return int(document["generation"])
    except NotFound:
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{REBUILT_KEY} cannot be read: {error}", operation="check root", tier=tier.facts.name) from error


def stale_tiers(tiers: Mapping[str, Tier], shared: Mapping[str, bool]) -> tuple[set[str], int]:
    """The node's own tiers that were not there at the last rebuild which a shared one knows of; and the number of the next rebuild."""
    generations = {name: generation_of(tier) for name, tier in tiers.items()}
    newest_shared = max((generation for name, generation in generations.items() if shared[name]), default=0)
    stale = {name for name, generation in generations.items() if not shared[name] and generation < newest_shared}
    return stale, 1 + max(generations.values(), default=0)


def catch_up(node: Node) -> None:
    """Bring this node's roots up to the catalog's last rebuild; what is unknown to it stays, and is told in `status`."""
    generation, rebuilt_by = node.catalog.rebuilt()
    if not generation:
        return
    absent = False
    for handle in sorted(node.durable, key=lambda handle: handle.settings.is_shared):
        tier, shared = handle.opened, handle.settings.is_shared
        if tier is None or (shared and absent):
            absent = absent or not shared
            continue
        try:
            if generation_of(tier) >= generation:
                continue
            if not shared and rebuilt_by != node.node_id and (unknown := _settle(tier, node.catalog)):
                node.remark(f"catch up {handle.name}", _unknown(unknown, handle.name))
                continue
            document = {"format": FORMAT, "version": 1, "store": node.catalog.store_id, "generation": generation}
            tier.put_document(REBUILT_KEY, json.dumps(document).encode() + b"\n")
        except CkptStoreError as error:
            node.remark(f"catch up {handle.name}", error)
            absent = absent or not shared


def _unknown(paths: list[str], tier: str) -> WrongStore:
    quoted = ", ".join(repr(path) for path in paths[:_QUOTED]) + (", …" if len(paths) > _QUOTED else "")
    return WrongStore(
        f"{len(paths)} checkpoints lie here that the catalog does not know ({quoted}): this node was away when it was rebuilt",
        tier=tier,
        hint="they were removed meanwhile, or nobody else has them: see `Several nodes` in docs/operating.md",
    )


def _settle(tier: Tier, catalog: Catalog) -> list[str]:
    """Delete what the catalog knows as deleted, objects first, so that a crash leaves the record; the paths of what it does not know."""
    unknown = []
    for stat in list(tier.list("records/")):
        publication_id = stat.key.removeprefix("records/").removesuffix(".jsonl")
        if not is_id(publication_id) or catalog.is_live(publication_id):
            continue
        try:
            record = read_record(tier.get_document(stat.key), subject=stat.key, tier=tier.facts.name)
            keys = {file.object_id: file.key for file in record.files()}
        except (InvalidInput, ChecksumMismatch, NotFound):
            unknown.append(stat.key)
            continue
        if catalog.is_live(publication_id) is None:
            unknown.append(record.header.path)
            continue
        for object_id in keys.keys() - catalog.known_objects(keys):
            tier.delete(keys[object_id])
        tier.delete(record_key(publication_id))
    return unknown
