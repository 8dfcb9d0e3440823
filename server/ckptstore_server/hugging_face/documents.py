"""How does the hub describe a model, its files and its versions in JSON? What clients can do without is left out.

Neither `xetHash` nor `X-Xet-Hash` is ever sent: a client that sees them fetches by another protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ckptstore_server.hugging_face.snapshots import ModelFile, Snapshot, pointer


def model_info(snapshot: Snapshot, *, private: bool, with_blobs: bool) -> dict[str, Any]:
    siblings = [{"rfilename": file.name} | (_blob(file) if with_blobs else {}) for file in snapshot.files.values()]
    return {
        "_id": snapshot.commit[:24],
        "id": snapshot.repo,
        "modelId": snapshot.repo,
        "sha": snapshot.commit,
        "private": private,
        "gated": False,
        "disabled": False,
        "lastModified": _time(snapshot.modified_s),
        "createdAt": _time(snapshot.modified_s),
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }


def tree_entries(snapshot: Snapshot, folder: str, *, recursive: bool, expand: bool) -> Iterator[dict[str, Any]]:
    """What is in a folder of the model ("" for all of it), in byte order; a folder comes before what is in it."""
    prefix = f"{folder}/" if folder else ""
    seen: set[str] = set()
    for name, file in snapshot.files.items():
        if not name.startswith(prefix):
            continue
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            inner = prefix + "/".join(parts[:depth])
            if inner not in seen:
                seen.add(inner)
                oid = hashlib.sha1(f"{snapshot.commit} {inner}".encode(), usedforsecurity=False).hexdigest()
                yield {"type": "directory", "path": inner, "oid": oid, "size": 0} | _last_commit(snapshot, expand)
        if recursive or len(parts) == 1:
            yield file_entry(snapshot, file, expand=expand)


def file_entry(snapshot: Snapshot, file: ModelFile, *, expand: bool) -> dict[str, Any]:
    entry = {"type": "file", "path": file.name, "oid": file.blob_id, "size": file.size_bytes}
    return entry | _lfs(file, "oid") | _last_commit(snapshot, expand)


def refs(revisions: dict[str, str]) -> dict[str, Any]:
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in revisions.items()]
    return {"branches": branches, "tags": [], "converts": []}


def commits(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [_commit(snapshot) | {"authors": [], "message": ""}]


def _blob(file: ModelFile) -> dict[str, Any]:
    return {"size": file.size_bytes, "blobId": file.blob_id} | _lfs(file, "sha256")


def _lfs(file: ModelFile, key: str) -> dict[str, Any]:
    if file.sha256 is None:
        return {}
    return {"lfs": {key: file.sha256, "size": file.size_bytes, "pointerSize": len(pointer(file.sha256, file.size_bytes))}}


def _last_commit(snapshot: Snapshot, expand: bool) -> dict[str, Any]:
    return {"lastCommit": _commit(snapshot)} if expand else {}


def _commit(snapshot: Snapshot) -> dict[str, Any]:
    return {"id": snapshot.commit, "title": "published", "date": _time(snapshot.modified_s)}


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
