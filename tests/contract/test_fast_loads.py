"""New tensors, mapped segments and direct reads: what makes loads fast must not show in what they give."""

from __future__ import annotations

import ctypes
import gc
import io
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckptstore.errors import ChecksumMismatch
from ckptstore.safetensors_format import parse_header
from ckptstore.wire import FileInfo
from ckptstore_client import arenas
from ckptstore_client.loading import load_state
from ckptstore_client.reading import MAX_READERS, Piece, VerifiedObject
from ckptstore_client.replicas import MappedReplica, OpenFile, Replica, SegmentMapping, SegmentMappings
from ckptstore_client.staging import Staging
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.private_memory import FreshMemory, private_memory
from ckptstore_tiers.sources import ALIGNMENT_BYTES, address_of
from tests.until import until

MIB = 1 << 20


class OneFile:
    """A file as the only replica."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
        return ["nvme"]

    def open(self, object_id: str, tier: str) -> Replica:
        return OpenFile(os.open(self.place, os.O_RDONLY), tier, size_bytes=self.place.stat().st_size)

    def stream(self, object_id: str, *, recall: bool = True) -> Replica:
        pytest.fail("the file itself is whole")

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        pytest.fail("the file itself is whole")


class Damaged(OneFile):
    """A damaged file, which is also what the stream gives."""

    def stream(self, object_id: str, *, recall: bool = True) -> Replica:
        return self.open(object_id, "stream")

    def report_damage(self, object_id: str, tier: str, block: int) -> None:
        """As expected."""


def is_resident(memory: memoryview) -> bool:
    """Whether each page has been touched. Source: mincore(2)."""
    pages = -(-len(memory) // mmap.PAGESIZE)
    held = (ctypes.c_ubyte * pages)()
    address = address_of(memory)
    assert ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), held) == 0
    return all(held)


def file_of(state: Any) -> bytes:
    staging = Staging()
    plan = staging.plan(state)
    data = bytearray(plan.size_bytes)
    staging.copy(plan, memoryview(data))
    return bytes(data)


def stored(state: Any, place: Path) -> tuple[FileInfo, OneFile]:
    data = file_of(state)
    place.write_bytes(data)
    digests = BlockDigests.of(data)
    file = FileInfo(object_id="0" * 32, name="part", rank=0, size_bytes=len(data), digest=digests.root, blocks=digests.blocks)
    return file, OneFile(place)


def load(state: Any, place: Path, **options: Any) -> Any:
    file, source = stored(state, place)
    with VerifiedObject(file, source, operation="load", path="/a") as reader:
        return load_state(reader, options.get("into"), options.get("only"))


def large_state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    return {
        "model": {f"w{i}": torch.randn(3 * MIB // 4 + 16 * i, generator=generator) for i in range(5)},
        "half": torch.randn(MIB, generator=generator).to(torch.bfloat16),
        "array": np.random.default_rng(7).standard_normal(MIB // 2),
        "flags": torch.rand(MIB + 3, generator=generator) > 0.5,
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3.0),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, np.ndarray):
        return bool(left.dtype == right.dtype and np.array_equal(left, right))
    return left.dtype is right.dtype and torch.equal(left, right)


def test_new_tensors_hold_what_was_saved_whatever_arena_they_lie_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arenas, "ARENA_BYTES", 5 * MIB)
    state = large_state()
    assert same(load(state, tmp_path / "part"), state)
    assert same(load(state, tmp_path / "part", only="model/*"), {"model": state["model"]})


def test_a_new_tensor_has_a_storage_of_its_own(tmp_path: Path) -> None:
    loaded = load(large_state(), tmp_path / "part")
    for tensor in [*loaded["model"].values(), loaded["half"], loaded["flags"]]:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert not tensor._is_view()
        buffer = io.BytesIO()
        torch.save(tensor, buffer)
        assert buffer.tell() < tensor.nbytes + 4096  # and not its neighbours too


def test_new_tensors_can_be_trained_written_and_kept_alone(tmp_path: Path) -> None:
    state = large_state()
    kept = load(state, tmp_path / "part")["model"]["w1"]
    gc.collect()
    assert torch.equal(kept, state["model"]["w1"])  # its arena lives as long as it does
    parameter = torch.nn.Parameter(kept)
    (parameter * 2).sum().backward()
    torch.optim.SGD([parameter], lr=0.5).step()
    assert torch.equal(parameter.detach(), state["model"]["w1"] - 1.0)


def test_new_tensors_of_a_load_in_inference_mode_are_ordinary_ones(tmp_path: Path) -> None:
    with torch.inference_mode():
        loaded = load(large_state(), tmp_path / "part")
    assert not loaded["half"].is_inference()
    loaded["half"].add_(1)


def test_an_arena_ends_so_that_a_kept_tensor_keeps_a_bounded_neighbourhood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arenas, "ARENA_BYTES", 4 * MIB)
    header = {f"w{i}": torch.zeros(2 * MIB, dtype=torch.uint8) for i in range(6)}
    data = file_of(header)
    parsed = parse_header(data, len(data))
    made = list(arenas.arenas(sorted(parsed.tensors.values(), key=lambda entry: entry.start), parsed.data_start))
    assert [len(arena.entries) for arena in made] == [2, 2, 2]
    for arena in made:
        start = parsed.data_start + arena.base
        assert start % ALIGNMENT_BYTES == 0
        assert address_of(arena.memory) % ALIGNMENT_BYTES == 0


def test_a_file_is_read_into_few_buffers_and_one_copy_puts_each_block_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that a device has written before, for new tensors as for those that exist."""
    read_into: list[int] = []
    plain = OpenFile.read

    def read(self: OpenFile, offset: int, views: Any, *, again: bool) -> None:
        read_into.extend(address_of(view) for view in views)
        plain(self, offset, views, again=again)

    monkeypatch.setattr(OpenFile, "read", read)
    state = {"w": torch.arange(40 * MIB, dtype=torch.float32)}
    for into in (None, {"w": torch.zeros(40 * MIB)}):
        read_into.clear()
        assert same(load(state, tmp_path / "part", into=into), state)
        blocks = -(-(tmp_path / "part").stat().st_size // BLOCK_BYTES)
        assert blocks > MAX_READERS and len(read_into) == blocks and len(set(read_into)) <= MAX_READERS


def test_what_is_not_what_was_saved_never_reaches_a_tensor(tmp_path: Path) -> None:
    place = tmp_path / "part"
    file, _ = stored({"w": torch.ones(4 * MIB)}, place)
    with open(place, "r+b") as opened:
        opened.seek(2 * BLOCK_BYTES + 5)
        opened.write(b"wrong")
    target = {"w": torch.full((4 * MIB,), 7.0)}
    with VerifiedObject(file, Damaged(place), operation="load", path="/a") as reader, pytest.raises(ChecksumMismatch, match="block 2"):
        load_state(reader, target, None)
    assert set(target["w"].unique().tolist()) <= {1.0, 7.0}


def test_pages_of_new_tensors_are_made_ahead_and_no_byte_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first read waits, all of the new memory is touched; what is in it by then stays."""
    fresh = [private_memory(size_bytes) for size_bytes in (40 * MIB, 4 * MIB + 123)]
    fresh[0][17 * MIB] = 5
    with FreshMemory(fresh) as memory:
        assert not any(is_resident(view) for view in fresh[1:]), "nobody has said that it is waited for"
        memory.touch()
        memory.touch()
        until("all pages are there", lambda: all(is_resident(view) for view in fresh))
    assert fresh[0][17 * MIB] == 5 and not any(fresh[1]) and sum(fresh[0][16 * MIB : 18 * MIB]) == 5
    with pytest.raises(ValueError, match="mine"), FreshMemory([private_memory(512 * MIB)]) as memory:
        memory.touch()
        raise ValueError("mine")  # and nobody is left behind
    assert not [thread for thread in threading.enumerate() if thread.name == "ckptstore-touch"]


def test_the_first_block_is_read_once_for_header_and_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets: list[int] = []
    plain = OpenFile.read

    def read(self: OpenFile, offset: int, views: Any, *, again: bool) -> None:
        offsets.append(offset)
        plain(self, offset, views, again=again)

    monkeypatch.setattr(OpenFile, "read", read)
    load(large_state(), tmp_path / "part")
    assert sorted(offsets) == sorted(set(offsets))


def memfd(data: bytes) -> int:
    fd = os.memfd_create("segment")
    os.write(fd, data)
    return fd


def test_a_mapping_is_kept_for_the_segment_and_never_taken_for_another() -> None:
    mappings = SegmentMappings()
    first, second = memfd(b"one" * 5000), memfd(b"two" * 5000)
    again = os.open(f"/proc/self/fd/{first}", os.O_RDONLY)
    try:
        kept = mappings.mapping(first)
        assert mappings.mapping(again) is kept  # another description of the same memory
        assert mappings.mapping(second) is not kept
        assert bytes(mappings.mapping(second).view[:3]) == b"two"
        assert kept.view.readonly
    finally:
        for fd in (first, second, again):
            os.close(fd)


def test_bytes_behind_the_object_in_its_segment_are_not_read() -> None:
    fd = memfd(bytes(3 * mmap.PAGESIZE))
    replica = MappedReplica(SegmentMapping(fd), size_bytes=5000)
    os.close(fd)
    replica.read(0, [memoryview(bytearray(5000))], again=False)
    with pytest.raises(ChecksumMismatch):
        replica.read(4096, [memoryview(bytearray(905))], again=False)


def test_a_segment_that_changes_while_it_is_copied_never_gives_a_mixture() -> None:
    """What was copied is what is verified: a byte that changes after the copy does no harm, one that changed before it is noticed."""
    data = os.urandom(2 * BLOCK_BYTES)
    fd = memfd(data)
    digests = BlockDigests.of(data)

    class Segment(OneFile):
        def __init__(self) -> None:
            self.reports: list[tuple[str, int]] = []

        def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
            return ["memory", "nvme"]

        def open(self, object_id: str, tier: str) -> Replica:
            if tier == "memory":
                os.pwrite(fd, b"reused", BLOCK_BYTES + 77)
                return MappedReplica(SegmentMapping(fd), size_bytes=len(data))
            good = memfd(data)
            return OpenFile(good, tier, size_bytes=len(data))

        def report_damage(self, object_id: str, tier: str, block: int) -> None:
            self.reports.append((tier, block))

    file = FileInfo(object_id="0" * 32, name="part", rank=0, size_bytes=len(data), digest=digests.root, blocks=digests.blocks)
    target = bytearray(len(data))
    source = Segment()
    with VerifiedObject(file, source, operation="load", path="/a") as reader:
        reader.fill([Piece(0, len(data), address_of(memoryview(target)))])
    os.close(fd)
    assert bytes(target) == data
    assert source.reports == [("memory", 1)]


# --- mapped ------------------------------------------------------------------------------------------------------------------


def mapped(state: Any, place: Path) -> Any:
    file, source = stored(state, place)
    with VerifiedObject(file, source, operation="load", path="/a") as reader:
        return load_state(reader, None, None, mapped=True)


def test_a_mapped_load_gives_the_state_and_outlives_its_file(tmp_path: Path) -> None:
    state = large_state()
    loaded = mapped(state, tmp_path / "part")
    (tmp_path / "part").unlink()
    gc.collect()
    assert same(loaded, state)


def test_a_mapped_load_reads_nothing_of_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets: list[int] = []
    plain = OpenFile.read

    def read(self: OpenFile, offset: int, views: Any, *, again: bool) -> None:
        offsets.append(offset)
        plain(self, offset, views, again=again)

    monkeypatch.setattr(OpenFile, "read", read)
    loaded = mapped({"w": torch.arange(5 * MIB, dtype=torch.float32)}, tmp_path / "part")
    assert offsets == [0]  # the header's block
    assert torch.equal(loaded["w"], torch.arange(5 * MIB, dtype=torch.float32))


def test_writing_to_a_mapped_tensor_changes_neither_file_nor_other_loads(tmp_path: Path) -> None:
    state = large_state()
    first = mapped(state, tmp_path / "part")
    before = (tmp_path / "part").read_bytes()
    first["half"].zero_()
    first["array"][:] = 7
    assert (tmp_path / "part").read_bytes() == before
    assert same(load(state, tmp_path / "part"), state)


def test_a_mapped_load_with_no_file_to_map_reads_the_bytes(tmp_path: Path) -> None:
    state = large_state()
    data = file_of(state)
    digests = BlockDigests.of(data)
    file = FileInfo(object_id="0" * 32, name="part", rank=0, size_bytes=len(data), digest=digests.root, blocks=digests.blocks)

    class OnlyMemory(OneFile):
        def openable(self, object_id: str, *, recall: bool = True) -> list[str]:
            return ["memory"]

        def open(self, object_id: str, tier: str) -> Replica:
            fd = memfd(data)
            try:
                return MappedReplica(SegmentMapping(fd), size_bytes=len(data))
            finally:
                os.close(fd)

        def stream(self, object_id: str, *, recall: bool = True) -> Replica:
            return Stream(data)

    class Stream:
        tier, bounces = "stream", True

        def __init__(self, data: bytes) -> None:
            self.data = data

        def read(self, offset: int, views: Any, *, again: bool) -> None:
            for view in views:
                view[:] = self.data[offset : offset + len(view)]

        def close(self) -> None:
            """Nothing is open."""

    with VerifiedObject(file, OnlyMemory(tmp_path), operation="load", path="/a") as reader:
        assert same(load_state(reader, None, None, mapped=True), state)
