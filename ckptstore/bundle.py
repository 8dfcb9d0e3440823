"""How do many small files travel in one message? A line of JSON, their names and sizes, and then their bytes, one file behind the other.

A file that costs a message of its own, an answer, and turns of two event loops costs milliseconds however small it is. A bundle is bounded
in files and bytes, so that either side may hold it whole. What arrives is never trusted: sizes that do not add up, and names that come
twice, are InvalidInput; what a name may be is checked where the file gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from ckptstore.errors import InvalidInput
from ckptstore.faults import first_faults

#: Up to here a file is small: what it costs by itself is more than what its bytes cost.
SMALL_FILE_BYTES = 256 * 1024
#: Of one bundle: files, and their bytes together.
MAX_FILES = 1000
MAX_CONTENT_BYTES = 16 * 1024 * 1024
#: Names of 800 bytes, each of which JSON may write as six.
MAX_BUNDLE_BYTES = MAX_CONTENT_BYTES + MAX_FILES * 5000

T = TypeVar("T")
_LINE = TypeAdapter(list[tuple[str, NonNegativeInt]])


def in_parts(files: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """The files in parts: bundles of small ones, in their order, and each of the others alone."""
    bundle: list[T] = []
    bundle_bytes = 0
    for file in files:
        size_bytes = size_of(file)
        if size_bytes > SMALL_FILE_BYTES:
            yield [file]
            continue
        if len(bundle) == MAX_FILES or bundle_bytes + size_bytes > MAX_CONTENT_BYTES:
            yield bundle
            bundle, bundle_bytes = [], 0
        bundle.append(file)
        bundle_bytes += size_bytes
    if bundle:
        yield bundle


def pack(files: Sequence[tuple[str, bytes]]) -> bytes:
    """The message that holds these files, by name."""
    return b"".join((_LINE.dump_json([(name, len(data)) for name, data in files]), b"\n", *(data for _, data in files)))


def unpack(message: bytes) -> list[tuple[str, memoryview]]:
    """The files of a message, as views of it. InvalidInput."""
    line, newline, content = message.partition(b"\n")
    try:
        listed = _LINE.validate_json(line)
    except ValidationError as error:
        raise InvalidInput(first_faults(error, "list of files"), operation="read bundle") from error
    sizes_bytes = sum(size_bytes for _, size_bytes in listed)
    if not newline or len(listed) > MAX_FILES or sizes_bytes > MAX_CONTENT_BYTES:
        raise InvalidInput(f"a bundle has at most {MAX_FILES} files of {MAX_CONTENT_BYTES} bytes together", operation="read bundle")
    if sizes_bytes != len(content):
        raise InvalidInput(f"{len(content)} bytes of {sizes_bytes} came", operation="read bundle")
    if len({name for name, _ in listed}) < len(listed):
        raise InvalidInput("two files have the same name", operation="read bundle")
    files, start, view = [], 0, memoryview(content)
    for name, size_bytes in listed:
        files.append((name, view[start : start + size_bytes]))
        start += size_bytes
    return files
