"""How does the metadata of something published change, so that a lost catalog comes back with it?

A publication gets a new sequence number, as by a move, and its commit records become owed again: of several that a rebuild finds, the
highest number counts. Until a record is written anew its tier goes on to count as holding all of the checkpoint, which it does; what a
rebuild would lack is the change. The number of the publish stays beside the new one, so that a change is not told as another publish.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, func, update

from ckptstore import paths
from ckptstore.catalog.core import lock_namespace
from ckptstore.catalog.model import Publication
from ckptstore.catalog.moving import owe_records
from ckptstore.catalog.namespace import Namespace
from ckptstore.catalog.schema import publications
from ckptstore.tag_messages import tagged

_is = publications.c


class Tagging(Namespace):
    def tag(self, path: str, values: Mapping[str, Any], remove: Collection[str]) -> Publication:
        """Set and remove names in the metadata of what is published at `path`. NotFound; InvalidInput if it would be too much."""
        paths.check_path(path, operation="tag")

        def work(tx: Connection) -> Publication:
            sequence = lock_namespace(tx)
            found = self._published_at(tx, path)
            text = tagged(found.metadata, values, remove, path)
            if text == found.metadata:
                return found
            told = func.coalesce(_is.published_sequence, _is.sequence)
            changed = {"metadata": text, "sequence": sequence, "published_sequence": told}
            tx.execute(update(publications).where(_is.publication_id == found.publication_id).values(**changed))
            owe_records(tx, self.node, [found.publication_id])
            return self._published_at(tx, path)

        return self._db.write("tag", work, path)
