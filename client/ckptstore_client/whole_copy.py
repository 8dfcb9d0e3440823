"""How does an incremental checkpoint's file become one whole file again? `get` writes it so, for those who read it without us.

The file that is stored holds what changed; the copy has a header of all tensors, without the layout, and the bytes of each from the
object that holds them. Every block that is read is verified. The copy is durable when `write_whole` returns; what an error leaves of it
is the caller's to remove.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptstore.layout import LAYOUT_KEY
from ckptstore.safetensors_format import TensorEntry, build_header
from ckptstore_client.files import Tally, new_file, write_at, write_file
from ckptstore_client.rank_file import OpenObject, RankFile
from ckptstore_client.reading import Piece, VerifiedObject
from ckptstore_tiers.private_memory import private_memory
from ckptstore_tiers.sources import address_of

#: Temporary memory, however large the tensors.
CHUNK_BYTES = 64 * 1024 * 1024

Span = tuple[int, int]  # first byte in an object, and how many


def write_whole(reader: VerifiedObject, open_object: OpenObject, target: Path, tally: Tally) -> None:
    """The rank's file with all its tensors into a new file, fsynced; one that has them all is copied as it is."""
    file = RankFile.of(reader, open_object)
    if not file.elsewhere:
        write_file(reader, target, tally)
        return
    keys = sorted(file.header.tensors, key=lambda key: (file.elsewhere.get(key, ""), file.header.tensors[key].start))
    entries, position = [], 0
    for key in keys:
        found = file.header.tensors[key]
        entries.append(TensorEntry(key, found.dtype, found.shape, position, position + found.size_bytes))
        position += found.size_bytes
    head = build_header(entries, {name: text for name, text in file.header.metadata.items() if name != LAYOUT_KEY})
    with new_file(target, len(head) + position) as fd:
        write_at(fd, 0, memoryview(head))
        place = len(head)
        for source, data_start, held in file.homes(keys):  # in the order of `keys`: what comes from one object is in one piece
            for spans in _chunks((data_start + entry.start, entry.size_bytes) for entry in held):
                place += _copy(source, spans, fd, place)
                tally.add(sum(size_bytes for _, size_bytes in spans))
        os.fsync(fd)


def _chunks(spans: Iterator[Span]) -> Iterator[list[Span]]:
    """The spans in order, cut so that each chunk fits the temporary memory."""
    chunk: list[Span] = []
    room = CHUNK_BYTES
    for start, size_bytes in spans:
        while size_bytes:
            part = min(size_bytes, room)
            chunk.append((start, part))
            start, size_bytes, room = start + part, size_bytes - part, room - part
            if not room:
                yield chunk
                chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk


def _copy(source: VerifiedObject, spans: Sequence[Span], fd: int, place: int) -> int:
    size_bytes = sum(size for _, size in spans)
    memory = private_memory(size_bytes)
    pieces, address = [], address_of(memory)
    for start, size in spans:
        pieces.append(Piece(start, start + size, address))
        address += size
    source.fill(pieces)
    write_at(fd, place, memory)
    return size_bytes
