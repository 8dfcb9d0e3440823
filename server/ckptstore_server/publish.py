"""Making a checkpoint visible, and leaving its commit record in every durable tier that holds all of it.

Order, and what a crash leaves: (1) the last rank's arrival makes the attempt COMPLETE, for exactly one daemon; a crash here is found at
the next start, and the publish goes on. (2) `checkpoint.json`, and `shards.json` before it where the state is sharded, are stored as
objects of their own. (3) One catalog transaction publishes.
(4) The commit record is written into the tier, durably, and (5) the catalog notes it; only then does `wait(tier)` return. A crash
between (3) and (5) leaves an owed record, which `settle` writes after the restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ckptstore.catalog.model import AttemptState, AttemptView, Kind, NewObject, StoredFile, record_key
from ckptstore.errors import AlreadyExists, CkptStoreError, NotFound, PathConflict, TierFull, TierUnavailable
from ckptstore.failpoints import declare, failpoint
from ckptstore.manifest import build_index
from ckptstore.paths import INDEX_NAME, SHARDS_NAME
from ckptstore.records import sequence_of
from ckptstore_server.judging import Judging
from ckptstore_server.node import Node
from ckptstore_server.sharding import NotWhole, Sharding
from ckptstore_server.tier_handle import TierHandle
from ckptstore_tiers.sources import MemorySource

#: Records that one round writes before it looks again.
RECORDS_PER_ROUND = 64
#: How long a move waits for its records, in seconds.
PATIENCE_S = 10.0
COMPLETE = declare("publish.complete")
BEFORE_CATALOG = declare("publish.before_catalog")
AFTER_CATALOG = declare("publish.after_catalog")
RECORD_WRITTEN = declare("publish.record_written")


class Publisher:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._sharding = Sharding(node)
        self._judging = Judging(node)
        # One writer of records per tier: a record must not be written while the deletion of the same publication is under way.
        self.record_locks = {handle.name: asyncio.Lock() for handle in node.handles}
        self._turns: set[asyncio.Future[None]] = set()
        #: Called with what is about to be published, all of it stored.
        self.before_publish: Callable[[AttemptView], Awaitable[None]] | None = None
        #: Called when it is published, while its records are written.
        self.after_publish: Callable[[], Awaitable[None]] | None = None

    async def arrive(self, attempt_id: str, rank: int) -> None:
        """A rank's bytes are stored. The arrival that completes the attempt publishes it.

        From here on nothing but a conflict may end the attempt: all of it is in a durable tier. Where there is no room for its index,
        it stays COMPLETE, and upkeep publishes it when there is.
        """
        view, completed = await self._node.insist(self._node.catalog.rank_stored, attempt_id, rank, index=INDEX_NAME)
        if not completed:
            self._node.board.tell()
            return
        failpoint(COMPLETE)
        try:
            await self.publish(view)
        except (TierFull, TierUnavailable) as error:
            self._node.remark("publish", error)
            self._node.board.announce()

    async def publish(self, view: AttemptView) -> None:
        """COMPLETE → PUBLISHED, with index and record. Repeating it after a crash at any point is harmless.

        A sharded state whose tensors are not whole is not published: the attempt is aborted, with what is missing as the reason.
        """
        try:
            if view.kind is Kind.CHECKPOINT:
                await self._store_documents(view)
            if self.before_publish is not None:
                await self.before_publish(view)
            failpoint(BEFORE_CATALOG)
            await self._node.insist(self._node.catalog.publish, view.attempt_id, skips=await self._judging.skips(view))
        except (AlreadyExists, PathConflict):
            self._node.board.announce()  # the catalog has aborted the attempt in the same transaction
            return
        except NotWhole as refusal:
            await self._node.insist(self._node.catalog.abort, view.attempt_id, str(refusal))
            self._node.board.announce()
            return
        failpoint(AFTER_CATALOG)
        self._node.timings.reach(view.attempt_id, "published")
        self._node.board.announce()
        await asyncio.gather(self.settle_all(), *(() if self.after_publish is None else (self.after_publish(),)))

    async def _store_documents(self, view: AttemptView) -> None:
        """`shards.json`, where the state is sharded, and `checkpoint.json`, unless they are stored (a crash interrupted the publish)."""
        files = await self._node.insist(lambda: list(self._node.catalog.attempt_files(view.attempt_id)))
        known = {file.name: file for file in files if file.name in (INDEX_NAME, SHARDS_NAME)}
        parts = [file for file in files if file.name not in known]
        for name, build in ((SHARDS_NAME, self._sharding.build_index), (INDEX_NAME, partial(self._build_index, parts=parts))):
            file = known.get(name)
            if (file is not None and file.root) or (data := await self._node.insist(build, view)) is None:
                continue
            if file is None:
                (new_object,) = await self._node.insist(self._node.catalog.add_objects, view.attempt_id, 0, [name])
            else:
                new_object = NewObject(file.object_id, file.name, file.key)
            await self._node.run(self._node.ingest_executor, self._put_document, new_object, data)

    def _build_index(self, view: AttemptView, *, parts: Sequence[StoredFile]) -> bytes:
        return build_index(view, parts, self._refers_to(view.attempt_id))

    def _refers_to(self, attempt_id: str) -> dict[int, list[str]]:
        """The keys of the objects of earlier checkpoints that hold tensors of a rank."""
        found: dict[int, list[str]] = {}
        after = ""
        while page := self._node.catalog.references(attempt_id, after=after):
            for reference in page:
                found.setdefault(reference.rank, []).append(reference.file.key)
            after = page[-1].file.object_id
        return found

    def _put_document(self, new_object: NewObject, data: bytes) -> None:
        last: CkptStoreError | None = None
        for handle in self._node.durable:
            try:
                with handle.watched(writes=True) as tier:
                    digests = tier.put(new_object.key, MemorySource(memoryview(data), stable=True))
                    stored_bytes = tier.stored_bytes(new_object.key, len(data))
                self._node.catalog.object_stored(new_object.object_id, digests, tier=handle.name, stored_bytes=stored_bytes)
                return
            except (TierFull, TierUnavailable) as error:
                last = error
        raise last or TierUnavailable("no durable tier is configured", operation="publish")

    # --- records ---------------------------------------------------------------------------------------------------------------

    async def settle_all(self) -> None:
        await asyncio.gather(*(self.settle(handle) for handle in self._node.durable))

    async def soon(self) -> None:
        """Settle for a moment before a move is acknowledged: a catalog that is lost right after it then does not undo the move. What
        takes longer goes on behind."""
        turn = asyncio.ensure_future(self.settle_all())
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)
        await asyncio.wait({turn}, timeout=PATIENCE_S)

    async def settle(self, handle: TierHandle) -> None:
        """Write the commit records that this node owes in a tier; after each, the tier counts as holding the checkpoint."""
        async with self.record_locks[handle.name]:
            written = True
            while written and (owed := await self._node.query(self._node.catalog.owed_records, handle.name, limit=RECORDS_PER_ROUND)):
                written = False
                for publication_id in owed:
                    try:
                        await self._node.run(self._node.tier_executor(handle), self._write_record, handle, publication_id)
                        written = True
                    except NotFound:
                        continue  # deleted since: what replaced it got its record in this very round
                    except CkptStoreError as error:
                        self._node.remark(f"commit record in {handle.name}", error)
                        return
                    self._node.board.announce()

    def _write_record(self, handle: TierHandle, publication_id: str) -> None:
        record = self._node.catalog.record(publication_id, tier=handle.name)
        with handle.watched(writes=True) as tier:
            tier.put_document(record_key(publication_id), record)
        failpoint(RECORD_WRITTEN)
        self._node.catalog.record_written(publication_id, handle.name, sequence=sequence_of(record))

    # --- what a crash left -----------------------------------------------------------------------------------------------------

    async def resume(self) -> None:
        """At start: publish what was complete, and write the records that were owed."""
        for view in await self._node.query(self._node.catalog.attempts, [AttemptState.COMPLETE]):
            try:
                await self.publish(view)
            except CkptStoreError as error:
                self._node.remark("publish after restart", error)
        await self.settle_all()
