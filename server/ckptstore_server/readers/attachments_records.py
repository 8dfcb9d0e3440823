"""Which tiers know of the attachments as they are now? All durable ones, soon; those that are away, when they are back.

The catalog alone decides what is attached. Its list is written into each durable tier when it has changed (`attach` and `detach` wait for
that for a moment), and looked at once in a daemon's life, since the one before may have died in between. Nothing is written where nothing
was ever attached. Of two nodes that write into a shared tier at once, the one that was late looks again at its next turn.

On the event loop; what a tier says is read and written in its own threads.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ckptstore.attachments_record import ATTACHMENTS_KEY, LIMIT_BYTES, read_attachments, write_attachments
from ckptstore.catalog.model import Attachment
from ckptstore.errors import CkptStoreError, InvalidInput, NotFound
from ckptstore.failpoints import declare, failpoint
from ckptstore_server.node import Node
from ckptstore_server.tier_handle import TierHandle

#: How long attaching and detaching wait for the tiers, in seconds.
PATIENCE_S = 10.0
BEFORE_WRITE = declare("attachments.before_write")


class AttachmentsRecords:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: dict[str, list[Attachment]] = {}  # by tier: what it is known to have
        self._turn = asyncio.Lock()

    async def settle(self) -> None:
        """Have every tier that answers know what is attached now."""
        async with self._turn:
            sequence, attachments = await self._node.query(self._node.catalog.attachments_now)
            waiting = [handle for handle in self._node.durable if self._known.get(handle.name) != attachments and handle.opened is not None]
            await asyncio.gather(*(self._settle_in(handle, sequence, attachments) for handle in waiting))

    async def soon(self) -> None:
        """The same, for a moment; what takes longer goes on at the next turn."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self.settle()

    async def _settle_in(self, handle: TierHandle, sequence: int, attachments: list[Attachment]) -> None:
        try:
            if await self._node.run(self._node.tier_executor(handle), self._write, handle, sequence, attachments):
                self._known[handle.name] = attachments
        except CkptStoreError as error:
            self._node.remark(f"attachments in {handle.name}", error)

    def _write(self, handle: TierHandle, sequence: int, attachments: list[Attachment]) -> bool:
        """Whether the tier has them now; not, if somebody has written there who knows more."""
        with handle.watched() as tier:
            try:
                there = read_attachments(tier.get_document(ATTACHMENTS_KEY, limit_bytes=LIMIT_BYTES), subject=ATTACHMENTS_KEY)
                if list(there.attachments) == attachments:
                    return True
                if there.sequence > sequence:
                    return False
            except NotFound:
                if not attachments:
                    return True
            except InvalidInput as error:
                self._node.remark(f"attachments in {handle.name}", error)  # it is written anew
            failpoint(BEFORE_WRITE)
            tier.put_document(ATTACHMENTS_KEY, write_attachments(self._node.catalog.store_id, sequence, attachments))
            return True
