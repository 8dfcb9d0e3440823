"""Is everything that is said to be stored really there? Every replica read again against its checksums, and mended where one is bad.

So are the commit records (see `verify_records`), after the replicas that they speak of.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from ckptstore.catalog.model import StoredFile
from ckptstore.errors import CkptStoreError, NotFound
from ckptstore.paths import check_folder, join
from ckptstore.wire import Damage, VerifyLine
from ckptstore_server.node import Node
from ckptstore_server.publish import Publisher
from ckptstore_server.replicas import MEMORY, Replicas
from ckptstore_server.verify_records import RecordVerifier

FILES_PER_PAGE = 256


class Verifier:
    def __init__(self, node: Node, replicas: Replicas, publisher: Publisher) -> None:
        self._node = node
        self._replicas = replicas
        self._records = RecordVerifier(node, publisher)
        self._repairs: set[asyncio.Task[None]] = set()

    async def verify(self, path: str) -> AsyncIterator[VerifyLine]:
        """A line per replica of every file at or below `path` and of every object that it refers to, then one per commit record.

        A last one has the sums. What lies in another node's own tiers only that node can read.
        """
        replicas = records = problems = elsewhere = 0
        walk = self._walk(check_folder(path, operation="verify"), set())
        while (found := await self._node.query(next, walk, None)) is not None:
            file_path, file = found
            lines, out_of_reach = await self._node.run(self._node.upkeep_executor, self._check_file, file_path, file)
            elsewhere += out_of_reach
            for line in lines:
                replicas += 1
                problems += line.problem is not None
                yield line
        async for line in self._records.verify(path):
            records += 1
            problems += line.problem is not None
            yield line
        yield VerifyLine(done=True, replicas=replicas, records=records, problems=problems, elsewhere=elsewhere)

    def _walk(self, path: str, referred: set[str]) -> Iterator[tuple[str, StoredFile]]:
        """Every file below a path, a page at a time; what several of them refer to comes once (`referred` are ids)."""
        if path != "/":
            try:
                publication = self._node.catalog.resolve(path)
            except NotFound:
                try:
                    _, file = self._node.catalog.file(path)
                except NotFound:
                    pass
                else:
                    yield path, file
                    return
            else:
                yield from self._files_of(publication.publication_id, publication.path)
                yield from self._referred_by(publication.publication_id, referred)
                return
        after = ""
        while page := self._node.catalog.list_folder(path, after=after, limit=FILES_PER_PAGE):
            for entry in page:
                yield from self._walk(entry.path, referred)
            after = page[-1].name

    def _files_of(self, publication_id: str, path: str) -> Iterator[tuple[str, StoredFile]]:
        after: str | None = None
        while True:
            page = self._node.catalog.files(publication_id, after=after or "", limit=FILES_PER_PAGE, with_blocks=True)
            for file in page:
                yield (join(path, file.name) if file.name else path), file
            if len(page) < FILES_PER_PAGE:
                return
            after = page[-1].name

    def _referred_by(self, publication_id: str, referred: set[str]) -> Iterator[tuple[str, StoredFile]]:
        after = ""
        while page := self._node.catalog.references(publication_id, after=after, limit=FILES_PER_PAGE, with_blocks=True):
            for reference in page:
                if reference.file.object_id not in referred:
                    referred.add(reference.file.object_id)
                    yield join(reference.path, reference.file.name), reference.file
            after = page[-1].file.object_id

    def _check_file(self, path: str, file: StoredFile) -> tuple[list[VerifyLine], int]:
        """A line for each replica that this node can read; how many there are that it cannot."""
        lines = []
        everywhere = self._node.catalog.replicas(file.object_id)
        replicas = [replica for replica in everywhere if replica.node in ("", self._node.node_id)]
        tiers, damaged = [replica.tier for replica in replicas], {replica.tier: replica for replica in replicas if replica.damaged}
        if self._node.pool.find(file.object_id) is not None:
            tiers.insert(0, MEMORY)
        for tier in tiers:
            line = VerifyLine(path=path, tier=tier, size_bytes=file.size_bytes)
            try:
                problem = self._replicas.check(file, tier)
            except CkptStoreError as error:
                lines.append(line.model_copy(update={"problem": f"it could not be read: {error.why}"}))
                continue
            if problem is None:
                if tier in damaged:  # it was damaged on the way, not where it lies
                    self._node.catalog.add_replica(file.object_id, tier, stored_bytes=damaged[tier].stored_bytes)
                lines.append(line)
                continue
            self._replicas.damaged(file, tier, problem)
            repaired = tier == MEMORY or self._replicas.repair(file, tier)
            lines.append(line.model_copy(update={"problem": problem, "repaired": repaired}))
        return lines, len(everywhere) - len(replicas)

    async def reported(self, object_id: str, damage: Damage) -> None:
        """A reader's report: believed only if this daemon sees it too, since a client may be broken itself."""
        file = await self._node.query(self._node.catalog.object, object_id)
        if damage.tier != MEMORY:
            self._node.handle(damage.tier)
        if await self._node.run(self._node.upkeep_executor, self._replicas.check_block, file, damage.tier, damage.block):
            return
        why = f"a reader found block {damage.block} damaged"
        await self._node.run(self._node.upkeep_executor, self._replicas.damaged, file, damage.tier, why)
        if damage.tier != MEMORY:
            task = asyncio.create_task(self._repair(file, damage.tier), name=f"repair {file.key} in {damage.tier}")
            self._repairs.add(task)
            task.add_done_callback(self._repairs.discard)

    async def _repair(self, file: StoredFile, tier: str) -> None:
        """The top of a repair task."""
        try:
            await self._node.run(self._node.upkeep_executor, self._replicas.repair, file, tier)
        except CkptStoreError as error:
            self._node.remark(f"repair in {tier}", error)
        self._node.board.announce()
