"""A cache disk that failed comes back by itself when it works again; what it has is believed only after a look. And a quota that was
lowered is kept from the start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore import failpoints
from ckptstore_server.readers.cache import outage
from ckptstore_server.readers.cache.control import CacheControl
from ckptstore_server.readers.cache.outage import FIRST_PAUSE_S, FORGIVEN_S, LONGEST_PAUSE_S, Outage
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.cache_bed import CacheBed, cache_bed, content
from tests.until import until

PATHS = ["/a/one", "/a/two", "/b/three"]
SIZE_BYTES = 2 * BLOCK_BYTES + 777


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CacheBed]:
    monkeypatch.setattr(outage, "FIRST_PAUSE_S", 0.0)
    with cache_bed(tmp_path / "cache") as bed:
        for number, path in enumerate(PATHS):
            bed.upstream.write(path, content(number, SIZE_BYTES))
        yield bed


def fill(bed: CacheBed) -> None:
    for path in PATHS:
        assert bed.read(path) == bed.upstream.files[path]
    until("all of it is on the disk", lambda: all(bed.open(path).whole for path in PATHS))


def fail(bed: CacheBed) -> None:
    with failpoints.armed("cache.block.read=eio@*"):
        assert bed.read(PATHS[0]) == bed.upstream.files[PATHS[0]]
    assert bed.cache.state == "down"


def test_it_is_taken_in_again_when_it_works_and_what_it_has_is_not_fetched_again(bed: CacheBed) -> None:
    fill(bed)
    CacheControl(bed.cache).pin("/a")
    fail(bed)
    assert CacheControl(bed.cache).status().last_error
    with failpoints.armed("cache.disk.probe=eio@*"):
        for _ in range(3):
            bed.cache.start()
            assert bed.cache.state == "down"
    fetched = bed.upstream.read_bytes
    bed.cache.start()
    status = CacheControl(bed.cache).status()
    assert (status.state, status.last_error, status.files, status.pins) == ("ok", None, len(PATHS), ["/a"])
    for path in PATHS:
        assert bed.read(path) == bed.upstream.files[path]
    assert bed.upstream.read_bytes == fetched
    until("they are whole again", lambda: all(bed.open(path).whole for path in PATHS))
    assert len(bed.remarks) == 1


def test_what_it_lost_meanwhile_is_found_before_anybody_sees_it(bed: CacheBed) -> None:
    fill(bed)
    fail(bed)
    [place] = [place for place in bed.data_files() if place.stem == bed.upstream.version_of(PATHS[1])]
    with open(place, "r+b") as data:  # pages that were never written, though an fsync may have said so
        data.seek(BLOCK_BYTES)
        data.write(bytes(4096))
    bed.cache.start()
    copy = bed.open(PATHS[1])
    assert not copy.whole
    assert bed.read(PATHS[1]) == bed.upstream.files[PATHS[1]]
    assert bed.upstream.reads[bed.upstream.version_of(PATHS[1]), 1] == 2


def test_a_disk_that_comes_back_empty_is_filled_anew_and_keeps_the_pins(bed: CacheBed) -> None:
    fill(bed)
    CacheControl(bed.cache).pin("/b")
    fail(bed)
    for place in [*(bed.folder / "files").iterdir(), bed.folder / "pins.json"]:
        place.unlink()
    bed.cache.start()
    assert CacheControl(bed.cache).status().files == 0
    fill(bed)
    assert CacheControl(bed.cache).status().pins == ["/b"]
    bed.settle()
    bed.begin()
    assert CacheControl(bed.cache).status().pins == ["/b"]


def test_who_reads_while_it_is_out_and_comes_back_sees_right_bytes(bed: CacheBed) -> None:
    fill(bed)
    copy = bed.open(PATHS[0])
    _, fd = copy.descriptor()
    fail(bed)
    streamed = bed.open(PATHS[0])
    bed.cache.start()
    assert os.pread(fd, SIZE_BYTES, 0) == bed.upstream.files[PATHS[0]]
    os.close(fd)
    assert bed.block(streamed, 1) == bed.block(copy, 1) == bed.upstream.files[PATHS[0]][BLOCK_BYTES : 2 * BLOCK_BYTES]
    until("it is kept again", lambda: not bed.open(PATHS[0]).streamed)


def test_pauses_grow_and_another_device_at_its_place_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    disk = Outage(tmp_path, clock=lambda: now_s)
    disk.in_use()
    pauses = []
    for _ in range(12):
        disk.failed()
        pauses.append(disk.pause_s)
        now_s += disk.pause_s - 0.001
        assert not disk.is_over()
        now_s += 0.002
        assert disk.is_over()
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S] and pauses[-1] == LONGEST_PAUSE_S
    now_s += FORGIVEN_S
    disk.failed()
    assert disk.pause_s == FIRST_PAUSE_S
    monkeypatch.setattr(disk, "_device", tmp_path.stat().st_dev + 1)
    now_s += FIRST_PAUSE_S
    assert not disk.is_over()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "left"), [({"quotas": {"/a": SIZE_BYTES}}, 2), ({"limit_bytes": SIZE_BYTES}, 1)], ids=["quota", "size"]
)
def test_a_quota_or_size_that_was_lowered_is_kept_from_the_start(bed: CacheBed, options: dict[str, object], left: int) -> None:
    fill(bed)
    bed.settle()
    bed.options |= options
    bed.begin()
    assert len(bed.data_files()) == CacheControl(bed.cache).status().files == left
    assert bed.cache.shelf.get(bed.upstream.version_of("/b/three")) is not None


def test_what_is_pinned_stays_beyond_a_quota_that_was_lowered(bed: CacheBed) -> None:
    fill(bed)
    CacheControl(bed.cache).pin("/a")
    bed.settle()
    bed.options |= {"quotas": {"/a": 1, "/b": 1}}
    bed.begin()
    assert sorted(held.file.path for held in bed.cache.shelf.held()) == ["/a/one", "/a/two"]
