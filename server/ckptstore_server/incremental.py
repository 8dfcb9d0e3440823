"""What of a segment is stored already, and what is left to write?

An incremental save is compared, tensor by tensor, with the last checkpoint of its folder and rank that has digests; what that one holds,
or refers to, is referred to, and the rest becomes the object. The comparison is by size and digest alone, so a renamed tensor is found
too. Nothing here may make a save fail that would succeed in full: without a usable base, everything is written.

    1. One reading of the segment, from private copies, gives each tensor's digest and those of the whole file's blocks.
    2. The objects that are to be referred to are pinned, in one transaction; those that cannot be are written again.
    3. The new file is gathered once for its block digests, and its tensors must have those of step 1: else the client wrote late.
    4. The put is held to these digests: what was compared, what was hashed and what is stored are the same bytes.

A crash after step 2 leaves an attempt without its memory, which the next start aborts, and the pins with it. The segment stays in memory
as the whole file that the client made, under an id of its own (`WholeSegments`), so that a load on this node still is one read of it.
Blocking; executors' threads.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ckptstore.catalog.model import NewObject, StoredFile
from ckptstore.errors import ChecksumMismatch, CkptStoreError, InvalidInput, NotFound
from ckptstore.failpoints import declare, failpoint
from ckptstore.layout import LAYOUT_KEY, Elsewhere, Layout, read_layout, write_layout
from ckptstore.safetensors_format import MAX_HEADER_BYTES, PREFIX_BYTES, Header, header_size_bytes, parse_header
from ckptstore_server.node import Node
from ckptstore_server.part_check import CheckedHeader
from ckptstore_server.partial_files import PartialFile, in_order, moved
from ckptstore_server.replicas import Replicas, digests_of
from ckptstore_server.tensor_digests import FileDigests, digest_file
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests, block_length
from ckptstore_tiers.gathered_source import GatheredSource
from ckptstore_tiers.interface import ObjectReader

#: Tensors below this are written again: to name one elsewhere costs the header about as much, and a load one more read.
SMALLEST_REFERENCE_BYTES = 512
#: Objects that one file may refer to: a load opens each of them. The least used ones are written again.
MAX_REFERRED_OBJECTS = 64
#: Checkpoints that are looked at for one with digests: saves that are not incremental have none.
BASES_LOOKED_AT = 4
#: Layouts kept in memory: those of the last saves of as many ranks.
KEPT_BASES = 16
PINNED = declare("ingest.after_refer")


@dataclass(frozen=True)
class Lineage:
    """Whose earlier checkpoints a save may refer to: those of its folder, of the same rank."""

    path: str
    rank: int


@dataclass(frozen=True)
class Increment:
    """What is left to write: `source`, which must have these `digests`. `whole` are those of the segment."""

    source: GatheredSource
    digests: BlockDigests
    whole: BlockDigests
    base: _Base


@dataclass(frozen=True)
class _Base:
    """A stored file with digests: where the bytes of its rank's tensors are, by size and digest."""

    found: dict[tuple[int, str], list[tuple[str, int]]]  # object id, first byte there

    @classmethod
    def of(cls, object_id: str, header: Header, layout: Layout) -> _Base:
        found: dict[tuple[int, str], list[tuple[str, int]]] = {}
        for item in layout.elsewhere.values():
            found.setdefault((item.entry.size_bytes, item.digest), []).append((item.object_id, item.entry.start))
        for key, entry in header.tensors.items():
            found.setdefault((entry.size_bytes, layout.own[key]), []).append((object_id, header.data_start + entry.start))
        return cls(found)

    def match(self, header: Header, digests: Mapping[str, str]) -> dict[str, tuple[str, int]]:
        """Where the bytes of a new file's tensors are. Each place is given once: of tensors that are equal by chance (zeros of one shape)
        as many are found as were there before, and a reader never finds two in one place."""
        free = {content: iter(places) for content, places in self.found.items()}
        matched: dict[str, tuple[str, int]] = {}
        for key, entry in header.tensors.items():
            places = free.get((entry.size_bytes, digests[key]), iter(()))
            if entry.size_bytes >= SMALLEST_REFERENCE_BYTES and (place := next(places, None)) is not None:
                matched[key] = place
        return matched


class Increments:
    def __init__(self, node: Node, replicas: Replicas) -> None:
        self._node = node
        self._replicas = replicas
        self._bases: OrderedDict[str, _Base | None] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, attempt_id: str, new: NewObject, lineage: Lineage, view: memoryview, checked: CheckedHeader) -> Increment | None:
        """What is to be stored instead of the segment in `view`; None where only the whole segment will do.

        AttemptAborted if the attempt has ended, InvalidInput if the segment changed meanwhile.
        """
        header = checked.header
        entries = in_order(header)
        with self._node.scratch.borrow() as scratch:
            whole = digest_file(GatheredSource([checked.data, view[header.data_start :]]), header.data_start, entries, scratch)
        elsewhere = self._refer(attempt_id, lineage, header, whole)
        failpoint(PINNED)
        own = [entry for entry in entries if entry.key not in elsewhere]
        layout = Layout({entry.key: whole.tensors[entry.key] for entry in own}, elsewhere)
        try:
            file = PartialFile.of(own, header.metadata | {LAYOUT_KEY: write_layout(layout)}, view[header.data_start :])
        except InvalidInput:
            return None  # its header would be longer than readers accept
        with self._node.scratch.borrow() as scratch:
            stored = digest_file(file.source, file.header.data_start, list(file.header.tensors.values()), scratch)
        if stored.tensors != layout.own:
            raise InvalidInput("a tensor changed while it was stored", operation="save", subject=new.name, hint="the client wrote late")
        return Increment(file.source, stored.blocks, whole.blocks, _Base.of(new.object_id, file.header, layout))

    def stored(self, object_id: str, increment: Increment) -> None:
        """Its object is stored: the next save is compared with it without reading it."""
        self._keep(object_id, increment.base)

    # --- what is there already -------------------------------------------------------------------------------------------------

    def _refer(self, attempt_id: str, lineage: Lineage, header: Header, whole: FileDigests) -> dict[str, Elsewhere]:
        base = self._base(lineage)
        tier = next((handle.name for handle in self._node.durable if handle.state != "down"), None)
        if base is None or tier is None:
            return {}
        matched = base.match(header, whole.tensors)
        used: Counter[str] = Counter()
        for key, (object_id, _) in matched.items():
            used[object_id] += header.tensors[key].size_bytes
        most = dict(used.most_common(MAX_REFERRED_OBJECTS))
        pinned = self._node.catalog.refer(attempt_id, lineage.rank, most, tier=tier) if most else set()
        return {
            key: Elsewhere(moved(header.tensors[key], start), whole.tensors[key], object_id)
            for key, (object_id, start) in matched.items()
            if object_id in pinned
        }

    def _base(self, lineage: Lineage) -> _Base | None:
        """The newest checkpoint with digests that can be read."""
        for file in self._node.catalog.bases(lineage.path, lineage.rank, limit=BASES_LOOKED_AT):
            with self._lock:
                known, base = file.object_id in self._bases, self._bases.get(file.object_id)
            if not known:
                try:
                    base = self._read(file)
                except CkptStoreError as error:
                    self._node.remark("read base of incremental save", error)
                    continue
                self._keep(file.object_id, base)
            if base is not None:
                return base
        return None

    def _keep(self, object_id: str, base: _Base | None) -> None:
        with self._lock:
            self._bases[object_id] = base
            self._bases.move_to_end(object_id)
            while len(self._bases) > KEPT_BASES:
                self._bases.popitem(last=False)

    def _read(self, file: StoredFile) -> _Base | None:
        """A stored file's header, verified; None if it has no digests."""
        last: CkptStoreError | None = None
        for tier in self._replicas.sources(file):
            try:
                with self._replicas.reader(file, tier) as reader, self._node.scratch.borrow() as scratch:
                    head = b"".join(_head_blocks(file, tier, reader, scratch))
                header = parse_header(head, file.size_bytes)
                layout = read_layout(header)
                return None if layout is None else _Base.of(file.object_id, header, layout)
            except (ChecksumMismatch, NotFound) as error:
                last = error
                self._replicas.damaged(file, tier, error.why)  # and so it is not referred to, and repaired
            except CkptStoreError as error:
                last = error
        raise last or CkptStoreError("it has no replica", operation="read base", subject=file.key)


def _head_blocks(file: StoredFile, tier: str, reader: ObjectReader, scratch: memoryview) -> Iterator[bytes]:
    """The blocks that hold a file's header."""
    digests, index, end = digests_of(file), 0, PREFIX_BYTES
    while index * BLOCK_BYTES < end:
        view = scratch[: block_length(index, file.size_bytes)]
        reader.read_into(index * BLOCK_BYTES, view)
        digests.check(index, view, operation="read base", subject=file.key, tier=tier)
        if index == 0:
            end = min(header_size_bytes(view[:PREFIX_BYTES], file.size_bytes), MAX_HEADER_BYTES)
        yield bytes(view)
        index += 1
