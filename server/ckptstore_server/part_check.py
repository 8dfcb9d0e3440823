"""Is what a client handed over a rank's file at all? Its header and its part are parsed, strictly, from a private copy.

A header of a hundred megabytes, which the format allows, takes the parser half a minute and a gigabyte or two: enough to hold the
interpreter's lock for seconds at a time, and memory that an allocator does not give back. So a large header is parsed in a process of
its own, with a bound on its memory and its time, and only one at a time; everybody else's work goes on. (Measured with 1.8 million empty
tensors: within the daemon, answers took up to 1.7 s and 230 MB stayed resident.) Ordinary headers, of thousands of tensors, are far
below the bound and are parsed where they are.

Blocking; any thread.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass

from ckptstore.errors import CkptStoreError, InvalidInput, from_wire
from ckptstore.layout import LAYOUT_KEY
from ckptstore.part_reading import Selection, parse_part
from ckptstore.plain_leaves import FRAMEWORK_TAGS, leaf_texts
from ckptstore.safetensors_format import PREFIX_BYTES, Header, TensorEntry, header_size_bytes, parse_header
from ckptstore.shards import SHARDS_KEY, check_file_has, read_plan, with_spread_tensors
from ckptstore_tiers.memory import Segment

#: Headers above this are parsed in a process of their own: 60,000 tensors with ordinary names stay below.
LARGE_HEADER_BYTES = 8 << 20
#: What that process may take. The largest header of all, of the smallest tensors, needs half of each on a busy machine.
CHECK_TIMEOUT_S = 120.0
CHECK_MEMORY_BYTES = 4 << 30
_HINT = "the client handed over a file that is none"
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class CheckedHeader:
    """`data` is the private copy that `header` was read from."""

    data: bytes
    header: Header


@dataclass(frozen=True)
class Declaration:
    """What a rank of a sharded state says: its plan, and its plain leaves, whose tensors lie at these bytes of the file."""

    plan: str
    texts: dict[str, str]
    tensors: list[TensorEntry]


@dataclass(frozen=True)
class CheckedFile:
    header: CheckedHeader | None  # None for a large one, which this process does not hold
    declared: Declaration | None  # None where the state is not sharded


def check_segment(segment: Segment, size_bytes: int, name: str, rank: int) -> CheckedFile:
    """Refuse the first `size_bytes` of a segment unless they are that rank's file: InvalidInput says why."""
    view = segment.view[:size_bytes]
    try:
        if header_size_bytes(view[:PREFIX_BYTES], size_bytes) <= LARGE_HEADER_BYTES:
            return check_file(view, rank)
        with _one_at_a_time:
            fd = segment.read_only_fd()
            try:
                return CheckedFile(None, _check_elsewhere(fd, size_bytes, rank))
            finally:
                os.close(fd)
    except InvalidInput as error:
        raise InvalidInput(error.why, operation="save", subject=name, hint=_HINT) from error


def check_file(view: memoryview, rank: int) -> CheckedFile:
    """Refuse a file unless its header and its part are well-formed and fit it. Works on a private copy of the header.

    Leaves that only a framework can decode (a torch dtype, say) are the reader's business: nothing here imports one.
    """
    data = bytes(view[: header_size_bytes(view[:PREFIX_BYTES], len(view))])
    header = parse_header(data, len(view))
    if LAYOUT_KEY in header.metadata:
        raise InvalidInput("a client does not say which objects its tensors lie in")
    plan = read_plan(header)
    if plan is None:
        parse_part(header, Selection(None), dict.fromkeys(FRAMEWORK_TAGS, _opaque))
        return CheckedFile(CheckedHeader(data, header), None)
    pieces = check_file_has(header, plan, rank)
    texts = leaf_texts(with_spread_tensors(header, plan))
    plain = [_in_file(entry, header.data_start) for key, entry in header.tensors.items() if key not in pieces]
    return CheckedFile(CheckedHeader(data, header), Declaration(header.metadata[SHARDS_KEY], texts, plain))


def _in_file(entry: TensorEntry, data_start: int) -> TensorEntry:
    return TensorEntry(entry.key, entry.dtype, entry.shape, data_start + entry.start, data_start + entry.end)


def _opaque(payload: object, place: str) -> None:
    return None


def _check_elsewhere(fd: int, size_bytes: int, rank: int) -> Declaration | None:
    command = [sys.executable, "-m", "ckptstore_server.part_check", str(fd), str(size_bytes), str(rank)]
    try:
        done = subprocess.run(command, pass_fds=[fd], stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise InvalidInput(f"its header was not parsed within {CHECK_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise CkptStoreError(f"no process to parse a large header: {error.strerror}", operation="save") from error
    if done.returncode != 0:
        try:
            raise from_wire(json.loads(done.stdout))
        except ValueError as error:
            why = f"its header could not be parsed within {CHECK_MEMORY_BYTES >> 30} GiB of memory"
            raise InvalidInput(why) from error
    return _read_declaration(done.stdout)


def _read_declaration(text: bytes) -> Declaration | None:
    if not text:
        return None
    document = json.loads(text)
    tensors = [TensorEntry(**entry | {"shape": tuple(entry["shape"])}) for entry in document["tensors"]]
    return Declaration(document["plan"], document["texts"], tensors)


def _main(fd: int, size_bytes: int, rank: int) -> int:
    """The process of its own: 0 for a good file, with its declaration on stdout; else 1, with the refusal there, or any other death."""
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + CHECK_MEMORY_BYTES, size_bytes + CHECK_MEMORY_BYTES))
    try:
        with mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ) as memory:
            view = memoryview(memory)
            try:
                declared = check_file(view, rank).declared
                if declared is not None:
                    print(json.dumps(asdict(declared)))
            finally:
                view.release()
    except CkptStoreError as error:
        print(json.dumps(error.to_wire()))
        return 1
    return 0


if __name__ == "__main__":
    # Not the ordinary way out: freeing millions of small objects one by one would take as long again.
    code = _main(*map(int, sys.argv[1:4]))
    sys.stdout.flush()
    os._exit(code)
