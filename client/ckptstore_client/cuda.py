"""How do CUDA tensors reach a segment without stalling the device longer than the copy?

The destination pages are registered with CUDA once (pinned, in chunks, since registering tens of GiB at once holds a driver lock
for seconds), so that the copies run by DMA; they are queued on a side stream, one batch per device, and one event at the end is waited
for. The side stream waits for an event that was recorded on the caller's stream at the time of the save (`Moment`): a guarded copy runs
in another thread, which has another present stream, while the caller already queues forward and backward behind it. Memory that cannot
be registered is still copied, more slowly, by CUDA's own staging.

This module was written without a CUDA device at hand and has not been run on one: it is kept apart, and the rest of the client
does not depend on how it does this. The side streams belong to the process and are guarded by a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
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


class Moment:
    """This point of the caller's streams, on every device that holds some of the tensors."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        import torch

        self._events: dict[int, Any] = {}
        for index in {tensor.device.index for tensor in tensors if tensor.is_cuda}:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(index))
            self._events[index] = event

    def await_on(self, stream: Any, index: int) -> None:
        """Have the stream wait for it; the host does not."""
        stream.wait_event(self._events[index])


def copy_from_cuda(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], moment: Moment | None = None) -> None:
    """Copy each (host destination, CUDA source) as it was at the moment (None: now); at return all bytes are in the destinations."""
    import torch

    moment = Moment(source for _, source in pairs) if moment is None else moment
    events = []
    for index in {source.device.index for _, source in pairs}:
        here = [(destination, source) for destination, source in pairs if source.device.index == index]
        stream = _side_stream(index)
        moment.await_on(stream, index)
        with torch.cuda.stream(stream):
            torch._foreach_copy_([destination for destination, _ in here], [source for _, source in here], non_blocking=True)
            for _, source in here:
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
