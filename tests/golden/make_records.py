"""The values that the golden records of format versions 1, 2 and 3 hold. The files beside it are never rewritten."""

from __future__ import annotations

from ckptstore.catalog.model import Reference, StoredFile
from ckptstore.records import RecordHeader, write_record, write_tombstone
from ckptstore_tiers.checksums import BlockDigests

PUBLICATION = "0199a1b2c3d4" + "0123456789abcdef0123"
STORE = "6f1c2f0e-6f0a-4a8e-9c57-0d1b7a0c1d2e"


def header_v1() -> RecordHeader:
    return RecordHeader(
        store=STORE, publication_id=PUBLICATION, path="/runs/größe 日本/step-000100", kind="checkpoint", sequence=42, opened=40,
        world_size=2, step=100, metadata='{"lr": 0.0003}', tier="nvme", node="node-a", opened_at_s=1700000000.25,
        published_at_s=1700000003.5, file_count=3, complete=False,
    )  # fmt: skip


def files_v1() -> list[StoredFile]:
    contents = {"checkpoint.json": b"{}", "rank-00000.safetensors": bytes(range(256)) * 20000}
    files = []
    for number, (name, content) in enumerate(contents.items()):
        object_id = f"0199a1b2c3d5{number:020x}"
        digests = BlockDigests.of(content)
        key = f"objects/runs/größe 日本/step-000100/{name}~{object_id}"
        files.append(StoredFile(object_id, name, 0, key, "node-a", digests.size_bytes, digests.root, digests.blocks))
    return files


def header_v2() -> RecordHeader:
    return header_v1().model_copy(update={"version": 2})


def references_v2() -> list[Reference]:
    digests = BlockDigests.of(b"frozen" * 1000)
    object_id = "0199a1b2c3d3" + "0" * 20
    name = "rank-00000.safetensors"
    key = f"objects/runs/größe 日本/step-000050/{name}~{object_id}"
    file = StoredFile(object_id, name, 0, key, "node-a", digests.size_bytes, digests.root, digests.blocks)
    return [Reference(file, "0199a1b2c3d2" + "0123456789abcdef0123", "/runs/größe 日本/step-000050", 0, 5000)]


def header_v3() -> RecordHeader:
    """Of what was moved: the keys of its objects are those of the path before."""
    return header_v1().model_copy(update={"version": 3, "stored_as": header_v1().path, "path": "/models/größe"})


def record_v3() -> bytes:
    return b"".join(write_record(header_v3(), files_v1(), references_v2()))


def record_v2() -> bytes:
    return b"".join(write_record(header_v2(), files_v1(), references_v2()))


def record_v1() -> bytes:
    return b"".join(write_record(header_v1(), files_v1()))


def tombstone_v1() -> bytes:
    return write_tombstone(STORE, PUBLICATION, "/runs/größe 日本/step-000100", 42, 1700000100.0)
