"""How do CUDA tensors reach a segment without stalling the device longer than the copy?

The destination pages are registered with CUDA once (pinned, in chunks, since registering tens of GiB at once holds a driver lock
for seconds), so that the copies run by DMA; they are queued on a side stream that waits for the present stream, and one event at
the end is waited for. Memory that cannot be registered is still copied, more slowly, by CUDA's own staging.

This module was written without a CUDA device at hand and has not been run on one: it is kept apart, and the rest of the client
does not depend on how it does this. The side streams belong to the process and are guarded by a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Bytes registered by one call. A guess at a bearable pause; to be measured where a device is.
REGISTER_CHUNK_BYTES = 256 * 1024 * 1024
_lock = threading.Lock()
_streams: dict[int, Any] = {}


class PinnedPages:
    """A mapped segment, registered for DMA for as long as this object is open. It keeps the mapping alive: pages that stay registered
    after they were unmapped would send a later copy into memory that is no longer ours.

    Where CUDA refuses (a limit on locked memory, say), copies still work, more slowly.
    """

    def __init__(self, segment: memoryview) -> None:
        import torch

        self._segment: memoryview | None = segment
        self._registered: list[int] = []
        start = torch.frombuffer(segment, dtype=torch.uint8).data_ptr()
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        for offset in range(0, len(segment), REGISTER_CHUNK_BYTES):
            length = min(REGISTER_CHUNK_BYTES, len(segment) - offset)
            if int(runtime.cudaHostRegister(start + offset, length, 0)) != 0:
                return
            self._registered.append(start + offset)

    def close(self) -> None:
        """Unregister. The caller sees to it that no copy is under way: `copy_from_cuda` returns only when its copies are done."""
        import torch

        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        while self._registered:
            runtime.cudaHostUnregister(self._registered.pop())
        self._segment = None


def copy_from_cuda(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy each (host destination, CUDA source); at return all bytes are in the destinations."""
    import torch

    events = []
    for device in {source.device for _, source in pairs}:
        with torch.cuda.device(device):
            stream = _side_stream(device.index)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for destination, source in pairs:
                    if source.device == device:
                        destination.copy_(source, non_blocking=True)
                        source.record_stream(stream)
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(stream)
                events.append(event)
    for event in events:
        event.synchronize()


def _side_stream(index: int) -> Any:
    import torch

    with _lock:
        if index not in _streams:
            _streams[index] = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
        return _streams[index]
