"""What the ranks say of tensors that are spread over them: noted as their files come in, merged when the last has come.

`declare` writes a rank's documents (see `ckptstore.shards` and `ckptstore.plain_leaves`) into the catalog before its file counts as
stored; so whoever makes the attempt complete, on whatever node, finds all of them. `build_index` gives `shards.json`, the same bytes
each time. Digests of plain tensors are of what the segment held when it was handed over.

A plain tensor that ranks have in common, such as all of a model under data parallelism, is stored by the first of them to declare it;
who comes later leaves it out of its file, where that saves enough. The catalog's transactions say who is first, and no rank waits for
another. The first one stores it in any case: so the attempt, which all of them end together, has it, or is never published.

Blocking; executors' threads.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

import xxhash

from ckptstore.catalog.model import AttemptView
from ckptstore.catalog.shard_documents import Document
from ckptstore.errors import InvalidInput
from ckptstore.plain_leaves import Content, Leaves, read_leaves, write_leaves
from ckptstore.shard_merging import merge
from ckptstore.shards import read_plan_text
from ckptstore_server.node import Node
from ckptstore_server.part_check import Declaration

#: What leaving tensors out must save, in bytes and as a part of the file: a file without them is not what lies in memory, so a load of
#: what is left of it comes from the disk.
LEAST_BYTES, LEAST_PART = 1 << 20, 0.25


class NotWhole(InvalidInput):
    """The ranks' files are not, together, the whole state."""


class Sharding:
    def __init__(self, node: Node) -> None:
        self._node = node

    def declare(self, attempt_id: str, rank: int, declared: Declaration, file: memoryview, *, may_leave_out: bool) -> frozenset[str]:
        """The keys of plain tensors that the rank's file is to leave out. May be repeated: then it leaves out nothing."""
        tensors = {
            entry.key: Content(entry.dtype, entry.shape, xxhash.xxh3_128_hexdigest(file[entry.start : entry.end]))
            for entry in declared.tensors
        }
        plan, leaves = _document(declared.plan.encode("utf-8")), Leaves(declared.texts, tensors)
        earlier = self._node.catalog.declare_shards(attempt_id, rank, plan, _document(write_leaves(leaves)))
        there = {tensor for body in earlier for tensor in read_leaves(zlib.decompress(body)).tensors.items()} if may_leave_out else set()
        common = [entry for entry in declared.tensors if (entry.key, tensors[entry.key]) in there]
        if sum(entry.size_bytes for entry in common) < max(LEAST_BYTES, LEAST_PART * len(file)):
            return frozenset()
        left_out = frozenset(entry.key for entry in common)
        self._node.catalog.declare_shards(attempt_id, rank, plan, _document(write_leaves(replace(leaves, left_out=left_out))))
        return left_out

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
