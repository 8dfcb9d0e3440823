"""How are some blocks of an object read that lies far away? Out of the node's cached copy of it, into which the daemon fetches just these.

The descriptor is that of the copy's file; a block is asked for before it is read, and the answer waits until it is there. Whoever else on
this node wants the same block finds it. Where the copy gives way meanwhile, or cannot be kept, the daemon's stream is the next way.
Blocks are verified as those of any other replica are.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckptstore.errors import CkptStoreError, TierUnavailable
from ckptstore_client.mount.daemon_source import DaemonSource
from ckptstore_client.mount.source import Copy
from ckptstore_client.replicas import PART, OpenFile


class PartFile(OpenFile):
    """Owns the copy's descriptor."""

    def __init__(self, source: DaemonSource, copy: Copy) -> None:
        super().__init__(copy.fd, PART, size_bytes=copy.size_bytes)
        self._source = source
        self._copy = copy
        super().use_cache()

    def use_cache(self, use: bool = True) -> None:
        """Always: the daemon has just written what is read, and a direct read would wait for the disk to have it."""

    def map(self) -> memoryview:
        raise OSError("only parts of it are here")

    def read(self, offset: int, views: Sequence[memoryview], *, again: bool) -> None:
        wanted_bytes = min(sum(map(len, views)), self.size_bytes - offset)
        if not self._copy.whole:
            try:
                another = self._source.need(self._copy, offset, wanted_bytes, exact=True)
            except CkptStoreError as error:
                raise TierUnavailable(error.why, operation="read", tier=self.tier) from error
            if another is not None:
                another.close()
                raise TierUnavailable("the node's copy gave way to others", operation="read", tier=self.tier)
        super().read(offset, views, again=again)
