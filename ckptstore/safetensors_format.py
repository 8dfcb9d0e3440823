"""How does a rank's file look, and is this header one of it? Ordinary safetensors, strictly read.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes of header length (little endian), the header as JSON,
then the tensors' bytes. The tensors, sorted by offset, cover the data without overlap or hole, from 0 to the end of the file. We
pad the header with spaces, as the format allows, so that the data starts on a 4,096-byte boundary, and with some slack, so that a
step counter that grows a digit does not move the data: a plan of offsets then serves every save of a run.

A header is data from outside: `parse_header` is bounded and refuses by name (InvalidInput) whatever breaks a rule; it never
trusts a length. Pure functions over values: no I/O, no state, any thread.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ckptstore.errors import InvalidInput

DATA_ALIGNMENT_BYTES = 4096
#: Free room that a new header gets at least, for scalars and step counters that grow.
SLACK_BYTES = 512
#: The limit of the safetensors library itself; beyond it nobody else could open the file.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 64
METADATA_KEY = "__metadata__"
_LENGTH = struct.Struct("<Q")
PREFIX_BYTES = _LENGTH.size

#: safetensors name → bits of one element. F4 counts elements, two in a byte.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; `start` and `end` are bytes from the beginning of the data, not of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    #: where the data starts in the file, in bytes
    data_start: int


def tensor_size_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor; InvalidInput if the dtype is unknown, or its elements do not fill whole bytes."""
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        raise _refusal(f"dtype {dtype[:40]!r} is unknown")
    for size in shape:
        bits *= size
    if bits % 8:
        raise _refusal(f"a tensor of {dtype} ends inside a byte")
    return bits // 8


def build_tensor_table(entries: Iterable[TensorEntry]) -> bytes:
    """The JSON members that describe the tensors: what stays the same from save to save, and is worth keeping."""
    table = {e.key: {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": [e.start, e.end]} for e in entries}
    return orjson.dumps(table)[1:-1]


def assemble_header(tensor_table: bytes, metadata: Mapping[str, str], *, size_bytes: int = 0) -> bytes:
    """The header around a table of `build_tensor_table`: `size_bytes` long if it fits there, else as long as it needs with slack.

    The length is a multiple of DATA_ALIGNMENT_BYTES. InvalidInput if the result would exceed what readers accept.
    """
    members = orjson.dumps({METADATA_KEY: dict(metadata)})[1:-1]
    text = b"{" + members + (b"," + tensor_table if tensor_table else b"") + b"}"
    needed = PREFIX_BYTES + len(text)
    if needed > size_bytes:
        size_bytes = -(-(needed + SLACK_BYTES) // DATA_ALIGNMENT_BYTES) * DATA_ALIGNMENT_BYTES
    if size_bytes - PREFIX_BYTES > MAX_HEADER_BYTES:
        raise InvalidInput(
            f"the header would have {size_bytes} bytes; readers of safetensors accept {MAX_HEADER_BYTES}",
            operation="save",
            hint="keep large values in tensors or arrays, not in scalars, strings and bytes",
        )
    return _LENGTH.pack(size_bytes - PREFIX_BYTES) + text.ljust(size_bytes - PREFIX_BYTES)


def build_header(entries: Iterable[TensorEntry], metadata: Mapping[str, str], *, size_bytes: int = 0) -> bytes:
    """The whole header, length and padding included; see `assemble_header`."""
    return assemble_header(build_tensor_table(entries), metadata, size_bytes=size_bytes)


def header_size_bytes(prefix: bytes | memoryview, file_size_bytes: int) -> int:
    """Bytes before the data, as the first 8 bytes of the file claim; InvalidInput if that cannot be."""
    if len(prefix) < PREFIX_BYTES or file_size_bytes < PREFIX_BYTES:
        raise _refusal(f"a file of {file_size_bytes} bytes is too short to have one")
    length: int = _LENGTH.unpack(bytes(prefix[:PREFIX_BYTES]))[0]
    if length > MAX_HEADER_BYTES:
        raise _refusal(f"it claims {length} bytes; {MAX_HEADER_BYTES} are allowed")
    if PREFIX_BYTES + length > file_size_bytes:
        raise _refusal(f"it claims {length} bytes, beyond the end of a file of {file_size_bytes}")
    return PREFIX_BYTES + length


def parse_header(prefix: bytes | memoryview, file_size_bytes: int) -> Header:
    """The header at the beginning of `prefix`, which must hold all of it. InvalidInput that names the broken rule.

    Cost: some microseconds a tensor; the JSON text is bounded by MAX_HEADER_BYTES before it is parsed.
    """
    data_start = header_size_bytes(prefix, file_size_bytes)
    if len(prefix) < data_start:
        raise _refusal(f"only {len(prefix)} of its {data_start} bytes were given")
    document = _parse_json(bytes(prefix[PREFIX_BYTES:data_start]))
    metadata = _checked_metadata(document.pop(METADATA_KEY, {}))
    tensors = {key: _checked_tensor(key, value) for key, value in document.items()}
    _check_coverage(tensors.values(), file_size_bytes - data_start)
    return Header(tensors, metadata, data_start)


def _refusal(why: str, subject: str | None = None) -> InvalidInput:
    return InvalidInput(why, operation="read safetensors header", subject=subject)


def _parse_json(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise _refusal("it does not begin with '{'")
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are both ValueErrors; deep nesting ends the recursion
        raise _refusal(f"it is no JSON object: {str(error)[:120]}") from error
    if not isinstance(document, dict):
        raise _refusal("it is no JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _refusal("the same name stands there twice", subject=repr(twice[:120]))
    return found


def _no_constant(text: str) -> Any:
    raise _refusal(f"{text} is no JSON")


def _checked_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _refusal("the metadata is not an object of strings", subject=METADATA_KEY)
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _checked_tensor(key: str, value: Any) -> TensorEntry:
    subject = repr(key[:120])
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refusal("a tensor needs exactly dtype, shape and data_offsets", subject)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _refusal(f"dtype {str(dtype)[:40]!r} is unknown", subject)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise _refusal("the shape is not a list of sizes", subject)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)) or offsets[0] > offsets[1]:
        raise _refusal("data_offsets are not a begin and an end", subject)
    _check_extent(shape, subject)
    if tensor_size_bytes(dtype, shape) != offsets[1] - offsets[0]:
        raise _refusal(f"{offsets[1] - offsets[0]} bytes do not hold a {dtype} tensor of its shape", subject)
    return TensorEntry(key, dtype, tuple(shape), offsets[0], offsets[1])


def _check_extent(shape: list[int], subject: str) -> None:
    """A tensor with a zero size takes no bytes whatever its other sizes claim; no framework could make it beyond this."""
    extent = 1
    for size in shape:
        extent *= max(size, 1)
        if extent >= 1 << 60:
            raise _refusal("the shape is larger than memory can be", subject)


def _check_coverage(tensors: Iterable[TensorEntry], data_size_bytes: int) -> None:
    """Overlaps, holes and bytes left over are all the same fault: the next tensor does not start where the last one ended."""
    position = 0
    for entry in sorted(tensors, key=lambda e: (e.start, e.end)):
        if entry.start != position:
            fault = "overlaps another tensor" if entry.start < position else "leaves a hole before it"
            raise _refusal(f"the tensor at bytes {entry.start} to {entry.end} {fault}", repr(entry.key[:120]))
        position = entry.end
    if position != data_size_bytes:
        raise _refusal(f"the tensors take {position} bytes, the file has {data_size_bytes} for them")
