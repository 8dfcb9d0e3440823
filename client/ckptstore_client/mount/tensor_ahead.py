"""What will a loader of a cold safetensors file want next? The whole tensor that it has begun to read, and those after it.

A loader maps the file, reads the header, and touches tensors in the order of the model, not of the file; to whoever sees only faults of
one page this looks random. The header says where the tensor ends, so its rest is asked for at the first touch, and what follows in the
file up to a window. A program that only reads headers (names and shapes of all models in a folder) touches no tensor, and nothing is
fetched for it.

The order is from safetensors' format: 8 bytes of length, a JSON header, then the tensors. A header that cannot be read so is nobody's
error here. Asking is done by two threads beside the readers; what they cannot get, the readers will be told of.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ckptstore.errors import CkptStoreError
from ckptstore.safetensors_format import parse_header
from ckptstore_client.mount.handles import OpenFile
from ckptstore_client.mount.source import Copy

_log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
#: Asked for at once, so that readers' own wants are not behind a huge one.
STEP_BYTES = 32 << 20
#: How far behind a touched tensor's end is read ahead.
WINDOW_BYTES = 128 << 20
MAX_HEADER_BYTES = 64 << 20
KEPT_FILES = 256


@dataclass(slots=True)
class _Layout:
    starts: list[int]
    ends: list[int]
    #: tensors that were asked for
    wanted: set[int] = field(default_factory=set)


class TensorAhead:
    def __init__(self, arrive: Callable[[OpenFile, int, int], Copy]) -> None:
        self._arrive = arrive
        self._lock = threading.Lock()
        self._layouts: OrderedDict[int, _Layout | None] = OrderedDict()
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="ckptstore-ahead")

    def touched(self, file: OpenFile, copy: Copy, offset_bytes: int, data: bytes | memoryview) -> None:
        """These bytes were read from a copy that is not whole."""
        if not file.node.path.endswith(SUFFIX):
            return
        with self._lock:
            layout = self._layouts.get(file.node.id)
            known = file.node.id in self._layouts
        if not known and offset_bytes == 0 and len(data) >= 8:
            self._learn(file, copy, int.from_bytes(data[:8], "little"), len(data))
        elif layout is not None:
            for start, size_bytes in self._next_wants(layout, offset_bytes, len(data)):
                self._executor.submit(self._fetch, file, start, size_bytes)

    def _learn(self, file: OpenFile, copy: Copy, header_bytes: int, at_hand_bytes: int) -> None:
        if not 0 < header_bytes <= min(MAX_HEADER_BYTES, file.node.size_bytes - 8):
            return
        with self._lock:
            self._layouts[file.node.id] = None
            if len(self._layouts) > KEPT_FILES:
                self._layouts.popitem(last=False)
        self._executor.submit(self._parse, file, header_bytes)

    def _parse(self, file: OpenFile, header_bytes: int) -> None:
        try:
            copy = self._arrive(file, 0, 8 + header_bytes)
            if copy.fd < 0:
                return
            header = parse_header(os.pread(copy.fd, 8 + header_bytes, 0), file.node.size_bytes)
        except (CkptStoreError, OSError) as error:
            _log.debug("no read-ahead for %s: %s", file.node.path, error)
            return
        spans = sorted((8 + header_bytes + entry.start, 8 + header_bytes + entry.end) for entry in header.tensors.values())
        with self._lock:
            self._layouts[file.node.id] = _Layout([start for start, _ in spans], [end for _, end in spans])

    def _next_wants(self, layout: _Layout, offset_bytes: int, size_bytes: int) -> list[tuple[int, int]]:
        with self._lock:
            first = max(0, bisect_right(layout.starts, offset_bytes + size_bytes - 1) - 1)
            if not layout.starts or layout.ends[first] <= offset_bytes:
                return []
            until = layout.ends[first] + WINDOW_BYTES
            wants = []
            for index in range(first, len(layout.starts)):
                if index > first and layout.starts[index] >= until:
                    break
                if index not in layout.wanted:
                    layout.wanted.add(index)
                    wants.append((layout.starts[index], layout.ends[index] - layout.starts[index]))
            return _joined(wants)

    def _fetch(self, file: OpenFile, start: int, size_bytes: int) -> None:
        with contextlib.suppress(CkptStoreError):
            for offset in range(start, start + size_bytes, STEP_BYTES):
                if file.opens <= 0 or file.copy is None or file.copy.whole:
                    return
                self._arrive(file, offset, min(STEP_BYTES, start + size_bytes - offset))

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbours in one piece: a model has thousands of small tensors."""
    joined: list[tuple[int, int]] = []
    for start, size_bytes in spans:
        if joined and start <= joined[-1][0] + joined[-1][1] + 4096:
            joined[-1] = joined[-1][0], start + size_bytes - joined[-1][0]
        else:
            joined.append((start, size_bytes))
    return joined
