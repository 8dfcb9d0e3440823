"""What is one version of a model? Its files, by name, with the names that clients' caches give to their contents. It never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from ckptstore.catalog.fingerprints import Fingerprint
from ckptstore.tree_messages import TreeInfo

#: What the hub keeps out of git: these names, and whatever is larger. The ETag of such a file is its SHA-256, of others the git blob's id.
LARGE_BYTES = 10 * 1000 * 1000
LARGE_SUFFIXES = (
    ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gguf", ".gz", ".h5", ".joblib", ".mlmodel", ".model", ".msgpack", ".npy", ".npz",
    ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors", ".tar", ".tflite", ".tgz", ".wasm", ".xz",
    ".zip", ".zst",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    name: str
    path: str  # in the namespace
    version: str
    size_bytes: int
    etag: str  # without quotes
    blob_id: str  # 40 hexadecimal digits
    sha256: str | None = None  # of a large file


@dataclass(frozen=True)
class Snapshot:
    repo: str
    commit: str
    modified_s: float
    files: Mapping[str, ModelFile]  # by name, in byte order


def model_file(folder: str, info: TreeInfo, prints: Fingerprint | None) -> ModelFile:
    name = info.path.removeprefix(f"{folder}/")
    if prints is None:  # attached storage: a name that follows from where it lies and from its version there
        derived = hashlib.sha1(info.version.encode(), usedforsecurity=False).hexdigest()
        return ModelFile(name, info.path, info.version, info.size_bytes, derived, derived)
    if prints.git_sha1 is None or name.endswith(LARGE_SUFFIXES):
        blob_id = _pointer_id(prints.sha256, info.size_bytes)
        return ModelFile(name, info.path, info.version, info.size_bytes, prints.sha256, blob_id, sha256=prints.sha256)
    return ModelFile(name, info.path, info.version, info.size_bytes, prints.git_sha1, prints.git_sha1)


def pointer(sha256: str, size_bytes: int) -> bytes:
    """What git holds in place of a large file (the Git LFS specification, version 1)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size_bytes}\n".encode()


def _pointer_id(sha256: str, size_bytes: int) -> str:
    text = pointer(sha256, size_bytes)
    return hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False).hexdigest()
