"""What does a tier say of itself, so that the catalog can be lost?

A *commit record* (`records/<publication id>.jsonl`) lies in each durable tier beside the objects of a checkpoint, written after them.
It is text, one JSON value a line:

    {"format":"ckptstore-record","version":1,"store":…,"publication_id":…,"path":…,…}      the header
    {"object_id":…,"name":…,"rank":…,"key":…,"node":…,"size":…,"root":…,"blocks":<base64>}  one line a file, in byte order of the names
    {"refers_to":<such a line>,"publication_id":…,"path":…,"rank":…,"size":…}               one line an object of an earlier checkpoint
    {"end":<lines between>,"digest":<xxh3-128 of all bytes before this line, hexadecimal>}

A record in a node-local tier lists that node's files only, and says so (`complete` is false). A *tombstone*
(`tombstones/<publication id>.json`) is one JSON object: that publication was deleted, whatever records are still found.

Reading is strict: a record that was cut off or changed is refused (ChecksumMismatch), and so is one whose lines do not have this form,
or name a key that is not the file's own (InvalidInput); nothing of it is used before its digest was checked. A record without
references is of version 1, one with them of version 2, one of a publication that was moved of version 3, whose header has
`"stored_as"`, the path that its objects' keys are made of: an older ckptstore refuses what it would not understand. Golden files keep
all of them readable.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckptstore import paths
from ckptstore.catalog.model import Kind, Reference, StoredFile
from ckptstore.errors import ChecksumMismatch, InvalidInput
from ckptstore.faults import first_faults

RECORD_FORMAT = "ckptstore-record"
TOMBSTONE_FORMAT = "ckptstore-tombstone"
#: Of records: without references, with them, and of a publication that was moved.
VERSIONS = (1, 2, 3)
#: A file's line: 16 bytes of digest for each 4 MiB, in base64; a line of this length speaks for an object of 50 TB.
MAX_LINE_BYTES = 256 << 20
_DIGEST_BYTES = 16
#: How the line of a reference begins, and no other.
_REFERENCE = b'{"refers_to":'

M = TypeVar("M", bound="_Line")


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RecordHeader(_Line):
    """The first line of a commit record."""

    format: Literal["ckptstore-record"] = "ckptstore-record"
    version: Literal[1, 2, 3] = 1
    store: str
    publication_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    path: str
    kind: Literal["checkpoint", "folder", "file"]
    sequence: int = Field(ge=1)
    opened: int = Field(ge=1)
    world_size: int = Field(ge=1)
    step: int | None
    metadata: str
    tier: str
    node: str  # "" in a shared tier
    opened_at_s: float
    published_at_s: float
    file_count: int = Field(ge=0)  # of the publication
    complete: bool  # whether this record lists all of them
    stored_as: str = ""  # version 3: where it was when its objects got their keys


class _FileLine(_Line):
    object_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    name: str
    rank: int = Field(ge=0)
    key: str
    node: str
    size: int = Field(ge=0)
    root: str = Field(pattern=r"^[0-9a-f]{32}$")
    blocks: str


class _ReferenceLine(_Line):
    refers_to: _FileLine
    publication_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    path: str
    rank: int = Field(ge=0)
    size: int = Field(ge=0)


class _EndLine(_Line):
    end: int = Field(ge=0)
    digest: str


class Tombstone(_Line):
    """The whole of a tombstone."""

    format: Literal["ckptstore-tombstone"] = "ckptstore-tombstone"
    version: Literal[1] = 1
    store: str
    publication_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    path: str
    sequence: int = Field(ge=1)
    deleted_at_s: float


@dataclass(frozen=True)
class Record:
    header: RecordHeader
    _lines: tuple[bytes, ...]
    _reference_lines: tuple[bytes, ...]
    _subject: str

    @property
    def count(self) -> int:
        return len(self._lines)

    def files(self) -> Iterator[StoredFile]:
        """The files, parsed one by one. InvalidInput at the first that does not have the right form."""
        last: str | None = None
        for line in self._lines:
            stored_as = self.header.stored_as or self.header.path
            file = _stored_file(_parse(_FileLine, line, self._subject), stored_as, self.header.kind, self._subject)
            if last is not None and file.name.encode() <= last.encode():
                raise InvalidInput("its files are not in order", operation="read record", subject=self._subject)
            last = file.name
            yield file

    def references(self) -> Iterator[Reference]:
        """What it refers to, parsed one by one."""
        for line in self._reference_lines:
            found = _parse(_ReferenceLine, line, self._subject)
            paths.check_path(found.path, operation="read record")
            file = _stored_file(found.refers_to, found.path, Kind.CHECKPOINT, self._subject)
            yield Reference(file, found.publication_id, found.path, found.rank, found.size)


def write_record(header: RecordHeader, files: Iterable[StoredFile], references: Iterable[Reference] = ()) -> Iterator[bytes]:
    """The lines of a record, as they are made; `files` in byte order of their names. References need a header of version 2."""
    hasher = xxhash.xxh3_128()
    count = -1
    for value in _documents(header, files, references):
        count += 1
        line = _dump(value)
        hasher.update(line)
        yield line
    yield _dump({"end": count, "digest": hasher.hexdigest()})


def _documents(header: RecordHeader, files: Iterable[StoredFile], references: Iterable[Reference]) -> Iterator[dict[str, Any]]:
    yield header.model_dump(exclude=None if header.stored_as else {"stored_as"})
    yield from map(_file_line, files)
    for reference in references:
        yield {
            "refers_to": _file_line(reference.file), "publication_id": reference.publication_id, "path": stored_as(reference.file),
            "rank": reference.rank, "size": reference.size_bytes,
        }  # fmt: skip


def stored_as(file: StoredFile) -> str:
    """The path of the file's publication when the object got its key: it may have been moved since."""
    path = file.key.removeprefix("objects").rpartition("~")[0]
    return path.removesuffix(f"/{file.name}") if file.name else path


def sequence_of(record: bytes) -> int:
    """The sequence number in the header of a record that this process has made."""
    return int(json.loads(record.partition(b"\n")[0])["sequence"])


def _file_line(file: StoredFile) -> dict[str, Any]:
    return {
        "object_id": file.object_id, "name": file.name, "rank": file.rank, "key": file.key, "node": file.node,
        "size": file.size_bytes, "root": file.root, "blocks": base64.b64encode(file.blocks).decode("ascii"),
    }  # fmt: skip


def read_record(data: bytes, *, subject: str, tier: str | None = None) -> Record:
    """The record, its digest checked. ChecksumMismatch if it was cut off or altered, InvalidInput if it is of another form."""
    body, _, tail = data.rstrip(b"\n").rpartition(b"\n")
    try:
        end = _EndLine.model_validate_json(tail)
    except ValidationError as error:
        why = "the record has no last line: it was cut off"
        raise ChecksumMismatch(why, operation="read record", subject=subject, tier=tier) from error
    body += b"\n"
    if not data.endswith(b"\n") or xxhash.xxh3_128_hexdigest(body) != end.digest:
        raise ChecksumMismatch("the record differs from what was written", operation="read record", subject=subject, tier=tier)
    lines = body.split(b"\n")[:-1]
    if max(map(len, lines)) > MAX_LINE_BYTES or len(lines) != end.end + 1:
        raise InvalidInput(f"it announces {end.end} lines and has {len(lines) - 1}", operation="read record", subject=subject, tier=tier)
    header = _header(lines[0], subject)
    count = end.end
    while header.version > 1 and count and lines[count].startswith(_REFERENCE):
        count -= 1
    if header.complete != (count == header.file_count) or count > header.file_count:
        raise InvalidInput(f"it lists {count} of {header.file_count} files", operation="read record", subject=subject, tier=tier)
    return Record(header, tuple(lines[1 : count + 1]), tuple(lines[count + 1 :]), subject)


def write_tombstone(store: str, publication_id: str, path: str, sequence: int, deleted_at_s: float) -> bytes:
    tombstone = Tombstone(store=store, publication_id=publication_id, path=path, sequence=sequence, deleted_at_s=deleted_at_s)
    return _dump(tombstone.model_dump())


def read_tombstone(data: bytes, *, subject: str) -> Tombstone:
    """InvalidInput if it does not have the right form."""
    _refuse_other_version(data, TOMBSTONE_FORMAT, (1,), subject)
    return _parse(Tombstone, data, subject)


def _header(line: bytes, subject: str) -> RecordHeader:
    _refuse_other_version(line, RECORD_FORMAT, VERSIONS, subject)
    header = _parse(RecordHeader, line, subject)
    paths.check_stored_path(header.path, operation="read record")
    if (header.version == 3) != bool(header.stored_as):
        why = "a record of version 3, and no other, says where its objects were stored"
        raise InvalidInput(why, operation="read record", subject=subject)
    if header.stored_as:
        paths.check_path(header.stored_as, operation="read record")
    return header


def _refuse_other_version(line: bytes, name: str, versions: tuple[int, ...], subject: str) -> None:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InvalidInput("it is no JSON", operation="read record", subject=subject) from error
    if not isinstance(found, dict) or found.get("format") != name:
        raise InvalidInput(f"it is no {name}", operation="read record", subject=subject)
    if found.get("version") not in versions:
        raise InvalidInput(
            f"it has version {found.get('version')!r}; this ckptstore reads versions up to {versions[-1]}",
            operation="read record",
            subject=subject,
            hint="use the ckptstore that wrote it",
        )


def _stored_file(line: _FileLine, published_at: str, kind: str, subject: str) -> StoredFile:
    try:
        blocks = base64.b64decode(line.blocks, validate=True)
    except binascii.Error as error:
        raise InvalidInput("its block digests are no base64", operation="read record", subject=subject) from error
    single = Kind(kind) is Kind.FILE and line.name == ""
    path = published_at if single else paths.join(published_at, paths.check_relative(line.name, operation="read record"))
    if line.key != paths.object_key(path, line.object_id) or len(blocks) % _DIGEST_BYTES:
        raise InvalidInput(f"the key {line.key!r} is not that of its file", operation="read record", subject=subject)
    return StoredFile(line.object_id, line.name, line.rank, line.key, line.node, line.size, line.root, blocks)


def _parse(model: type[M], line: bytes, subject: str) -> M:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        raise InvalidInput(first_faults(error, "line"), operation="read record", subject=subject) from error


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=False).encode() + b"\n"
