"""The cache against a model: whatever is read, written upstream, warmed, pinned, evicted, killed, booted, filled or damaged, in any order.

The model knows what each version's bytes are and what may be asked of them. After every step: no read gives other bytes than those of the
version that was opened; the limit holds; what is pinned and newest stays; a descriptor goes on giving what it gave.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ckptstore.errors import NotFound, StaleVersion, TierFull, TierUnavailable
from ckptstore_server.readers.cache import block_map
from ckptstore_server.readers.cache.pins import is_below
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.cache_bed import CacheBed, content

PATHS = ("/a/one", "/a/two", "/b/three")
SIZES = (0, 100, BLOCK_BYTES, 2 * BLOCK_BYTES + 1, 3 * BLOCK_BYTES - 7)
LIMIT_BYTES = 5 * BLOCK_BYTES
REFUSED = (StaleVersion, TierUnavailable, NotFound)


@dataclass
class Lent:
    """A descriptor that a reader holds, and the blocks that it was told it may read."""

    fd: int
    version: str
    copy_id: str
    told: set[int]
    whole: bool


class CacheMachine(RuleBasedStateMachine):
    paths = st.sampled_from(PATHS)

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ckptstore-cache-"))
        self.boot = 0
        self.new_boot()
        self.bed = CacheBed(self.folder / "cache", limit_bytes=LIMIT_BYTES)
        self.bytes_of: dict[str, bytes] = {}  # version → what it is, for ever
        self.path_of: dict[str, str] = {}
        self.pinned: set[str] = set()
        self.seed = 0
        self.lent: list[Lent] = []
        for path in PATHS:
            self.write(path, SIZES[-1])

    def new_boot(self) -> None:
        self.boot += 1
        block_map.BOOT_ID_FILE = self.folder / f"boot_id-{self.boot}"
        block_map.BOOT_ID_FILE.write_text(f"00000000-0000-0000-0000-{self.boot:012x}\n")

    def write(self, path: str, size_bytes: int, *, own: bool = False) -> None:
        self.seed += 1
        version = self.bed.upstream.write(path, content(self.seed, size_bytes), own=own)
        self.bytes_of[version] = self.bed.upstream.files[path]
        self.path_of[version] = path

    # --- what happens upstream -------------------------------------------------------------------------------------------------------

    @rule(path=paths, size_bytes=st.sampled_from(SIZES), own=st.booleans())
    def write_upstream(self, path: str, size_bytes: int, own: bool) -> None:
        self.write(path, size_bytes, own=own)

    @rule(down=st.booleans())
    def origin_goes_or_comes(self, down: bool) -> None:
        self.bed.upstream.down = down

    # --- what readers do -------------------------------------------------------------------------------------------------------------

    @rule(paths=st.lists(paths, min_size=1, max_size=4))
    def read_some(self, paths: list[str]) -> None:
        for path in paths:
            self.read(path)

    def read(self, path: str) -> None:
        try:
            copy = self.bed.run(self.bed.cache.open(path))
            found = b"".join(self.bed.block(copy, index) for index in range(-(-copy.file.size_bytes // BLOCK_BYTES)))
        except TierUnavailable:
            assert self.bed.upstream.down
            return
        if not self.bed.upstream.down:
            assert copy.file.version == self.bed.upstream.version_of(path)
        assert copy.file.path == path
        assert found == self.bytes_of[copy.file.version]

    @rule(data=st.data())
    def read_an_earlier_version(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.bytes_of)))
        try:
            assert self.bed.read(self.path_of[version], version) == self.bytes_of[version]
        except REFUSED:
            assert self.bed.upstream.down or version != self.bed.upstream.version_of(self.path_of[version])

    @rule(path=paths, blocks=st.sets(st.integers(0, 2)))
    def open_and_need(self, path: str, blocks: set[int]) -> None:
        try:
            copy = self.bed.open(path)
            whole = copy.whole
            copy_id, fd = copy.descriptor()
        except (TierUnavailable, TierFull):
            return
        self.lent.append(Lent(fd, copy.file.version, copy_id, set(), whole))
        for block in blocks or range(3):
            self.need(self.lent[-1], block)

    @precondition(lambda self: self.lent)
    @rule(which=st.integers(0, 99), block=st.integers(0, 2))
    def need_again(self, which: int, block: int) -> None:
        self.need(self.lent[which % len(self.lent)], block)

    def need(self, lent: Lent, block: int) -> None:
        size_bytes = len(self.bytes_of[lent.version])
        if block * BLOCK_BYTES >= size_bytes:
            return
        try:
            copy = self.bed.run(self.bed.cache.find(lent.version))
            copy.wait(lent.copy_id, block * BLOCK_BYTES, min(BLOCK_BYTES, size_bytes - block * BLOCK_BYTES))
        except (*REFUSED, TierFull):
            return
        lent.told.add(block)

    # --- what operators do -----------------------------------------------------------------------------------------------------------

    @rule(path=st.sampled_from([*PATHS, "/a"]))
    def pin(self, path: str) -> None:
        self.bed.cache.pins.add(path)
        self.pinned.add(path)

    @rule(path=st.sampled_from([*PATHS, "/a"]))
    def unpin(self, path: str) -> None:
        assert self.bed.cache.pins.remove(path) == any(is_below(pinned, path) for pinned in self.pinned)
        self.pinned = {pinned for pinned in self.pinned if not is_below(pinned, path)}

    @rule(path=st.sampled_from([*PATHS, "/a"]))
    def evict(self, path: str) -> None:
        self.bed.cache.evict(lambda held: is_below(held.file.path, path))
        assert all(not is_below(held.file.path, path) for held in self.bed.cache.shelf.held())

    @rule(blocks=st.integers(1, 4))
    def others_need_room(self, blocks: int) -> None:
        self.bed.cache.give_way(blocks * BLOCK_BYTES)

    # --- what goes wrong -------------------------------------------------------------------------------------------------------------

    @rule()
    def kill(self) -> None:
        """The daemon is gone without a word, and there is another one. What was on its way in it never comes."""
        self.bed.settle()
        self.bed.begin()

    @rule()
    def boot(self) -> None:
        """So is everybody who had a descriptor."""
        self.bed.settle()
        self.hang_up()
        self.new_boot()
        self.bed.begin()

    @rule(which=st.integers(0, 99), offset=st.integers(0, 3 * BLOCK_BYTES))
    def a_bit_flips_while_the_machine_is_down(self, which: int, offset: int) -> None:
        """With nobody who has the file open: what a descriptor shows of a damaged disk no cache can help."""
        self.bed.settle()
        self.hang_up()
        files = [file for file in self.bed.data_files() if file.stat().st_size]
        if files:
            with files[which % len(files)].open("r+b") as file:
                offset %= os.fstat(file.fileno()).st_size
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 1]))
        self.new_boot()
        self.bed.begin()

    # --- what always holds -----------------------------------------------------------------------------------------------------------

    @invariant()
    def descriptors_go_on_giving_what_they_gave(self) -> None:
        for lent in getattr(self, "lent", []):
            data = self.bytes_of[lent.version]
            if lent.whole:
                assert os.pread(lent.fd, len(data) + 1, 0) == data
            for block in lent.told:
                begin = block * BLOCK_BYTES
                assert os.pread(lent.fd, BLOCK_BYTES, begin) == data[begin : begin + BLOCK_BYTES]

    @invariant()
    def the_limit_holds_and_files_are_on_the_shelf(self) -> None:
        if hasattr(self, "bed"):
            held = {one.file.version: one for one in self.bed.cache.shelf.held()}
            assert sum(one.size_bytes for one in held.values()) <= LIMIT_BYTES
            assert {file.stem for file in self.bed.data_files()} == set(held)
            assert self.bed.cache.pins.paths == sorted(self.pinned)
            assert self.bed.remarks == []

    def hang_up(self) -> None:
        for lent in self.lent:
            os.close(lent.fd)
        self.lent = []

    def teardown(self) -> None:
        if hasattr(self, "bed"):
            self.hang_up()
            self.bed.close()
            shutil.rmtree(self.folder)


@pytest.fixture(autouse=True)
def own_boot_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_map, "BOOT_ID_FILE", block_map.BOOT_ID_FILE)


def common(examples: int, steps: int) -> settings:
    return settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck))


class TestCacheMachine(CacheMachine.TestCase):  # type: ignore[misc,name-defined]
    """Some stories in every run."""


TestCacheMachine.settings = common(16, 25)


@pytest.mark.soak
class TestCacheMachineSoak(CacheMachine.TestCase):  # type: ignore[misc,name-defined]
    pass


TestCacheMachineSoak.settings = common(300, 60)
