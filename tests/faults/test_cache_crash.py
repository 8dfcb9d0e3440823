"""The cache after a crash: a kill at every step loses no block that was safe and shows no wrong byte; another boot believes nothing unread.

What was safe is what the dead process had said to a reader, and what its map says; what is fetched afterwards is counted upstream.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckptstore import failpoints
from ckptstore.failpoints import names
from ckptstore_server.readers.cache import block_map, scrub
from ckptstore_server.readers.cache.block_file import ABSENT, BlockFile
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests import forking
from tests.cache_bed import CacheBed, Upstream, cache_bed, content
from tests.until import until

BLOCKS = 4
SIZE_BYTES = (BLOCKS - 1) * BLOCK_BYTES + 4321
PATHS = ("/m/a", "/m/b", "/m/c")
LIMIT_BYTES = 2 * BLOCKS * BLOCK_BYTES  # of three files one has to go


def upstream() -> Upstream:
    made = Upstream()
    for seed, path in enumerate(PATHS):
        made.write(path, content(seed, SIZE_BYTES))
    return made


def read_until_killed(folder: Path, told: Path, armed: str) -> None:
    """In a forked process: read file after file, and write down each block that a reader was given."""
    fd = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    bed = CacheBed(folder, upstream(), limit_bytes=LIMIT_BYTES)
    with failpoints.armed(armed):
        while True:
            for path in PATHS:
                copy = bed.open(path)
                copy_id, lent = copy.descriptor()
                for index in range(BLOCKS):
                    copy.wait(copy_id, index * BLOCK_BYTES, 100)
                    os.write(fd, f"{copy_id} {index}\n".encode())
                os.close(lent)


def told_blocks(told: Path) -> list[tuple[str, int]]:
    lines = told.read_text().splitlines() if told.exists() else []
    return [(line.split()[0], int(line.split()[1])) for line in lines]


def died(folder: Path, told: Path, armed: str = "", *, after_blocks: int | None = None) -> None:
    """Have a reader die: at an armed failpoint, or when it has told of so many blocks."""
    process = forking.CONTEXT.Process(target=read_until_killed, args=(folder, told, armed), daemon=True)
    process.start()
    try:
        if after_blocks is not None:
            until("the reader has read that far", lambda: len(told_blocks(told)) >= after_blocks, pause_s=0.001)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    finally:
        process.kill()
        process.join()


def assert_nothing_safe_was_lost(folder: Path, told: Path) -> None:
    """The next daemon gives the right bytes, and fetches exactly the blocks that are not in a map."""
    with cache_bed(folder, upstream(), limit_bytes=LIMIT_BYTES + BLOCKS * BLOCK_BYTES) as bed:
        kept: dict[str, int] = {}
        for held in bed.cache.shelf.held():
            file = BlockFile.open(folder / "files", held.file.version)
            there = {index for index, state in enumerate(file.states) if state != ABSENT}
            assert {index for copy_id, index in told_blocks(told) if copy_id == file.copy_id} <= there, "a block that was given is lost"
            kept[held.file.path] = len(there)
        for path in PATHS:
            assert bed.read(path) == bed.upstream.files[path]
            fetched = sum(bed.upstream.reads[bed.upstream.version_of(path), index] for index in range(BLOCKS))
            assert fetched == BLOCKS - kept.get(path, 0), "a block that was safe was fetched again, or one twice"
        assert sorted({place.stem for place in (folder / "files").iterdir()}) == sorted(bed.upstream.version_of(path) for path in PATHS)


@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("name", [name for name in names("cache.") if name not in ("cache.block.read", "cache.disk.probe")])
def test_killed_at_a_failpoint_no_safe_block_is_lost_and_no_wrong_byte_is_shown(tmp_path: Path, name: str, hit: int) -> None:
    died(tmp_path / "cache", tmp_path / "told", f"{name}=kill@{hit}")
    assert_nothing_safe_was_lost(tmp_path / "cache", tmp_path / "told")


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_a_random_moment_no_safe_block_is_lost_and_no_wrong_byte_is_shown(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(2):  # the second life begins with what the first left
        (tmp_path / "told").unlink(missing_ok=True)
        died(tmp_path / "cache", tmp_path / "told", after_blocks=generator.randrange(1, 20))
    assert_nothing_safe_was_lost(tmp_path / "cache", tmp_path / "told")


# --- another boot ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[CacheBed]:
    with cache_bed(tmp_path / "cache", upstream()) as made:
        yield made


def reboot(bed: CacheBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int = 1) -> None:
    """Another boot id, and a new daemon."""
    bed.cache.close()
    (tmp_path / f"boot_id-{number}").write_text(f"00000000-0000-0000-0000-{number:012x}\n")
    monkeypatch.setattr(block_map, "BOOT_ID_FILE", tmp_path / f"boot_id-{number}")
    bed.begin()


def overwrite(place: Path, offset: int, data: bytes) -> None:
    with place.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_after_a_boot_a_whole_file_is_lent_as_whole_only_when_all_of_it_was_compared(
    bed: CacheBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.read(PATHS[0])
    reboot(bed, tmp_path, monkeypatch)
    with failpoints.listening(lambda name: compared.append(name) if name == "cache.block.read" else None):
        compared: list[str] = []
        until("the copy is whole again", lambda: bed.open(PATHS[0]).whole)
    assert len(compared) == BLOCKS
    assert bed.upstream.read_bytes == SIZE_BYTES
    bed.begin()  # the same boot: what was compared is believed
    assert bed.open(PATHS[0]).whole


def test_what_a_power_cut_took_is_found_before_it_is_shown_and_fetched_again(
    bed: CacheBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.read(PATHS[0])
    [data] = bed.data_files()
    overwrite(data, 2 * BLOCK_BYTES, bytes(BLOCK_BYTES))  # a block that never reached the disk
    reboot(bed, tmp_path, monkeypatch)
    copy = bed.open(PATHS[0])
    copy_id, fd = copy.descriptor()
    assert not copy.whole
    for index in range(BLOCKS):
        copy.wait(copy_id, index * BLOCK_BYTES, 100)
    assert os.pread(fd, SIZE_BYTES, 0) == bed.upstream.files[PATHS[0]]
    os.close(fd)
    assert bed.upstream.read_bytes == SIZE_BYTES + BLOCK_BYTES


def test_a_torn_entry_is_a_block_that_is_not_there(bed: CacheBed, tmp_path: Path) -> None:
    bed.read(PATHS[0])
    [data] = bed.data_files()
    overwrite(data.with_suffix(".map"), block_map._ENTRIES_AT + 1 * 32 + 7, b"\xff")
    bed.begin()
    assert bed.read(PATHS[0]) == bed.upstream.files[PATHS[0]]
    assert bed.upstream.reads[bed.upstream.version_of(PATHS[0]), 1] == 2
    assert bed.upstream.read_bytes == SIZE_BYTES + BLOCK_BYTES


@pytest.mark.parametrize("damage", ["head", "short map", "short data", "no map", "no data"])
def test_a_copy_whose_files_make_no_sense_goes_and_is_fetched_anew(bed: CacheBed, damage: str) -> None:
    bed.read(PATHS[0])
    [data] = bed.data_files()
    block_map_place = data.with_suffix(".map")
    bed.cache.close()
    if damage == "head":
        overwrite(block_map_place, 40, b"\xff")
    elif damage == "no map":
        block_map_place.unlink()
    elif damage == "no data":
        data.unlink()
    else:
        os.truncate(block_map_place if damage == "short map" else data, 20_000)
    bed.begin()
    assert bed.read(PATHS[0]) == bed.upstream.files[PATHS[0]]
    assert bed.upstream.read_bytes == 2 * SIZE_BYTES
    assert bed.remarks == []


def test_after_a_boot_with_the_origin_down_what_is_whole_is_still_served(
    bed: CacheBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.read(PATHS[0])
    reboot(bed, tmp_path, monkeypatch)
    bed.upstream.down = True
    assert bed.read(PATHS[0]) == bed.upstream.files[PATHS[0]]


# --- the scrub ------------------------------------------------------------------------------------------------------------------------


def test_the_scrub_finds_a_flipped_bit_and_has_the_block_fetched_again(bed: CacheBed) -> None:
    bed.read(PATHS[0])
    until("the copy is whole", lambda: bed.open(PATHS[0]).whole)
    [data] = bed.data_files()
    byte = bed.upstream.files[PATHS[0]][BLOCK_BYTES + 9]
    overwrite(data, BLOCK_BYTES + 9, bytes([byte ^ 16]))
    scrubbing = scrub.Scrub(bed.cache, every_s=1e9, pause_s=0)
    [held] = bed.cache.shelf.held()
    assert bed.run(scrubbing.check(held)) == 1
    assert data.read_bytes() == bed.upstream.files[PATHS[0]]
    assert "1 blocks were damaged" in bed.remarks[0]
    assert bed.run(scrubbing.check(held)) == 0


def test_the_scrub_takes_the_file_that_was_not_compared_for_longest_and_only_when_it_is_due(bed: CacheBed) -> None:
    for path in PATHS:
        bed.read(path)
    for number, path in enumerate(PATHS):
        held = bed.cache.shelf.get(bed.upstream.version_of(path))
        assert held is not None
        held.scrubbed_s = 1000.0 * (3 - number)
    compared: list[str] = []
    with failpoints.listening(lambda name: compared.append(name) if name == "cache.block.read" else None):
        bed.run(scrub.Scrub(bed.cache, every_s=1e12, pause_s=0).turn())
        assert compared == []
        bed.run(scrub.Scrub(bed.cache, every_s=60, pause_s=0).turn())
    assert len(compared) == BLOCKS
    left = sorted(held.scrubbed_s for held in bed.cache.shelf.held())[:2]
    assert left == [2000.0, 3000.0]


# --- a disk that is really full -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with room for two of the three files, less a block."""
    place = tmp_path / "small"
    place.mkdir()
    size_bytes = 2 * BLOCKS * BLOCK_BYTES - BLOCK_BYTES
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(place)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr} (this test mounts a file system: run it as root)"
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_on_a_disk_that_is_full_every_reader_gets_the_right_bytes(small_disk: Path) -> None:
    with cache_bed(small_disk / "cache", upstream()) as bed, ThreadPoolExecutor(3) as readers:
        for _ in range(2):
            for path, found in zip(PATHS, readers.map(bed.read, PATHS), strict=True):
                assert found == bed.upstream.files[path]
        assert bed.cache.state in ("ok", "full")
        assert bed.remarks == []


def test_a_disk_that_others_fill_is_streamed_past_and_used_again_when_there_is_room(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes((2 * BLOCKS - 2) * BLOCK_BYTES))
    with cache_bed(small_disk / "cache", upstream()) as bed:
        assert bed.read(PATHS[0]) == bed.upstream.files[PATHS[0]]
        assert bed.open(PATHS[0]).streamed
        (small_disk / "other").unlink()
        assert bed.read(PATHS[0]) == bed.upstream.files[PATHS[0]]
        until("the copy is whole", lambda: bed.open(PATHS[0]).whole)


def test_a_disk_that_fills_under_a_reader_gives_its_bytes_all_the_same(small_disk: Path) -> None:
    with cache_bed(small_disk / "cache", upstream()) as bed:
        bed.upstream.gate = threading.Event()
        copy = bed.open(PATHS[0])
        assert not copy.streamed
        (small_disk / "other").write_bytes(bytes((2 * BLOCKS - 2) * BLOCK_BYTES))
        bed.upstream.gate.set()
        assert b"".join(bed.block(copy, index) for index in range(BLOCKS)) == bed.upstream.files[PATHS[0]]
        assert bed.remarks == []
