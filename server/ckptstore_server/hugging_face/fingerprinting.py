"""When does an object get the names that others give its bytes (SHA-256, git blob)? At publishing, if it is one of a model, else on demand.

Each object is read once, block by verified block, however many ask; what is found goes into the catalog. Objects are hashed on threads of
their own, since one of 5 GB takes seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from ckptstore.catalog.fingerprints import Fingerprint
from ckptstore.catalog.model import AttemptView, StoredFile
from ckptstore.errors import CkptStoreError
from ckptstore_server.hugging_face.snapshots import LARGE_BYTES
from ckptstore_server.node import Node
from ckptstore_server.replicas import Replicas
from ckptstore_server.verified_blocks import VerifiedBlocks
from ckptstore_tiers.checksums import BLOCK_BYTES, block_length

THREADS = 4
#: How long a publish or a move waits for fingerprints, in seconds: a client gives a request up after two minutes without an answer.
PATIENCE_S = 60.0


def fingerprint_of(content: memoryview) -> Fingerprint:
    """Of a small file, all of which is at hand."""
    git = hashlib.sha1(f"blob {len(content)}\0".encode(), usedforsecurity=False)
    git.update(content)
    return Fingerprint(hashlib.sha256(content).hexdigest(), git.hexdigest())


class Fingerprinter:
    def __init__(self, node: Node, replicas: Replicas) -> None:
        self._node = node
        self._replicas = replicas
        self._folder = node.settings.hugging_face.models
        self._executor = ThreadPoolExecutor(THREADS, "fingerprint")
        self._under_way: dict[str, asyncio.Task[Fingerprint]] = {}
        self._turns: set[asyncio.Task[None]] = set()

    async def before_publish(self, view: AttemptView) -> None:
        """What is about to become a model has its fingerprints when it is seen. What cannot be read now gets them on demand."""
        if view.path.startswith(f"{self._folder}/"):
            files = await self._node.query(lambda: [file.object_id for file in self._node.catalog.attempt_files(view.attempt_id)])
            await self.soon(files)

    async def soon(self, object_ids: Iterable[str]) -> None:
        """Return when they have their fingerprints, or after `PATIENCE_S`: what takes longer goes on behind."""
        turn = asyncio.create_task(self._remarked(list(object_ids)))
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)
        await asyncio.wait({turn}, timeout=PATIENCE_S)

    async def _remarked(self, object_ids: list[str]) -> None:
        """The top of a task."""
        try:
            await self.of(object_ids)
        except CkptStoreError as error:
            self._node.remark("fingerprints", error)

    async def of(self, object_ids: Iterable[str]) -> dict[str, Fingerprint]:
        """Of all these objects; what nobody has computed yet is computed now."""
        wanted = list(object_ids)
        found = await self._node.query(self._node.catalog.fingerprints, wanted)
        missing = [object_id for object_id in dict.fromkeys(wanted) if object_id not in found]
        for object_id, fingerprint in zip(missing, await asyncio.gather(*map(self._once, missing)), strict=True):
            found[object_id] = fingerprint
        return found

    async def _once(self, object_id: str) -> Fingerprint:
        task = self._under_way.get(object_id)
        if task is None:
            task = self._under_way[object_id] = asyncio.create_task(self._node.run(self._executor, self._compute, object_id))
            task.add_done_callback(lambda _: self._under_way.pop(object_id, None))
        return await asyncio.shield(task)

    def _compute(self, object_id: str) -> Fingerprint:
        file = self._node.catalog.object(object_id)
        fingerprint = self._read(file)
        self._node.catalog.set_fingerprint(object_id, fingerprint)
        return fingerprint

    def _read(self, file: StoredFile) -> Fingerprint:
        sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
        is_small = file.size_bytes <= LARGE_BYTES
        with closing(VerifiedBlocks(self._node, self._replicas, file)) as blocks, self._node.scratch.borrow() as scratch:
            for index in range(-(-file.size_bytes // BLOCK_BYTES)):
                view = scratch[: block_length(index, file.size_bytes)]
                blocks.fill(index, view)
                sha256.update(view)
                if is_small:
                    git.update(view)
        return Fingerprint(sha256.hexdigest(), git.hexdigest() if is_small else None)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
