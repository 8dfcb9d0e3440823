"""What a reader gets from the cache: the right bytes, each fetched once, as soon as they are there, whatever the disk says."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptstore import failpoints
from ckptstore.errors import ChecksumMismatch, NotFound, StaleVersion, TierFull, TierUnavailable
from ckptstore_server.readers.cache import content as contents
from ckptstore_server.readers.cache.block_file import BlockFile
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.cache_bed import CacheBed, StreamingUpstream, Upstream, cache_bed, content
from tests.until import until

SIZE_BYTES = 3 * BLOCK_BYTES + 1234
PATH = "/models/m/weights.bin"


@pytest.fixture(params=[Upstream, StreamingUpstream], ids=["block by block", "in runs"])
def bed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CacheBed]:
    with cache_bed(tmp_path / "cache", request.param()) as made:
        made.upstream.write(PATH, content(1, SIZE_BYTES))
        yield made


def wait_whole(bed: CacheBed, path: str = PATH) -> None:
    until("the copy is whole", lambda: bed.open(path).whole)


def flip_bit(place: Path, offset: int) -> None:
    with place.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


# --- fetching -------------------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_from_its_origin_once_and_from_the_disk_after_that(bed: CacheBed) -> None:
    assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.upstream.read_bytes == SIZE_BYTES


def test_sixteen_readers_of_one_cold_file_read_the_origin_once(bed: CacheBed) -> None:
    with ThreadPoolExecutor(16) as readers:
        found = list(readers.map(lambda _: bed.read(PATH), range(16)))
    assert set(found) == {bed.upstream.files[PATH]}
    assert bed.upstream.read_bytes == SIZE_BYTES


def test_a_whole_copy_is_an_ordinary_file_with_the_bytes_of_its_version(bed: CacheBed) -> None:
    bed.read(PATH)
    wait_whole(bed)
    _, fd = bed.open(PATH).descriptor()
    with os.fdopen(fd, "rb") as file:
        assert file.read() == bed.upstream.files[PATH]


def test_a_copy_is_on_the_disk_when_the_disk_has_taken_all_of_it_and_not_before(bed: CacheBed, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may_go, sync = threading.Event(), threading.Event(), BlockFile.sync

    def held_back(file: BlockFile) -> None:
        asked.set()
        assert may_go.wait(60)
        sync(file)

    monkeypatch.setattr(BlockFile, "sync", held_back)
    bed.read(PATH)
    assert asked.wait(60)
    copy = bed.open(PATH)
    with ThreadPoolExecutor(1) as waiting:
        on_disk = waiting.submit(lambda: (bed.run(copy.on_disk()), copy.whole)[1])
        assert not copy.whole
        may_go.set()
        assert on_disk.result(60)


def test_a_reader_is_answered_when_its_own_block_is_there_and_not_later(bed: CacheBed) -> None:
    copy = bed.open(PATH)
    copy_id, fd = copy.descriptor()
    copy.wait(copy_id, 2 * BLOCK_BYTES + 5, 10)
    assert os.pread(fd, 10, 2 * BLOCK_BYTES + 5) == bed.upstream.files[PATH][2 * BLOCK_BYTES + 5 :][:10]
    os.close(fd)
    assert not copy.whole
    assert bed.upstream.reads == {(copy.file.version, 2): 1}


def test_a_read_that_somebody_waits_for_goes_before_what_was_only_foreseen(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", fetch_threads=1) as bed:
        bed.upstream.write(PATH, content(1, 8 * BLOCK_BYTES))
        bed.upstream.gate = threading.Event()
        copy = bed.open(PATH)
        foreseen = [future for index in range(7) for future in copy.fetch([index])]
        with ThreadPoolExecutor(1) as reader:
            urgent = reader.submit(bed.block, copy, 7)
            until("the reader waits", lambda: copy.busy and 7 in copy._flights)
            bed.upstream.gate.set()
            urgent.result(60)
        for future in foreseen:
            future.result(60)
        assert list(bed.upstream.reads).index((copy.file.version, 7)) <= 1  # one was in the air already


def test_small_random_reads_fetch_what_they_touch(bed: CacheBed) -> None:
    copy = bed.open(PATH)
    copy_id, fd = copy.descriptor()
    os.close(fd)
    for block in (3, 1):
        copy.wait(copy_id, block * BLOCK_BYTES + 600, 400)
    assert sorted(block for _, block in bed.upstream.reads) == [1, 3]


def test_what_is_read_in_order_comes_in_runs_and_each_block_as_soon_as_it_is_there(tmp_path: Path) -> None:
    upstream, blocks = StreamingUpstream(), 40
    upstream.write(PATH, data := content(3, blocks * BLOCK_BYTES - 77))
    with cache_bed(tmp_path / "cache", upstream) as bed:
        copy = bed.open(PATH)
        copy_id, fd = copy.descriptor()
        with os.fdopen(fd, "rb") as file:
            for index in range(blocks):
                copy.wait(copy_id, index * BLOCK_BYTES, BLOCK_BYTES)
                assert os.pread(file.fileno(), BLOCK_BYTES, index * BLOCK_BYTES) == data[index * BLOCK_BYTES :][:BLOCK_BYTES]
        assert upstream.read_bytes == len(data)
        assert {len(run) for run in upstream.requests} >= {4}
        single = blocks - sum(map(len, upstream.requests))
        assert len(upstream.requests) + single < blocks / 2


def test_a_run_that_breaks_leaves_what_came_and_the_rest_is_fetched_when_it_is_asked_for(tmp_path: Path) -> None:
    upstream = StreamingUpstream()
    upstream.write(PATH, data := content(4, 8 * BLOCK_BYTES))
    upstream.broken_at = 2
    with cache_bed(tmp_path / "cache", upstream) as bed:
        copy = bed.open(PATH)
        coming = copy.fetch(range(4))
        assert [future.result(60) for future in coming[:2]] == [None, None]
        for future in coming[2:]:
            with pytest.raises(TierUnavailable, match="the connection broke"):
                future.result(60)
        assert copy.there_bytes == 2 * BLOCK_BYTES
        assert bed.read(PATH) == data
        assert upstream.read_bytes == len(data)


def test_a_damaged_block_from_the_origin_of_an_own_object_is_fetched_again(bed: CacheBed) -> None:
    bed.upstream.write(PATH, content(2, SIZE_BYTES), own=True)
    bed.upstream.spoil = {1}
    assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.upstream.reads[bed.upstream.version_of(PATH), 1] == 2


def test_an_own_object_whose_origin_gives_only_wrong_bytes_is_an_error_and_not_kept(bed: CacheBed) -> None:
    version = bed.upstream.write(PATH, content(2, SIZE_BYTES), own=True)
    bed.upstream.own[version] = type(bed.upstream.own[version]).of(content(3, SIZE_BYTES))
    with pytest.raises(ChecksumMismatch, match="block 0"):
        bed.read(PATH)
    assert bed.open(PATH).kept_bytes == 0


def test_an_empty_file_is_whole_at_once(bed: CacheBed) -> None:
    bed.upstream.write("/empty", b"")
    assert bed.open("/empty").whole
    assert bed.read("/empty") == b""


# --- versions -------------------------------------------------------------------------------------------------------------------------


def test_a_new_version_is_another_copy_and_the_old_one_reads_on_until_its_bytes_are_gone(bed: CacheBed) -> None:
    old = bed.open(PATH)
    first = bed.block(old, 0)
    bed.upstream.write(PATH, content(9, SIZE_BYTES))
    assert bed.read(PATH) == content(9, SIZE_BYTES)
    assert bed.block(old, 0) == first
    with pytest.raises(StaleVersion):
        bed.block(old, 3)


def test_a_version_that_is_whole_here_can_be_opened_when_its_path_stands_for_another(bed: CacheBed) -> None:
    version, data = bed.upstream.version_of(PATH), bed.upstream.files[PATH]
    bed.read(PATH)
    bed.upstream.write(PATH, content(9, SIZE_BYTES))
    assert bed.read(PATH, version) == data
    assert bed.read(PATH) == content(9, SIZE_BYTES)


def test_a_version_that_is_not_whole_here_and_gone_upstream_is_stale(bed: CacheBed) -> None:
    copy = bed.open(PATH)
    bed.block(copy, 0)
    bed.upstream.write(PATH, content(9, SIZE_BYTES))
    with pytest.raises(StaleVersion):
        bed.open(PATH, copy.file.version)


def test_with_the_origin_down_what_is_whole_here_is_served_and_the_rest_is_an_error(bed: CacheBed) -> None:
    bed.upstream.write("/models/m/other", content(5, SIZE_BYTES))
    bed.block(bed.open("/models/m/other"), 0)
    bed.read(PATH)
    bed.upstream.down = True
    assert bed.read(PATH) == bed.upstream.files[PATH]
    with pytest.raises(TierUnavailable):
        bed.open("/models/m/other")


# --- room -----------------------------------------------------------------------------------------------------------------------------


def test_the_limit_holds_and_files_go_whole(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=12 * BLOCK_BYTES) as bed:
        for number in range(5):
            bed.upstream.write(f"/m/{number}", content(number, 4 * BLOCK_BYTES))
            assert bed.read(f"/m/{number}") == bed.upstream.files[f"/m/{number}"]
            assert bed.cache.shelf.held_bytes <= 12 * BLOCK_BYTES
        assert len(bed.data_files()) == 3
        assert all(held.size_bytes == 4 * BLOCK_BYTES for held in bed.cache.shelf.held())


def test_who_has_an_evicted_file_open_reads_on(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=4 * BLOCK_BYTES) as bed:
        data = content(1, 4 * BLOCK_BYTES)
        bed.upstream.write("/a", data)
        bed.upstream.write("/b", content(2, 4 * BLOCK_BYTES))
        bed.read("/a")
        _, fd = bed.open("/a").descriptor()
        bed.read("/b")
        assert [held.file.path for held in bed.cache.shelf.held()] == ["/b"]
        assert os.pread(fd, len(data), 0) == data
        os.close(fd)


def test_what_was_on_its_way_to_an_evicted_file_is_not_counted_for_its_successor(bed: CacheBed) -> None:
    bed.upstream.gate = threading.Event()
    old = bed.open(PATH)
    coming = old.fetch(range(4))
    assert bed.cache.evict(lambda held: True)
    new = bed.open(PATH)
    assert new is not old
    bed.upstream.gate.set()
    for future in coming:
        future.result(60)
    assert bed.cache.shelf.held_bytes == new.kept_bytes
    assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.cache.shelf.held_bytes == SIZE_BYTES == new.kept_bytes


def test_a_need_of_a_copy_that_gave_way_says_open_again(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=4 * BLOCK_BYTES) as bed:
        bed.upstream.write("/a", content(1, 4 * BLOCK_BYTES))
        bed.upstream.write("/b", content(2, 4 * BLOCK_BYTES))
        copy = bed.open("/a")
        copy_id, fd = copy.descriptor()
        os.close(fd)
        copy.wait(copy_id, 0, 10)
        bed.read("/b")
        with pytest.raises(NotFound, match="open the file again"):
            bed.run(bed.cache.find(copy.file.version))
        again = bed.open("/a")
        with pytest.raises(NotFound, match="open the file again"):
            again.wait(copy_id, 0, 10)


def test_a_file_larger_than_the_cache_is_streamed_and_right(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=2 * BLOCK_BYTES) as bed:
        bed.upstream.write(PATH, content(1, SIZE_BYTES))
        copy = bed.open(PATH)
        assert copy.streamed
        assert bed.read(PATH) == bed.upstream.files[PATH]
        with pytest.raises(TierFull):
            copy.descriptor()
        assert bed.data_files() == []


def test_a_stream_begins_when_its_first_block_is_there(bed: CacheBed) -> None:
    bed.upstream.gate, bed.upstream.gate_from = threading.Event(), 1
    answer = contents.answer(bed.run(bed.cache.open(PATH)), {})
    bed.run(answer.start())
    chunks = answer.chunks()
    assert bed.run(anext(chunks)) == bed.upstream.files[PATH][:BLOCK_BYTES]
    bed.upstream.gate.set()

    async def rest() -> bytes:
        return b"".join([chunk async for chunk in chunks])

    assert bed.run(rest()) == bed.upstream.files[PATH][BLOCK_BYTES:]


def test_a_reader_that_goes_away_takes_no_block_from_another(bed: CacheBed) -> None:
    bed.upstream.gate = threading.Event()
    copy = bed.open(PATH)
    with ThreadPoolExecutor(1) as reader:
        staying = reader.submit(bed.block, copy, 0)
        until("the block is on its way", lambda: copy.busy)
        leaving = asyncio.run_coroutine_threadsafe(copy.block(0, 0, 10), bed._loop)
        leaving.cancel()
        bed.upstream.gate.set()
        assert staying.result(60) == bed.upstream.files[PATH][:BLOCK_BYTES]
    assert bed.upstream.reads[copy.file.version, 0] == 1


def test_what_is_passed_through_is_fetched_once_for_each_stream_and_nothing_in_vain(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=2 * BLOCK_BYTES) as bed:
        bed.upstream.write("/small", content(1, 2 * BLOCK_BYTES))
        bed.upstream.write(PATH, content(2, SIZE_BYTES))
        bed.cache.pins.add("/small")
        bed.read("/small")

        async def stream() -> bytes:
            answer = contents.answer(await bed.cache.open(PATH), {})
            await answer.start()
            return b"".join([chunk async for chunk in answer.chunks()])

        assert bed.run(stream()) == bed.upstream.files[PATH]
        assert bed.upstream.read_bytes == 2 * BLOCK_BYTES + SIZE_BYTES


def test_a_copy_for_which_there_is_no_room_any_more_is_passed_through_and_kept_when_there_is(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=6 * BLOCK_BYTES) as bed:
        bed.upstream.write("/pinned", content(1, 4 * BLOCK_BYTES))
        bed.upstream.write(PATH, content(2, SIZE_BYTES))
        copy = bed.open(PATH)  # there is room for it at this moment
        bed.cache.pins.add("/pinned")
        bed.read("/pinned")
        copy_id, fd = copy.descriptor()
        os.close(fd)
        with pytest.raises((TierFull, NotFound)):
            for index in range(4):
                copy.wait(copy_id, index * BLOCK_BYTES, 10)
        assert bed.read(PATH) == bed.upstream.files[PATH]
        assert bed.cache.pins.remove("/pinned")
        bed.cache.evict(lambda held: held.file.path == "/pinned")
        assert bed.read(PATH) == bed.upstream.files[PATH]
        wait_whole(bed)


def test_what_is_pinned_stays_and_others_are_streamed_for_want_of_room(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=4 * BLOCK_BYTES) as bed:
        bed.upstream.write("/hot/a", content(1, 4 * BLOCK_BYTES))
        bed.upstream.write("/b", content(2, 4 * BLOCK_BYTES))
        bed.cache.pins.add("/hot")
        bed.read("/hot/a")
        assert bed.read("/b") == bed.upstream.files["/b"]
        assert bed.open("/b").streamed
        bed.read("/hot/a")
        assert bed.upstream.read_bytes == 8 * BLOCK_BYTES


def test_pins_are_there_after_a_restart(bed: CacheBed) -> None:
    bed.cache.pins.add("/models/m")
    bed.begin()
    assert bed.cache.pins.holds(PATH)
    assert bed.cache.pins.remove("/models")
    bed.begin()
    assert not bed.cache.pins.holds(PATH)


def test_an_earlier_version_of_a_file_goes_before_anything_else(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=12 * BLOCK_BYTES) as bed:
        bed.upstream.write("/a", content(1, 4 * BLOCK_BYTES))
        bed.upstream.write("/b", content(2, 4 * BLOCK_BYTES))
        for path in ("/b", "/a", "/a", "/a"):  # by use alone, /b would go first
            bed.read(path)
        bed.upstream.write("/a", content(3, 4 * BLOCK_BYTES))
        bed.read("/a")
        bed.upstream.write("/c", content(4, 4 * BLOCK_BYTES))
        bed.read("/c")
        assert {(held.file.path, held.file.version) for held in bed.cache.shelf.held()} == {
            (path, bed.upstream.version_of(path)) for path in ("/a", "/b", "/c")
        }


def test_a_quota_bounds_what_lies_below_its_path(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=40 * BLOCK_BYTES, quotas={"/public": 4 * BLOCK_BYTES}) as bed:
        for path in ("/public/a", "/public/b", "/mine/c"):
            bed.upstream.write(path, content(len(path), 3 * BLOCK_BYTES))
            bed.read(path)
        assert {held.file.path for held in bed.cache.shelf.held()} == {"/public/b", "/mine/c"}


def test_the_cache_gives_way_when_its_tier_needs_room(tmp_path: Path) -> None:
    with cache_bed(tmp_path / "cache", limit_bytes=12 * BLOCK_BYTES) as bed:
        for path in ("/a", "/b", "/c"):
            bed.upstream.write(path, content(ord(path[1]), 4 * BLOCK_BYTES))
            bed.read(path)
        assert bed.cache.give_way(8 * BLOCK_BYTES) == 8 * BLOCK_BYTES
        assert len(bed.data_files()) == 1


# --- the disk -------------------------------------------------------------------------------------------------------------------------


def test_a_full_device_is_read_through_and_never_an_error(bed: CacheBed) -> None:
    with failpoints.armed("cache.block.before_data=enospc@*"):
        assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.cache.state == "ok"
    assert bed.remarks == []


def test_a_device_that_fails_is_taken_out_with_one_remark_and_readers_go_on(bed: CacheBed) -> None:
    with failpoints.armed("cache.block.before_data=eio@2"):
        assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.cache.state == "down"
    assert len(bed.remarks) == 1
    assert "replace the disk" in bed.remarks[0]
    assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.open(PATH).streamed


def test_a_device_that_cannot_keep_what_it_took_is_taken_out(bed: CacheBed) -> None:
    with failpoints.armed("cache.file.fdatasync=eio"):
        bed.read(PATH)
        until("the disk is out", lambda: bed.cache.state == "down")
    assert not bed.open(PATH).whole


def test_a_device_that_does_not_read_is_taken_out_and_readers_go_on(bed: CacheBed) -> None:
    bed.read(PATH)
    with failpoints.armed("cache.block.read=eio"):
        assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.cache.state == "down"


# --- damage ---------------------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_never_streamed_and_its_block_is_fetched_again(bed: CacheBed) -> None:
    bed.read(PATH)
    [place] = bed.data_files()
    flip_bit(place, 2 * BLOCK_BYTES + 77)
    assert bed.read(PATH) == bed.upstream.files[PATH]
    assert bed.upstream.reads[bed.upstream.version_of(PATH), 2] == 2
    assert bed.upstream.read_bytes == SIZE_BYTES + BLOCK_BYTES
    assert place.read_bytes() == bed.upstream.files[PATH]


def test_a_damaged_file_that_was_lent_stays_as_it_is_and_a_new_one_takes_its_place(bed: CacheBed) -> None:
    bed.read(PATH)
    wait_whole(bed)
    copy_id, fd = bed.open(PATH).descriptor()
    [place] = bed.data_files()
    flip_bit(place, 2 * BLOCK_BYTES + 77)
    damaged = place.read_bytes()
    assert bed.read(PATH) == bed.upstream.files[PATH]
    assert os.pread(fd, SIZE_BYTES, 0) == damaged
    os.close(fd)
    wait_whole(bed)
    assert bed.upstream.read_bytes == SIZE_BYTES + BLOCK_BYTES  # the good blocks came from the damaged file
    new_id, fresh = bed.open(PATH).descriptor()
    assert new_id != copy_id
    assert os.pread(fresh, SIZE_BYTES, 0) == bed.upstream.files[PATH]
    os.close(fresh)
