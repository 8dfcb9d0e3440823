"""How is a compressed object read? Like any other: ranges of its content, each of which costs the frames of the blocks it touches.

What a file is, it says itself, at its end. Only its length can tell a compressed file from a plain one that merely looks like one (a
compressed file that somebody put as it is): it is plain if, and only if, it is as long as the catalog says that the content is.

Several threads may read at once. Block digests are the caller's to check; what cannot be decoded is ChecksumMismatch.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckptstore.errors import ChecksumMismatch, InvalidInput, TierUnavailable
from ckptstore_tiers.checksums import BLOCK_BYTES, block_length
from ckptstore_tiers.codecs_format import FileFormat, FrameTable, MalformedFile, NewerFormat
from ckptstore_tiers.float_file import FloatFormat
from ckptstore_tiers.interface import ObjectReader
from ckptstore_tiers.private_copy import copy_bytes
from ckptstore_tiers.scratch import ScratchPool
from ckptstore_tiers.zstd_seekable import ZstdFormat

ZSTD, FLOAT = ZstdFormat(), FloatFormat()
FORMATS: Sequence[FileFormat] = (ZSTD, FLOAT)
LARGEST_FRAME_BYTES = max(known.largest_frame_bytes for known in FORMATS)
#: Read at once from a file's end: the table of an object of 32 GiB and more, so that opening one costs one request.
TAIL_BYTES = 64 * 1024


class Tail:
    """The end of a stored file, read once; what lies before it is read when asked for."""

    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader
        self._start = max(0, reader.size_bytes - TAIL_BYTES)
        self._data = self._fetch(self._start, reader.size_bytes - self._start)

    def read(self, offset: int, length: int) -> bytes:
        if offset >= self._start:
            return self._data[offset - self._start : offset - self._start + length]
        return self._fetch(offset, length)

    def _fetch(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        self._reader.read_into(offset, memoryview(data))
        return bytes(data)

    def format(self) -> FileFormat | None:
        """What the file says that it is; None if it says nothing."""
        return next((known for known in FORMATS if known.recognises(self._data)), None)


def open_content(
    reader: ObjectReader, size_bytes: int | None, *, key: str, tier: str, frames: ScratchPool, blocks: ScratchPool
) -> ObjectReader:
    """A reader of the content of what `reader` has open, whichever codec it was stored with; it owns `reader`.

    `size_bytes` is what the catalog says of the content. Without it, a file that looks compressed is taken for one. ChecksumMismatch
    if the file is neither that content nor a compressed form of it; TierUnavailable if a later release must read it.
    """
    if reader.size_bytes == size_bytes:
        return reader
    tail = Tail(reader)
    found = tail.format()
    if found is None:
        if size_bytes is None:
            return reader
        raise damaged(f"it has {reader.size_bytes} bytes, {size_bytes} were saved", operation="open", key=key, tier=tier)
    try:
        table = found.read_table(reader.size_bytes, tail.read)
    except NewerFormat as error:
        # Not damage, which would have it replaced: another replica is read, or a later release reads this one.
        raise TierUnavailable(str(error), operation="open", subject=key, tier=tier, hint="upgrade ckptstore on this node") from error
    except MalformedFile as error:
        if size_bytes is None:
            return reader
        raise damaged(f"its {found.name} file: {error}", operation="open", key=key, tier=tier) from error
    if size_bytes is not None and table.size_bytes != size_bytes:
        why = f"its {found.name} file says that it holds {table.size_bytes} bytes, {size_bytes} were saved"
        raise damaged(why, operation="open", key=key, tier=tier)
    return DecodingReader(reader, found, table, key=key, tier=tier, frames=frames, blocks=blocks)


def damaged(why: str, *, operation: str, key: str, tier: str) -> ChecksumMismatch:
    return ChecksumMismatch(f"what is stored is damaged: {why}", operation=operation, subject=key, tier=tier)


class DecodingReader:
    """An open compressed object. The pools are the tier's: buffers of a frame and of a block."""

    def __init__(
        self, reader: ObjectReader, format: FileFormat, table: FrameTable, *, key: str, tier: str, frames: ScratchPool, blocks: ScratchPool
    ) -> None:
        self._reader = reader
        self._format = format
        self._table = table
        self._key = key
        self._tier = tier
        self._frames = frames
        self._blocks = blocks

    @property
    def size_bytes(self) -> int:
        return self._table.size_bytes

    @property
    def codec(self) -> str:
        return self._format.name

    def read_into(self, offset: int, buffer: memoryview) -> None:
        view = memoryview(buffer).cast("B")
        end = offset + len(view)
        if offset < 0:
            raise InvalidInput(f"there is no offset {offset}", operation="read", subject=self._key, tier=self._tier)
        if end > self.size_bytes:
            why = f"the object ends at byte {self.size_bytes}; bytes {offset} to {end} were asked for"
            raise ChecksumMismatch(why, operation="read", subject=self._key, tier=self._tier)
        position = offset
        while position < end:
            index, skip = divmod(position, BLOCK_BYTES)
            length = block_length(index, self.size_bytes)
            part = view[position - offset : min(position - skip + length, end) - offset]
            if len(part) == length:
                self._decode(index, part)
            else:
                with self._blocks.borrow() as scratch:
                    self._decode(index, scratch[:length])
                    copy_bytes(scratch[skip : skip + len(part)], part)
            position += len(part)

    def _decode(self, index: int, block: memoryview) -> None:
        start, length = self._table.frame(index)
        with self._frames.borrow() as memory:
            frame = memory[:length]
            self._reader.read_into(start, frame)
            try:
                self._format.decode(frame, block)
            except MalformedFile as error:
                raise damaged(f"block {index}: {error}", operation="read", key=self._key, tier=self._tier) from error

    def fileno(self) -> int | None:
        """None: the file holds other bytes than the object."""
        return None

    def close(self) -> None:
        self._reader.close()
