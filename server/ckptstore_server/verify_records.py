"""Do the tiers still say of themselves what the catalog says of them? Commit records read again, and written anew where one is bad.

A record that is lost or wrong hurts nobody until the catalog is lost too; so it has to be looked for. Compared is what a rebuild would
take from it: everything but the node's id, which a rebuild under a new home changes. The lock of the tier's records is held, so that no
record is written for what is being deleted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from ckptstore.catalog.model import Publication, record_key
from ckptstore.errors import ChecksumMismatch, CkptStoreError, InvalidInput, NotFound
from ckptstore.records import Record, read_record
from ckptstore.wire import VerifyLine
from ckptstore_server.node import Node
from ckptstore_server.publish import Publisher
from ckptstore_server.tier_handle import TierHandle

PUBLICATIONS_PER_PAGE = 256


class RecordVerifier:
    def __init__(self, node: Node, publisher: Publisher) -> None:
        self._node = node
        self._publisher = publisher

    async def verify(self, path: str) -> AsyncIterator[VerifyLine]:
        """A line per commit record of every publication at or below `path`."""
        walk = self._publications(path)
        while (publication := await self._node.query(next, walk, None)) is not None:
            for tier in await self._node.query(self._node.catalog.recorded_tiers, publication.publication_id):
                handle = self._node.handle(tier)
                async with self._publisher.record_locks[tier]:
                    line = await self._node.run(self._node.tier_executor(handle), self._check, handle, publication)
                if line is not None:
                    yield line

    def _publications(self, path: str) -> Iterator[Publication]:
        if path != "/":
            try:
                yield self._node.catalog.resolve(path)
            except NotFound:
                pass  # a folder above publications, or a file in one, which has no record of its own
            else:
                return
        after = ""
        try:
            while page := self._node.catalog.list_folder(path, after=after, limit=PUBLICATIONS_PER_PAGE):
                for entry in page:
                    if entry.publication is not None:
                        yield entry.publication
                    elif entry.kind == "folder":
                        yield from self._publications(entry.path)
                after = page[-1].name
        except NotFound:
            return  # removed meanwhile, or a file in a publication

    def _check(self, handle: TierHandle, publication: Publication) -> VerifyLine | None:
        """None if it is deleted, or not whole in the tier any more: then no record is owed there."""
        key = record_key(publication.publication_id)
        try:
            expected = self._node.catalog.record(publication.publication_id, tier=handle.name)
        except (NotFound, InvalidInput):
            return None
        line = VerifyLine(path=publication.path, tier=handle.name, size_bytes=len(expected), record=True)
        try:
            with handle.watched() as tier:
                try:
                    found = tier.get_document(key)
                except NotFound:
                    problem = "its commit record is missing"
                else:
                    problem = _difference(found, expected, key) or ""
                if problem:
                    tier.put_document(key, expected)
        except CkptStoreError as error:
            return line.model_copy(update={"problem": f"its commit record could not be read or mended: {error.why}"})
        return line.model_copy(update={"problem": problem, "repaired": True}) if problem else line


def _difference(found: bytes, expected: bytes, key: str) -> str | None:
    if found == expected:
        return None
    try:
        said = _what_counts(read_record(found, subject=key))
    except (ChecksumMismatch, InvalidInput) as error:
        return f"its commit record is damaged: {error.why}"
    return None if said == _what_counts(read_record(expected, subject=key)) else "its commit record says something else than the catalog"


def _what_counts(record: Record) -> tuple[object, ...]:
    files = tuple(replace(file, node="") for file in record.files())
    references = tuple(replace(reference, file=replace(reference.file, node="")) for reference in record.references())
    return record.header.model_copy(update={"node": ""}), files, references
