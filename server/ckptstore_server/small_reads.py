"""How are many small objects read at once? One look into the catalog, one file after the other, one answer.

Each is read from the nearest posix tier that has it, and verified before it is sent. What is not near, or not right, is left out: who asked
for it asks again, for that object alone, and is served, or told what is wrong, as ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing

from ckptstore.bundle import MAX_CONTENT_BYTES, MAX_FILES, pack
from ckptstore.catalog.model import StoredFile
from ckptstore.errors import ChecksumMismatch, InvalidInput, NotFound, TierUnavailable
from ckptstore_server.node import Node
from ckptstore_server.replicas import digests_of
from ckptstore_server.tier_handle import TierHandle
from ckptstore_tiers.checksums import BLOCK_BYTES


class SmallReads:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def bundle(self, object_ids: Sequence[str]) -> bytes:
        """The contents of these objects by id, as `ckptstore.bundle` packs them; those that cannot be read here are missing."""
        if len(object_ids) > MAX_FILES:
            raise InvalidInput(f"at most {MAX_FILES} objects are read at once", operation="read")
        return await self._node.run(self._node.read_executor, self._bundle, list(dict.fromkeys(object_ids)))

    def _bundle(self, object_ids: Sequence[str]) -> bytes:
        found = self._node.catalog.whereabouts(object_ids)
        if sum(file.size_bytes for file, _ in found.values()) > MAX_CONTENT_BYTES:
            raise InvalidInput(f"at most {MAX_CONTENT_BYTES} bytes are read at once", operation="read")
        contents: list[tuple[str, bytes]] = []
        used: dict[str, list[str]] = defaultdict(list)
        for file, tiers in found.values():
            handle = next((near for near in self._node.handles if near.name in tiers and near.settings.kind == "posix"), None)
            content = None if handle is None else _content(handle, file)
            if handle is not None and content is not None:
                contents.append((file.object_id, content))
                used[handle.name].append(file.object_id)
        for tier, ids in used.items():
            self._node.catalog.touch(ids, tier)
        return pack(contents)


def _content(handle: TierHandle, file: StoredFile) -> bytes | None:
    content = bytearray(file.size_bytes)
    digests = digests_of(file)
    try:
        with handle.watched() as tier, closing(tier.open(file.key, size_bytes=file.size_bytes)) as reader:
            if reader.size_bytes != file.size_bytes:
                return None
            reader.read_into(0, memoryview(content))
        for index in range(digests.count):
            block = memoryview(content)[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            digests.check(index, block, operation="read", subject=file.key, tier=handle.name)
    except (ChecksumMismatch, NotFound, TierUnavailable):
        return None
    return bytes(content)
