"""How do many small files of a put come in at once? As one bundle: ids recorded, all stored, and all noted, each in one step.

What is durable when is as for single files: an id is in the catalog before its first byte is written, and when `store` returns the
files are in a durable tier and the catalog knows it. A bundle that fails leaves none of its files; the attempt lives on, and its client
decides. On the event loop; the bytes are private to the daemon.
"""

from __future__ import annotations

from ckptstore.bundle import MAX_BUNDLE_BYTES, unpack
from ckptstore.catalog.model import Kind
from ckptstore.errors import InvalidInput
from ckptstore.wire import BundleStored
from ckptstore_server.hugging_face.fingerprinting import fingerprint_of
from ckptstore_server.ingest import Ingest
from ckptstore_server.node import Node


class SmallFiles:
    def __init__(self, node: Node, ingest: Ingest) -> None:
        self._node = node
        self._ingest = ingest

    async def store(self, attempt_id: str, message: bytes) -> BundleStored:
        """The files of a bundle, into the first durable tier that takes them. InvalidInput, AttemptAborted."""
        files = await self._node.run(self._node.ingest_executor, unpack, message)
        if not files:
            raise InvalidInput("the bundle holds no file", operation="put", subject=attempt_id)
        view = await self._node.query(self._node.catalog.attempt, attempt_id)
        if view.kind is not Kind.FOLDER:
            raise InvalidInput(f"an attempt of kind {view.kind} takes no bundle", operation="put", subject=view.path)
        objects = await self._node.query(self._node.catalog.add_objects, attempt_id, 0, [name for name, _ in files])
        stored = [(found, data) for found, (_, data) in zip(objects, files, strict=True)]
        await self._ingest.files(attempt_id, stored)
        if view.path.startswith(f"{self._node.settings.hugging_face.models}/"):  # the publish would read each of them again for that
            fingerprints = {found.object_id: fingerprint_of(data) for found, data in stored}
            await self._node.insist(self._node.catalog.set_fingerprints, fingerprints)
        return BundleStored(files=len(files), size_bytes=sum(len(data) for _, data in files))


def check_size(size_bytes: int) -> int:
    """Before a byte of it is read."""
    if size_bytes > MAX_BUNDLE_BYTES:
        raise InvalidInput(f"a bundle has at most {MAX_BUNDLE_BYTES} bytes, not {size_bytes}", operation="put")
    return size_bytes
