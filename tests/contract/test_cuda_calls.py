"""What is asked of CUDA, and in which order, told by stand-ins: there may be no device here. `test_cuda.py` asks a device where one is."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ckptstore_client import cuda
from ckptstore_client.frameworks import framework
from ckptstore_client.piece_copies import PIECE_BYTES

MIB = 1 << 20


class Runtime:
    """The CUDA runtime: remembers what is registered, and refuses from the `most`-th registration on."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, start: int, length: int, flags: int) -> int:
        if len(self.registered) == self.most:
            return 2  # out of memory
        assert not any(first < start + length and start < first + size for first, size in self.registered.items()), "registered twice"
        self.registered[start] = length
        return 0

    def cudaHostUnregister(self, start: int) -> int:
        del self.registered[start]
        return 0


@pytest.fixture
def segment() -> memoryview:
    return memoryview(mmap.mmap(-1, 5 * MIB))


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_segment_is_registered_chunk_by_chunk_and_unregistered_as_far_as_it_was(
    segment: memoryview, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    runtime = Runtime(most)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(cuda, "REGISTER_CHUNK_BYTES", 2 * MIB)
    pages = cuda.PinnedPages(segment)
    start = torch.frombuffer(segment, dtype=torch.uint8).data_ptr()
    expected = {start: 2 * MIB, start + 2 * MIB: 2 * MIB, start + 4 * MIB: MIB}
    assert runtime.registered == dict(list(expected.items())[:most]), "to its very end, in order, or until it is refused"
    pages.close()
    assert runtime.registered == {}
    pages.close()


class Told:
    """Streams and events that say what is asked of them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.present = "the caller's stream"

    def event(self) -> Any:
        told, name = self, f"event {sum(call.startswith('new event') for call in self.calls)}"
        self.calls.append(f"new {name}")

        class Event:
            def record(self, stream: Any) -> None:
                told.calls.append(f"{name} recorded on {stream}")

            def synchronize(self) -> None:
                told.calls.append(f"{name} waited for")

            def __str__(self) -> str:
                return name

        return Event()

    def stream(self, index: int) -> Any:
        told = self

        class Stream:
            def wait_event(self, event: Any) -> None:
                told.calls.append(f"side stream waits for {event}")

            def __str__(self) -> str:
                return "side stream"

        return Stream()

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.present = str(stream)
        yield
        self.present = "the caller's stream"


class OnDevice(torch.Tensor):
    """A tensor that says that it is on the first device."""

    is_cuda = True  # type: ignore[assignment]
    device = torch.device("cuda", 0)  # type: ignore[assignment]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    said = Told()
    monkeypatch.setattr(torch.cuda, "Event", said.event)
    monkeypatch.setattr(torch.cuda, "Stream", said.stream)
    monkeypatch.setattr(torch.cuda, "stream", said.on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: f"stream of device {index}")
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: said.calls.append(f"source is in use on {stream}"))
    monkeypatch.setattr(cuda, "_streams", {})
    plain = torch._foreach_copy_

    def copy(destinations: Any, sources: Any, *, non_blocking: bool) -> None:
        said.calls.append(f"{len(sources)} copied on {said.present}{', not waited for' if non_blocking else ''}")
        plain(destinations, [source.as_subclass(torch.Tensor) for source in sources])

    monkeypatch.setattr(torch, "_foreach_copy_", copy)
    return said


def test_a_copy_begins_at_the_moment_of_the_save_and_is_whole_when_it_returns(told: Told) -> None:
    sources = [torch.arange(3.0).as_subclass(OnDevice), torch.arange(5.0).as_subclass(OnDevice)]
    moment = cuda.Moment(sources)
    assert told.calls == ["new event 0", "event 0 recorded on stream of device 0"]
    told.calls.append("the caller queues forward and backward")
    destinations = [torch.zeros(3), torch.zeros(5)]
    cuda.copy_from_cuda(list(zip(destinations, sources, strict=True)), moment)
    assert told.calls[3:] == [
        "side stream waits for event 0",
        "2 copied on side stream, not waited for",
        "source is in use on side stream",
        "source is in use on side stream",
        "new event 1",
        "event 1 recorded on side stream",
        "event 1 waited for",
    ]
    assert [destination.tolist() for destination in destinations] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_without_a_moment_it_is_now(told: Told) -> None:
    cuda.copy_from_cuda([(torch.zeros(3), torch.arange(3.0).as_subclass(OnDevice))])
    assert told.calls[:3] == ["new event 0", "event 0 recorded on stream of device 0", "side stream waits for event 0"]


def test_what_goes_to_a_device_is_never_written_by_the_processor() -> None:
    """Destinations without memory here: the C library's copy, which takes large tensors on the CPU, would end the process."""
    sources = [torch.ones(PIECE_BYTES // 4 + 1), torch.ones(3)]
    framework("$torch").copy([torch.empty_like(source, device="meta") for source in sources], sources)
    assert all(source.eq(1).all() for source in sources)
