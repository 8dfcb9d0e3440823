"""Does this tier's root belong to this store?

Each root carries `store.json` with the UUID of its store, put there by one exclusive operation before anything else. A daemon uses a
root only if the UUID is its catalog's own: two homes on one bucket, or a catalog that was lost and made anew, never mix or delete each
other's data. A root without the document is claimed only if nothing of ours lies in it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from itertools import islice

from ckptstore.attachments_record import ATTACHMENTS_KEY
from ckptstore.errors import AlreadyExists, InvalidInput, NotFound, WrongStore
from ckptstore_tiers.interface import Tier

STORE_KEY = "store.json"
#: The documents that stand in each root by themselves: whose it is, which rebuild it knows of, and what was attached.
REBUILT_KEY = "rebuilt.json"
ROOT_KEYS = (STORE_KEY, REBUILT_KEY, ATTACHMENTS_KEY)
FORMAT = "ckptstore-store"
VERSION = 1
#: Where a store keeps what it keeps: anything below these means that the root is in use.
PREFIXES = ("records/", "tombstones/", "objects/")
_LIMIT_BYTES = 64 * 1024


def root_store(tier: Tier) -> str | None:
    """The UUID of the store that the root belongs to; None if it has no identity document. WrongStore if that cannot be read."""
    try:
        document = tier.get_document(STORE_KEY, limit_bytes=_LIMIT_BYTES)
    except NotFound:
        return None
    try:
        found = json.loads(document)
        if found["format"] != FORMAT or found["version"] != VERSION:
            raise ValueError(f"format {found['format']!r}, version {found['version']!r}")
        return str(uuid.UUID(found["store"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongStore(
            f"{STORE_KEY} in {tier.facts.location} is not a store's identity: {error}",
            operation="check root",
            tier=tier.facts.name,
            hint="name another root for this tier",
        ) from error


def is_empty_root(tier: Tier) -> bool:
    """Whether no object, record or tombstone lies in the root."""
    return all(next(islice(tier.list(prefix), 1), None) is None for prefix in PREFIXES)


def check_root(tier: Tier, store_id: str) -> bool:
    """True if the root is this store's, False if it is nobody's and empty; WrongStore otherwise."""
    found = root_store(tier)
    where = f"{tier.facts.location} (tier {tier.facts.name})"
    if found == store_id:
        return True
    if found is not None:
        raise WrongStore(
            f"{where} belongs to store {found}, the catalog is that of store {store_id}",
            operation="check root",
            tier=tier.facts.name,
            hint="if the catalog was lost, run `ckptstore catalog rebuild`; otherwise name another root for this tier",
        )
    if not is_empty_root(tier):
        raise WrongStore(
            f"{where} is not empty and says of no store that it is its own; the catalog is that of store {store_id}",
            operation="check root",
            tier=tier.facts.name,
            hint="name another root for this tier",
        )
    return False


def claim_root(tier: Tier, store_id: str, *, before: Callable[[], object] | None = None) -> bool:
    """Make sure that the root is this store's, claiming it if it is empty; whether it was claimed just now.

    `before` is called between seeing that the root is empty and claiming it: a crash after it leaves the root to be found empty again.

    WrongStore if it is another's. With an empty catalog that is most likely the store's own root, from before the catalog was lost;
    the answer is the same.
    """
    if check_root(tier, store_id):
        return False
    if before is not None:
        before()
    document = json.dumps({"format": FORMAT, "version": VERSION, "store": store_id}).encode() + b"\n"
    try:
        tier.put_document(STORE_KEY, document, exclusive=True)
    except AlreadyExists as error:  # another node, or another store, was faster
        if not check_root(tier, store_id):
            raise InvalidInput("the identity document came and went", operation="claim root", tier=tier.facts.name) from error
        return False
    return True
