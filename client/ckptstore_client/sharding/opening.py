"""Is a checkpoint's state spread over ranks, and where does it say how? Opens `shards.json`, and keeps the last few.

An index belongs to an object, which never changes, so a kept one is never old. Thread-safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput
from ckptstore.manifest import part_file_name
from ckptstore.paths import SHARDS_NAME
from ckptstore.shards import Piece as ShardPiece
from ckptstore.shards import ShardTable, read_index, written_boxes
from ckptstore.wire import FileInfo, PublicationInfo
from ckptstore_client.process_group import initialised
from ckptstore_client.rank_file import OpenObject, RankFile
from ckptstore_client.reading import Piece, VerifiedObject
from ckptstore_client.sharding.loading import PerRanks, ShardedCheckpoint, Share
from ckptstore_client.sharding.slices import Extent
from ckptstore_client.sharding.spreading import dtensor_type
from ckptstore_tiers.private_memory import private_memory
from ckptstore_tiers.sources import address_of

_KEPT = 4


def is_sharded(publication: PublicationInfo) -> bool:
    """A checkpoint has a file for each rank and `checkpoint.json`; one more is `shards.json`."""
    return publication.kind == "checkpoint" and publication.file_count > publication.world_size + 1


def holds_dtensors(state: Any) -> bool:
    if dtensor_type() is None:
        return False
    if isinstance(state, dict):
        return any(map(holds_dtensors, state.values()))
    if isinstance(state, list | tuple):
        return any(map(holds_dtensors, state))
    return type(state) is dtensor_type()


def share_of(
    publication: PublicationInfo,
    rank: int | None,
    shards: Mapping[str, Extent] | None,
    per_rank: PerRanks,
) -> Share:
    """What this process asks for. It is one of the saved ranks if `rank` says so, or if it is one of as many."""
    if rank is None:
        distributed = initialised()
        world_size, mine = (1, 0) if distributed is None else (distributed.get_world_size(), distributed.get_rank())
        rank = mine if world_size == publication.world_size else None
    elif type(rank) is not int or not 0 <= rank < publication.world_size:
        why = f"rank {rank} is outside the {publication.world_size} ranks that saved it"
        raise InvalidInput(why, operation="load", subject=publication.path)
    return Share(rank, dict(shards or {}), per_rank)


class Indexes:
    """The indexes that were read last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, ShardTable] = OrderedDict()

    def open(
        self,
        publication: PublicationInfo,
        file: Callable[[str], FileInfo],
        open_file: Callable[[FileInfo], VerifiedObject],
        open_object: OpenObject,
        *,
        part_of: int | None = None,
    ) -> ShardedCheckpoint:
        """The checkpoint, open for reading. `file` gives one of its files by name. One that a single rank saved is spread over that one.

        Of one whose ranks saved states of their own: that of the rank `part_of`.
        """
        world_size = publication.world_size
        if is_sharded(publication):
            index = self._index(file(SHARDS_NAME), open_file)
        elif world_size == 1 or part_of is not None:
            rank = part_of or 0
            index = _of_one_rank(file(part_file_name(rank, world_size)), rank, world_size, open_file, open_object)
        else:
            why = f"{world_size} ranks saved parts of their own, and nothing says that they make a whole"
            raise InvalidInput(why, operation="load", subject=publication.path, hint="load the parts one by one, with rank=k")
        if index.world_size != world_size:
            why = f"shards.json is of {index.world_size} ranks, the checkpoint of {world_size}"
            raise InvalidInput(why, operation="load", subject=publication.path)
        return ShardedCheckpoint(index, lambda rank: open_file(file(part_file_name(rank, world_size))), open_object)

    def _index(self, file: FileInfo, open_file: Callable[[FileInfo], VerifiedObject]) -> ShardTable:
        with self._lock:
            known = self._known.get(file.object_id)
        if known is None:
            with open_file(file) as reader:
                known = read_index(_content(reader))
            with self._lock:
                self._known[file.object_id] = known
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        return known


def _of_one_rank(
    file: FileInfo, rank: int, world_size: int, open_file: Callable[[FileInfo], VerifiedObject], open_object: OpenObject
) -> ShardTable:
    with open_file(file) as reader:
        header = RankFile.of(reader, open_object).header
    whole = {
        key: [entry.dtype, list(entry.shape), written_boxes([ShardPiece(rank, Box.whole(entry.shape), key)])]
        for key, entry in header.tensors.items()
    }
    return ShardTable([], whole, world_size=world_size, trees=[rank])


def _content(reader: VerifiedObject) -> memoryview:
    memory = private_memory(reader.file.size_bytes)
    reader.fill([Piece(0, len(memory), address_of(memory))])
    return memory
