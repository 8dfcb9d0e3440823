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
from dataclasses import dataclass

from ckptstore.errors import CkptStoreError, InvalidInput, from_wire
from ckptstore.layout import LAYOUT_KEY
from ckptstore.part_reading import Selection, parse_part
from ckptstore.safetensors_format import PREFIX_BYTES, Header, header_size_bytes, parse_header
from ckptstore_tiers.memory import Segment

#: Headers above this are parsed in a process of their own: 60,000 tensors with ordinary names stay below.
LARGE_HEADER_BYTES = 8 << 20
#: What that process may take. The largest header of all, of the smallest tensors, needs half of each on a busy machine.
CHECK_TIMEOUT_S = 120.0
CHECK_MEMORY_BYTES = 4 << 30
#: Leaves of a part that need a framework to be decoded.
FRAMEWORK_TAGS = ("$scalar", "$size", "$dtype", "$device")
_HINT = "the client handed over a file that is none"
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class CheckedHeader:
    """`data` is the private copy that `header` was read from."""

    data: bytes
    header: Header


def check_segment(segment: Segment, size_bytes: int, name: str) -> CheckedHeader | None:
    """Refuse the first `size_bytes` of a segment unless they are a rank's file: InvalidInput says why.

    The header, but for a large one, which this process does not hold.
    """
    view = segment.view[:size_bytes]
    try:
        if header_size_bytes(view[:PREFIX_BYTES], size_bytes) <= LARGE_HEADER_BYTES:
            return check_file(view)
        with _one_at_a_time:
            fd = segment.read_only_fd()
            try:
                _check_elsewhere(fd, size_bytes)
            finally:
                os.close(fd)
            return None
    except InvalidInput as error:
        raise InvalidInput(error.why, operation="save", subject=name, hint=_HINT) from error


def check_file(view: memoryview) -> CheckedHeader:
    """Refuse a file unless its header and its part are well-formed and fit it. Works on a private copy of the header.

    Leaves that only a framework can decode (a torch dtype, say) are the reader's business: nothing here imports one.
    """
    data = bytes(view[: header_size_bytes(view[:PREFIX_BYTES], len(view))])
    header = parse_header(data, len(view))
    if LAYOUT_KEY in header.metadata:
        raise InvalidInput("a client does not say which objects its tensors lie in")
    parse_part(header, Selection(None), dict.fromkeys(FRAMEWORK_TAGS, _opaque))
    return CheckedHeader(data, header)


def _opaque(payload: object, place: str) -> None:
    return None


def _check_elsewhere(fd: int, size_bytes: int) -> None:
    command = [sys.executable, "-m", "ckptstore_server.part_check", str(fd), str(size_bytes)]
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


def _main(fd: int, size_bytes: int) -> int:
    """The process of its own: 0 for a good file; else 1, with the refusal on stdout, or any other way of dying."""
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + CHECK_MEMORY_BYTES, size_bytes + CHECK_MEMORY_BYTES))
    try:
        with mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ) as memory:
            view = memoryview(memory)
            try:
                check_file(view)
            finally:
                view.release()
    except CkptStoreError as error:
        print(json.dumps(error.to_wire()))
        return 1
    return 0


if __name__ == "__main__":
    # Not the ordinary way out: freeing millions of small objects one by one would take as long again.
    code = _main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(code)
