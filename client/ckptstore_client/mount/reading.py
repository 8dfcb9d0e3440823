"""Where do the bytes of a READ come from? From the node's copy, once they are there; from the source itself where there is no copy.

Whole copies are read at once. Of others the source is asked for the blocks that are not known to be there, and each is asked for once. A
copy that can no longer be read (the daemon is another one, the cache gave it up) is replaced by what the source gives for the same
version. Replies are read into a buffer of the thread, which the device copies into the kernel before the thread's next request.
"""

from __future__ import annotations

import errno
import os
import threading

from ckptstore.errors import TierUnavailable
from ckptstore_client.mount.believed import MustWait
from ckptstore_client.mount.handles import OpenFile, OpenFiles
from ckptstore_client.mount.protocol import MAX_READ_BYTES
from ckptstore_client.mount.source import Copy, Source
from ckptstore_client.mount.tensor_ahead import TensorAhead

#: The unit in which copies arrive: the store's block. (Its own module brings numpy with it, a third of what a successor's start costs.)
BLOCK_BYTES = 4 << 20


class Reading:
    def __init__(self, source: Source, files: OpenFiles, lock: threading.Lock) -> None:
        self._source = source
        self._files = files
        self._lock = lock
        self._buffers = threading.local()
        self._ahead = TensorAhead(self._arrive)

    def read(self, file: OpenFile, offset_bytes: int, size_bytes: int, *, may_wait: bool) -> bytes | memoryview:
        size_bytes = min(size_bytes, file.node.size_bytes - offset_bytes)
        if size_bytes <= 0:
            return b""
        copy = self._copy(file, may_wait)
        if not copy.whole and not self._has_arrived(file, offset_bytes, size_bytes):
            if not may_wait:
                raise MustWait((file.node.id, offset_bytes // BLOCK_BYTES))
            copy = self._arrive(file, offset_bytes, size_bytes)
        if copy.fd < 0:
            if not may_wait:
                raise MustWait
            return self._source.read(copy, offset_bytes, size_bytes)
        data = self._from_copy(copy, offset_bytes, size_bytes)
        if not copy.whole:
            self._ahead.touched(file, copy, offset_bytes, data)
        return data

    def _copy(self, file: OpenFile, may_wait: bool) -> Copy:
        """The copy at hand; after a restart of the mount there may be none yet."""
        if file.copy is None:
            if not may_wait:
                raise MustWait
            self._adopt(file, self._source.open(file.node.path, file.node.version))
        assert file.copy is not None
        return file.copy

    def _adopt(self, file: OpenFile, copy: Copy) -> None:
        with self._lock:
            self._files.adopt(file, copy)

    @staticmethod
    def _has_arrived(file: OpenFile, offset_bytes: int, size_bytes: int) -> bool:
        return all(block in file.arrived for block in _blocks(offset_bytes, size_bytes))

    def _arrive(self, file: OpenFile, offset_bytes: int, size_bytes: int) -> Copy:
        """Have these bytes on the node; the copy that has them."""
        copy = self._copy(file, may_wait=True)
        another = self._source.need(copy, offset_bytes, size_bytes) if copy.fd >= 0 else None
        if another is not None:
            self._adopt(file, another)
            copy = another
        if copy.fd >= 0:
            file.arrived.update(_blocks(offset_bytes, size_bytes))
        return copy

    def _from_copy(self, copy: Copy, offset_bytes: int, size_bytes: int) -> memoryview:
        view = self._buffer()[:size_bytes]
        try:
            count = os.preadv(copy.fd, [view], offset_bytes)
        except OSError as error:
            raise TierUnavailable(f"the copy cannot be read: {error.strerror}", operation="read", subject=copy.path) from error
        if count != size_bytes:
            why = f"the copy ends at {offset_bytes + count}"
            raise TierUnavailable(why, operation="read", subject=copy.path) from OSError(errno.EIO, why)
        return view

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._buffers, "view", None)
        if buffer is None:
            buffer = self._buffers.view = memoryview(bytearray(MAX_READ_BYTES))
        return buffer

    def close(self) -> None:
        self._ahead.close()


def _blocks(offset_bytes: int, size_bytes: int) -> range:
    """The blocks that these bytes lie in."""
    return range(offset_bytes // BLOCK_BYTES, -(-(offset_bytes + size_bytes) // BLOCK_BYTES))
