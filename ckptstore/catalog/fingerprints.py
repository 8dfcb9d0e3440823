"""What do others call an object's bytes? Its SHA-256, and as a git blob: names that caches made elsewhere go by.

They follow from the content, so that it does not matter when they are computed, and computed again they are the same: a rebuilt catalog
has none. An object has them from its publishing on if it is published where models are served, else from when somebody asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, update

from ckptstore.catalog.core import Core, chunks
from ckptstore.catalog.schema import objects


@dataclass(frozen=True)
class Fingerprint:
    sha256: str  # 64 hexadecimal digits
    git_sha1: str | None  # 40: SHA-1 of b"blob <size>\0" and the content; None for what nobody keeps in git


class Fingerprints(Core):
    def fingerprints(self, object_ids: Iterable[str]) -> dict[str, Fingerprint]:
        """Of those objects that have one."""
        object_ids = list(object_ids)

        def work(tx: Connection) -> dict[str, Fingerprint]:
            found: dict[str, Fingerprint] = {}
            for ids in chunks(object_ids):
                query = select(objects.c.object_id, objects.c.sha256, objects.c.git_sha1)
                for row in tx.execute(query.where(objects.c.object_id.in_(ids), objects.c.sha256.is_not(None))):
                    found[row.object_id] = Fingerprint(row.sha256, row.git_sha1)
            return found

        return self._db.read("look up fingerprints", work)

    def set_fingerprint(self, object_id: str, fingerprint: Fingerprint) -> None:
        """Of an object that is known; of another one, nothing."""
        self.set_fingerprints({object_id: fingerprint})

    def set_fingerprints(self, found: Mapping[str, Fingerprint]) -> None:
        """The same for many, in one transaction."""
        rows = [{"id": object_id, "sha256_now": one.sha256, "git_now": one.git_sha1} for object_id, one in found.items()]
        known = update(objects).where(objects.c.object_id == bindparam("id"))
        known = known.values(sha256=bindparam("sha256_now"), git_sha1=bindparam("git_now"))
        self._db.write("note fingerprints", lambda tx: tx.execute(known, rows))
