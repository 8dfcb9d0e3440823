"""How do CUDA tensors reach a segment without stalling the device longer than the copy?

The destination pages are registered with CUDA once (pinned, in chunks, since registering tens of GiB at once holds a driver lock
for seconds), so that the copies run by DMA; they are queued on a side stream that waits for the present stream, and one event at
the end is waited for. Memory that cannot be registered is still copied, more slowly, by CUDA's own staging.

This module was written without a CUDA device at hand and has not been run on one: it is kept apart, and the rest of the client
does not depend on how it does this. The registry of pinned ranges belongs to the process and is guarded by a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Bytes registered by one call. A guess at a bearable pause; to be measured where a device is.
REGISTER_CHUNK_BYTES = 256 * 1024 * 1024
_ALREADY_REGISTERED = 712  # cudaErrorHostMemoryAlreadyRegistered
_lock = threading.Lock()
_registered: dict[int, int] = {}
_streams: dict[int, Any] = {}


def register_pages(address: int, size_bytes: int) -> bool:
    """Pin a mapped segment for DMA; False if CUDA refuses, which costs speed only. Repeating it is free."""
    import torch

    with _lock:
        if _registered.get(address, 0) >= size_bytes:
            return True
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        for start in range(0, size_bytes, REGISTER_CHUNK_BYTES):
            length = min(REGISTER_CHUNK_BYTES, size_bytes - start)
            status = int(runtime.cudaHostRegister(address + start, length, 0))
            if status not in (0, _ALREADY_REGISTERED):
                return False
        _registered[address] = size_bytes
        return True


def unregister_pages(address: int) -> None:
    """Before the segment is unmapped."""
    with _lock:
        size_bytes = _registered.pop(address, 0)
    if size_bytes:
        import torch

        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        for start in range(0, size_bytes, REGISTER_CHUNK_BYTES):
            runtime.cudaHostUnregister(address + start)


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
