"""How are an object's blocks read for others: from the nearest replica, each verified against the catalog's checksum before it is given?

A replica that turns out bad or gone is reported, and the next one taken in the middle of the object. Only when no good copy of a block is
left within reach does reading fail. One thread at a time; blocking.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress

from ckptstore.catalog.model import StoredFile
from ckptstore.errors import ChecksumMismatch, CkptStoreError, NotFound, TierUnavailable
from ckptstore_server.arriving import ArrivingReader
from ckptstore_server.node import Node
from ckptstore_server.replicas import Replicas, digests_of
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.interface import ObjectReader


class VerifiedBlocks:
    """Holds the replica that it reads from open, until `close`."""

    def __init__(self, node: Node, replicas: Replicas, file: StoredFile) -> None:
        self.file = file
        self._node = node
        self._replicas = replicas
        self._digests = digests_of(file)
        self._stack = ExitStack()
        self._reader: tuple[str, ObjectReader] | None = None
        self._down: TierUnavailable | None = None  # the last tier that did not answer

    def fill(self, first_block: int, view: memoryview) -> None:
        """Fill `view` with whole blocks from `first_block` on, from the reader at hand or the next replica.

        ChecksumMismatch if no good replica is left, TierUnavailable if one may be where nobody answers.
        """
        bad: dict[str, CkptStoreError] = {}  # by tier
        while True:
            opened = self._reader or self._open_next(bad)
            if opened is None:
                raise self._none_left(bad)
            tier, reader = opened
            try:
                reader.read_into(first_block * BLOCK_BYTES, view)
                for start in range(0, len(view), BLOCK_BYTES):
                    block = view[start : start + BLOCK_BYTES]
                    self._digests.check(first_block + start // BLOCK_BYTES, block, operation="read", subject=self.file.key, tier=tier)
                return
            except (ChecksumMismatch, NotFound) as error:
                bad[tier] = error
                self._replicas.damaged(self.file, tier, error.why)
            except TierUnavailable as error:
                bad[tier] = error
                if not isinstance(reader, ArrivingReader):  # a recall that failed tells nothing of its tier: the replicas themselves do
                    self._down = error
            self._reader = None

    @property
    def tier(self) -> str | None:
        """Whose replica is open."""
        return self._reader[0] if self._reader is not None else None

    def close(self) -> None:
        self._stack.close()
        self._reader = None

    def _open_next(self, bad: dict[str, CkptStoreError]) -> tuple[str, ObjectReader] | None:
        arriving = self._replicas.arrivals.find(self.file.object_id)
        if arriving is not None and arriving.tier not in bad:
            with suppress(NotFound):  # it has arrived meanwhile, and is recorded
                self._reader = arriving.tier, self._stack.enter_context(closing(arriving.reader()))
                return self._reader
        for tier in self._replicas.sources(self.file):
            if tier in bad:
                continue
            try:
                self._reader = tier, self._stack.enter_context(self._replicas.reader(self.file, tier))
                return self._reader
            except NotFound as error:
                bad[tier] = error
                self._replicas.missing(self.file, tier)
            except ChecksumMismatch as error:  # of another length, or no file of a codec's
                bad[tier] = error
                self._replicas.damaged(self.file, tier, error.why)
            except TierUnavailable as error:
                bad[tier] = error
                self._down = error
        return None

    def _none_left(self, bad: dict[str, CkptStoreError]) -> CkptStoreError:
        """Why the block cannot be had. A good copy that is only out of reach, in a tier that is down or on another node, is not damage."""
        if self._down is not None:
            return self._down
        places = {self._node.node_id, ""}
        away = [r for r in self._node.catalog.replicas(self.file.object_id) if not r.damaged and r.node not in places]
        if away:
            return TierUnavailable(
                f"only node {away[0].node} has it so far",
                operation="read",
                subject=self.file.key,
                tier=away[0].tier,
                hint="load it there, or wait until a shared tier holds it too",
            )
        why = "; ".join(f"{tier}: {error.why}" for tier, error in bad.items()) or "no replica of the object is left"
        wrong = [tier for tier, error in bad.items() if isinstance(error, ChecksumMismatch)]  # others have it no more
        return ChecksumMismatch(why, operation="read", subject=self.file.key, tier=", ".join(wrong or bad) or None)
