"""What the ranks say of tensors that are spread over them: noted as their files come in, merged when the last has come.

`declare` writes a rank's documents (see `ckptstore.shards` and `ckptstore.plain_leaves`) into the catalog before its file counts as
stored; so whoever makes the attempt complete, on whatever node, finds all of them. `build_index` gives `shards.json`, the same bytes
each time. Digests of plain tensors are of what the segment held when it was handed over.

Blocking; executors' threads.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import xxhash

from ckptstore.catalog.model import AttemptView
from ckptstore.catalog.shard_documents import Document
from ckptstore.errors import InvalidInput
from ckptstore.plain_leaves import write_leaves
from ckptstore.shard_merging import merge
from ckptstore.shards import read_plan_text
from ckptstore_server.node import Node
from ckptstore_server.part_check import Declaration


class NotWhole(InvalidInput):
    """The ranks' files are not, together, the whole state."""


class Sharding:
    def __init__(self, node: Node) -> None:
        self._node = node

    def declare(self, attempt_id: str, rank: int, declared: Declaration, file: memoryview) -> None:
        tensors = {entry.key: (entry, xxhash.xxh3_128_hexdigest(file[entry.start : entry.end])) for entry in declared.tensors}
        leaves = write_leaves(declared.texts, tensors)
        self._node.catalog.declare_shards(attempt_id, rank, _document(declared.plan.encode("utf-8")), _document(leaves))

    def build_index(self, view: AttemptView) -> bytes | None:
        """None where no rank's state is sharded. NotWhole names what is missing, or there twice."""
        ranks = self._node.catalog.rank_documents(view.attempt_id)
        if not ranks:
            return None
        bodies = self._node.catalog.shard_documents(view.attempt_id)
        plans = {digest: read_plan_text(_text(bodies, digest)) for digest in {rank.plan for rank in ranks}}
        leaves = {digest: _text(bodies, digest) for digest in {rank.leaves for rank in ranks}}
        try:
            return merge(ranks, view.world_size, plans, leaves)
        except InvalidInput as error:
            raise NotWhole(error.why, operation="publish", subject=error.subject, hint=error.hint) from error


def _document(text: bytes) -> Document:
    return Document(xxhash.xxh3_128_hexdigest(text), zlib.compress(text, 1))


def _text(bodies: Mapping[str, bytes], digest: str) -> bytes:
    return zlib.decompress(bodies[digest])
