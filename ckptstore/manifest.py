"""What is a checkpoint made of? Its index, `checkpoint.json`: the one file that names all the others.

    {"format": "ckptstore/1", "path": …, "attempt": id, "world_size": n, "step": …, "metadata": {…}, "opened_at_s": …,
     "parts": [{"rank": 0, "file": "rank-00000-of-00002.safetensors", "object": id, "size_bytes": …, "digest": …}, …]}

A part of an incremental checkpoint has `"refers_to": [key, …]` beside these: the objects of earlier checkpoints that hold the rest of its
tensors, by their keys in every tier. Which tensor lies where in them, the file's own header says (`ckptstore.layout`).

The index is for people and for other tools: `load` asks the catalog instead, and each rank's own file says what lies in it
(`ckptstore.part`), so that no reader needs an index that grows with ranks times tensors. What is in it depends on the attempt
alone and never on the clock: a publish that is repeated after a crash writes the same bytes again.

Pure functions. A document from a store is data from outside: `read_index` refuses by name (InvalidInput) whatever breaks the rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckptstore.catalog.model import AttemptView, StoredFile
from ckptstore.errors import InvalidInput
from ckptstore.faults import first_faults
from ckptstore.paths import INDEX_NAME, check_path, is_id

FORMAT: Literal["ckptstore/1"] = "ckptstore/1"
MAX_WORLD_SIZE = 1 << 20
#: 2^20 parts of at most 300 bytes each, and the user's metadata.
MAX_INDEX_BYTES = 512 * 1024 * 1024

Count = Annotated[int, Field(ge=0, strict=True)]


class Part(BaseModel):
    """One rank's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Count
    file: str
    object: str
    size_bytes: Count
    digest: str = Field(pattern=r"^[0-9a-f]{32}$")
    refers_to: list[str] = Field(default_factory=list)


class Index(BaseModel):
    """`checkpoint.json`, read and checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["ckptstore/1"]
    path: str
    attempt: str
    world_size: int = Field(ge=1, le=MAX_WORLD_SIZE, strict=True)
    step: Annotated[int, Field(strict=True)] | None
    metadata: dict[str, Any]
    opened_at_s: float
    parts: list[Part]


def part_file_name(rank: int, world_size: int) -> str:
    """`rank-00003-of-00008.safetensors`: names sort by rank for any world size that we accept."""
    return (
        f"rank-{rank:05d}-of-{world_size:05d}.safetensors" if world_size <= 100_000 else f"rank-{rank:07d}-of-{world_size:07d}.safetensors"
    )


def build_index(attempt: AttemptView, parts: Iterable[StoredFile], refers_to: Mapping[int, Sequence[str]] | None = None) -> bytes:
    """The index of a complete attempt. `parts` may be a stream; only the index's own text is held in memory.

    `refers_to` are the keys of other objects that hold tensors of a rank.
    """
    referred = refers_to or {}
    head = {
        "format": FORMAT,
        "path": attempt.path,
        "attempt": attempt.attempt_id,
        "world_size": attempt.world_size,
        "step": attempt.step,
        "metadata": json.loads(attempt.metadata),
        "opened_at_s": attempt.opened_at_s,
    }
    text = json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}")
    ranks = (part for part in sorted(parts, key=lambda part: part.rank) if part.name != INDEX_NAME)
    lines = [json.dumps(_line(part, referred.get(part.rank, ())), ensure_ascii=False) for part in ranks]
    return (text + ',\n "parts": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n").encode("utf-8")


def _line(part: StoredFile, refers_to: Sequence[str]) -> dict[str, Any]:
    line = {"rank": part.rank, "file": part.name, "object": part.object_id, "size_bytes": part.size_bytes, "digest": part.root}
    return line | {"refers_to": list(refers_to)} if refers_to else line


def read_index(data: bytes) -> Index:
    """The index, if it is one: every rank has exactly its file, and nothing else stands there."""
    if len(data) > MAX_INDEX_BYTES:
        raise _refusal(f"it has {len(data)} bytes; {MAX_INDEX_BYTES} are allowed")
    try:
        index = Index.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(first_faults(error, "document")) from error
    check_path(index.path, operation="read checkpoint.json")
    if not is_id(index.attempt):
        raise _refusal("attempt is no id")
    if len(index.parts) != index.world_size:
        raise _refusal(f"it names {len(index.parts)} parts of a world of {index.world_size}")
    for rank, part in enumerate(index.parts):
        if part.rank != rank or part.file != part_file_name(rank, index.world_size) or not is_id(part.object):
            raise _refusal(f"parts.{rank} is not the part of rank {rank}")
    return index


def _refusal(why: str) -> InvalidInput:
    return InvalidInput(why, operation="read checkpoint.json")
