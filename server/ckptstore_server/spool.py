"""A body that arrives over HTTP, made into a source that a tier can read block by block, in any order.

Files are spooled into an anonymous file in the home (never visible, gone with the process); a rank's file goes straight into the slot
that was granted for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiofiles

from ckptstore.errors import InvalidInput, TierFull, TierUnavailable
from ckptstore_server.node import Node
from ckptstore_tiers.interface import BlockSource
from ckptstore_tiers.posix_space import device_space
from ckptstore_tiers.sources import FileSource


@asynccontextmanager
async def spool_body(node: Node, body: AsyncIterator[bytes], size_bytes: int) -> AsyncIterator[BlockSource]:
    """The body, whole, as a source. InvalidInput if it is shorter or longer than announced; TierFull if the home has no room."""
    _, free_bytes = device_space(node.settings.home)
    if size_bytes > free_bytes:
        why = f"{size_bytes} bytes are announced, {free_bytes} are free in {node.settings.home}"
        raise TierFull(why, operation="put", hint="free some space, or put the files from this node")
    async with aiofiles.tempfile.TemporaryFile(dir=node.settings.home, prefix="spool-") as file:
        received_bytes = 0
        try:
            async for chunk in body:
                received_bytes += len(chunk)
                if received_bytes > size_bytes:
                    raise InvalidInput(f"the body is longer than the {size_bytes} bytes announced", operation="put")
                await file.write(chunk)
            await file.flush()
        except OSError as error:
            raise TierUnavailable(
                f"the body could not be kept: {error.strerror}", operation="put", subject=tempfile.gettempprefix()
            ) from error
        if received_bytes != size_bytes:
            raise InvalidInput(f"the body ended after {received_bytes} of {size_bytes} bytes", operation="put")
        yield FileSource(file.fileno(), size_bytes)


async def whole_body(body: AsyncIterator[bytes], size_bytes: int) -> bytes:
    """A body that is small enough to be held. InvalidInput if it is shorter or longer than announced."""
    received = bytearray()
    async for chunk in body:
        received += chunk
        if len(received) > size_bytes:
            raise InvalidInput(f"the body is longer than the {size_bytes} bytes announced", operation="put")
    if len(received) != size_bytes:
        raise InvalidInput(f"the body ended after {len(received)} of {size_bytes} bytes", operation="put")
    return bytes(received)
