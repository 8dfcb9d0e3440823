"""What must hold for every tier, whatever it is made of: one class, subclassed once per tier.

A subclass gives a `tier` fixture: an empty, open tier. Everything below is written against `ckptstore_tiers.interface`
alone.

    from tests.contract.tier_contract import TierContract

    class TestMemoryTier(TierContract):
        @pytest.fixture
        def tier(self, tmp_path): ...
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptstore.errors import AlreadyExists, ChecksumMismatch, CkptStoreError, InvalidInput, NotFound, TierUnavailable
from ckptstore.paths import new_id, object_key
from ckptstore_tiers import checksums
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.interface import ObjectReader, Tier
from ckptstore_tiers.sources import MemorySource, ReaderSource

SIZES = {
    "empty": 0,
    "one_byte": 1,
    "a_page": 4096,
    "a_page_and_one": 4097,
    "one_block_less_one": BLOCK_BYTES - 1,
    "one_block": BLOCK_BYTES,
    "one_block_and_one": BLOCK_BYTES + 1,
    "three_blocks_odd_tail": 3 * BLOCK_BYTES + 12_345,
    "five_blocks": 5 * BLOCK_BYTES,
}

ODD_PATHS = [
    "/plain/name.safetensors",
    "/spaces in names / leading and trailing ",
    "/Ünï-cødé/模型/🦙.bin",
    "/e\u0301 decomposed/\u00e9 composed",
    "/percent%20escaped/100%/%2F%00",
    "/tilde~in~names~/~/~~x",
    "/quotes'and\"more/`$(id)`/a;b&c|d<e>f",
    "/plus+and/equals=and/hash#and?query/@sign/star*/[brackets]/{braces}",
    "/back\\slash/-leading-dash/.leading.dot/..two.dots",
    "/" + "n" * 200 + "/" + "é" * 100,
    "/" + "/".join(["deep" * 5] * 30),
    "/CON/aux.txt/Upper/upper",
]

HOSTILE_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../outside~x",
    "objects/../../outside~x",
    "objects/a/../b~x",
    "objects/./b~x",
    "objects//b~x",
    "objects/b~x/",
    "objects/nul\0byte~x",
    "objects/new\nline~x",
    "objects/" + "n" * 300,
    "objects/\ud800~x",
]


def content(size_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def new_key(path: str = "/runs/gpt/step-000100/model.safetensors") -> str:
    return object_key(path, new_id())


def read_all(reader: ObjectReader) -> bytes:
    buffer = bytearray(reader.size_bytes)
    reader.read_into(0, memoryview(buffer))
    return bytes(buffer)


def stored(tier: Tier, key: str) -> bytes:
    reader = tier.open(key)
    try:
        return read_all(reader)
    finally:
        reader.close()


def keys(tier: Tier, prefix: str = "") -> list[str]:
    return sorted(entry.key for entry in tier.list(prefix))


def assert_nothing_visible(tier: Tier, key: str) -> None:
    with pytest.raises(NotFound):
        tier.open(key)
    with pytest.raises(NotFound):
        tier.stat(key)
    assert key not in keys(tier)


def all_at_once(count: int, act: Callable[[int], object]) -> list[object]:
    """Run `act(0…count-1)` in as many threads, released together; the results in order, our errors among them."""
    gate = threading.Barrier(count)

    def one(number: int) -> object:
        gate.wait(timeout=30)
        try:
            return act(number)
        except CkptStoreError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class FailingSource:
    """Gives its blocks up to `good_blocks`, then fails as a lost tier does."""

    stable = True

    def __init__(self, data: bytes, good_blocks: int) -> None:
        self._inner = MemorySource(data)
        self._good_blocks = good_blocks

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def block(self, index: int, scratch: memoryview) -> memoryview:
        if index >= self._good_blocks:
            raise TierUnavailable("the source went away", operation="read", subject="source")
        return self._inner.block(index, scratch)


class ScratchSource:
    """Fills the scratch buffer that the tier lends, as a file or another tier does."""

    stable = True

    def __init__(self, data: bytes) -> None:
        self._inner = MemorySource(data)
        self.scratch_bytes: set[int] = set()

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def block(self, index: int, scratch: memoryview) -> memoryview:
        self.scratch_bytes.add(len(scratch))
        view = self._inner.block(index, scratch)
        scratch[: len(view)] = view
        return scratch[: len(view)]


class TierContract:
    """Subclass it, give a `tier` fixture. `lists_content_sizes` is False for a codec, which lists stored sizes."""

    lists_content_sizes = True

    # -- put and open --------------------

    @pytest.mark.parametrize("size_bytes", SIZES.values(), ids=SIZES.keys())
    def test_what_was_put_is_read_back(self, tier: Tier, size_bytes: int) -> None:
        data, key = content(size_bytes), new_key()
        digests = tier.put(key, MemorySource(data), expected=BlockDigests.of(data))
        assert digests == BlockDigests.of(data)
        assert stored(tier, key) == data
        assert tier.stat(key).size_bytes == size_bytes
        assert tier.stat(key).key == key

    @pytest.mark.parametrize("offset", [0, 1, 100], ids=["aligned", "by_one", "by_hundred"])
    def test_memory_of_any_alignment_is_stored(self, tier: Tier, offset: int) -> None:
        whole = content(2 * BLOCK_BYTES + 777 + offset)
        key = new_key()
        tier.put(key, MemorySource(memoryview(whole)[offset:]))
        assert stored(tier, key) == whole[offset:]

    def test_a_source_that_fills_scratch_is_stored(self, tier: Tier) -> None:
        data, key = content(4 * BLOCK_BYTES + 5), new_key()
        source = ScratchSource(data)
        assert tier.put(key, source) == BlockDigests.of(data)
        assert stored(tier, key) == data
        assert min(source.scratch_bytes) >= BLOCK_BYTES

    def test_an_object_can_be_drained_from_another_object(self, tier: Tier) -> None:
        data, first, second = content(2 * BLOCK_BYTES + 9), new_key("/a"), new_key("/b")
        digests = tier.put(first, MemorySource(data))
        reader = tier.open(first)
        try:
            assert tier.put(second, ReaderSource(reader), expected=digests) == digests
        finally:
            reader.close()
        assert stored(tier, second) == data

    def test_any_range_is_read(self, tier: Tier) -> None:
        data, key = content(2 * BLOCK_BYTES + 12_345), new_key()
        tier.put(key, MemorySource(data))
        ranges = [
            (0, 1),
            (4095, 2),
            (4096, 8192),
            (BLOCK_BYTES - 1, 2),
            (BLOCK_BYTES, BLOCK_BYTES),
            (len(data) - 1, 1),
            (17, len(data) - 17),
            (5, 0),
        ]
        reader = tier.open(key)
        try:
            assert reader.size_bytes == len(data)
            for offset, length in ranges:
                buffer = bytearray(length)
                reader.read_into(offset, memoryview(buffer))
                assert buffer == data[offset : offset + length], (offset, length)
        finally:
            reader.close()

    def test_a_read_past_the_end_is_an_error_and_never_short(self, tier: Tier) -> None:
        data, key = content(5000), new_key()
        tier.put(key, MemorySource(data))
        reader = tier.open(key)
        try:
            for offset, length in ((0, 5001), (4999, 2), (5000, 1), (1 << 40, 1)):
                with pytest.raises(ChecksumMismatch):
                    reader.read_into(offset, memoryview(bytearray(length)))
        finally:
            reader.close()

    def test_one_reader_serves_several_threads(self, tier: Tier) -> None:
        data, key = content(4 * BLOCK_BYTES), new_key()
        tier.put(key, MemorySource(data))
        reader = tier.open(key)

        def read(number: int) -> bool:
            start = (number % 4) * BLOCK_BYTES + number
            buffer = bytearray(BLOCK_BYTES - number)
            reader.read_into(start, memoryview(buffer))
            return bytes(buffer) == data[start : start + len(buffer)]

        try:
            assert all_at_once(8, read) == [True] * 8
        finally:
            reader.close()

    def test_a_reader_s_descriptor_is_read_only_and_holds_the_object(self, tier: Tier) -> None:
        data, key = content(BLOCK_BYTES + 1), new_key()
        tier.put(key, MemorySource(data))
        reader = tier.open(key)
        try:
            fd = reader.fileno()
            if fd is None:
                assert read_all(reader) == data
            else:
                assert os.pread(fd, len(data) + 1, 0) == data
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.pwrite(fd, b"x", 0)
        finally:
            reader.close()

    # -- what a put refuses --------------------

    @pytest.mark.parametrize("wrong_block", [0, 1, 2], ids=["first", "middle", "tail"])
    def test_bytes_other_than_expected_leave_nothing(self, tier: Tier, wrong_block: int) -> None:
        data, key = content(2 * BLOCK_BYTES + 100), new_key()
        damaged = bytearray(data)
        damaged[wrong_block * BLOCK_BYTES + 50] ^= 1
        with pytest.raises(ChecksumMismatch) as caught:
            tier.put(key, MemorySource(damaged), expected=BlockDigests.of(data))
        assert caught.value.subject == key
        assert caught.value.tier == tier.facts.name
        assert_nothing_visible(tier, key)
        tier.put(key, MemorySource(data), expected=BlockDigests.of(data))
        assert stored(tier, key) == data

    def test_a_size_other_than_expected_leaves_nothing(self, tier: Tier) -> None:
        key = new_key()
        with pytest.raises(ChecksumMismatch):
            tier.put(key, MemorySource(b"12345"), expected=BlockDigests.of(b"1234"))
        assert_nothing_visible(tier, key)

    @pytest.mark.parametrize("good_blocks", [0, 1, 2])
    def test_a_source_that_fails_leaves_nothing(self, tier: Tier, good_blocks: int) -> None:
        data, key = content(2 * BLOCK_BYTES + 100), new_key()
        with pytest.raises(TierUnavailable):
            tier.put(key, FailingSource(data, good_blocks))
        assert_nothing_visible(tier, key)
        tier.put(key, MemorySource(data))
        assert stored(tier, key) == data

    def test_a_late_write_into_the_source_is_rewritten_or_refused(
        self, tier: Tier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, key = bytearray(content(BLOCK_BYTES + 100)), new_key()
        self._change_after_digests(monkeypatch, data, times=1)
        digests = tier.put(key, MemorySource(data, stable=False))
        assert digests == BlockDigests.of(stored(tier, key))

    def test_a_source_that_never_rests_is_refused_or_copied(
        self, tier: Tier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, key = bytearray(content(BLOCK_BYTES + 100)), new_key()
        self._change_after_digests(monkeypatch, data, times=1000)
        try:
            digests = tier.put(key, MemorySource(data, stable=False))
        except ChecksumMismatch:
            monkeypatch.undo()
            assert_nothing_visible(tier, key)
        else:
            monkeypatch.undo()
            assert digests == BlockDigests.of(stored(tier, key))

    @staticmethod
    def _change_after_digests(monkeypatch: pytest.MonkeyPatch, data: bytearray, *, times: int) -> None:
        """A client's late write, at the one moment that matters: between the digest of a block and the write of it."""
        original, remaining = checksums.digest, [times]

        def digest_then_change(view: memoryview | bytes) -> bytes:
            found = original(view)
            if remaining[0] > 0:
                remaining[0] -= 1
                data[10] ^= 1
                data[-10] ^= 1
            return found

        monkeypatch.setattr(checksums, "digest", digest_then_change)

    # -- repeating --------------------

    @pytest.mark.parametrize("with_expected", [True, False])
    def test_a_repeated_put_succeeds_and_changes_nothing(self, tier: Tier, with_expected: bool) -> None:
        data, key = content(BLOCK_BYTES + 3), new_key()
        expected = BlockDigests.of(data) if with_expected else None
        first = tier.put(key, MemorySource(data), expected=expected)
        assert tier.put(key, MemorySource(data), expected=expected) == first
        assert stored(tier, key) == data
        assert keys(tier) == [key]

    @pytest.mark.parametrize(
        "other", [content(BLOCK_BYTES + 3, seed=2), content(10), b""], ids=["same_size", "shorter", "empty"]
    )
    def test_a_put_of_other_bytes_never_changes_an_object(self, tier: Tier, other: bytes) -> None:
        data, key = content(BLOCK_BYTES + 3), new_key()
        tier.put(key, MemorySource(data))
        with pytest.raises((ChecksumMismatch, AlreadyExists)):
            tier.put(key, MemorySource(other))
        assert stored(tier, key) == data

    def test_parallel_puts_of_one_key_all_succeed(self, tier: Tier) -> None:
        data, key = content(BLOCK_BYTES + 3), new_key()
        found = all_at_once(4, lambda _: tier.put(key, MemorySource(data)))
        assert found == [BlockDigests.of(data)] * 4
        assert stored(tier, key) == data

    def test_parallel_puts_of_different_keys_do_not_mix(self, tier: Tier) -> None:
        datas = [content(2 * BLOCK_BYTES + number, seed=number) for number in range(6)]
        names = [new_key(f"/parallel/{number}") for number in range(6)]
        all_at_once(6, lambda number: tier.put(names[number], MemorySource(datas[number])))
        assert [stored(tier, name) for name in names] == datas

    # -- delete --------------------

    def test_a_deleted_object_is_gone_and_deleting_again_succeeds(self, tier: Tier) -> None:
        key, neighbour = new_key("/runs/a/x"), new_key("/runs/a/y")
        tier.put(key, MemorySource(b"x"))
        tier.put(neighbour, MemorySource(b"y"))
        tier.delete(key)
        assert_nothing_visible(tier, key)
        assert stored(tier, neighbour) == b"y"
        tier.delete(key)
        tier.delete(new_key("/never/was"))

    def test_a_deleted_key_can_be_put_again(self, tier: Tier) -> None:
        key = new_key("/a/b/c/d")
        tier.put(key, MemorySource(b"first"))
        tier.delete(key)
        tier.put(key, MemorySource(b"second"))
        assert stored(tier, key) == b"second"

    def test_puts_and_deletes_in_one_folder_do_not_disturb_each_other(self, tier: Tier) -> None:
        def churn(number: int) -> bytes:
            for turn in range(5):
                key = new_key(f"/churn/deep/{number}")
                tier.put(key, MemorySource(b"%d %d" % (number, turn)))
                found = stored(tier, key)
                tier.delete(key)
            return found

        assert all_at_once(4, churn) == [b"%d 4" % number for number in range(4)]
        assert keys(tier, "objects/churn") == []

    def test_a_reader_of_a_deleted_object_reads_the_same_or_not_found(self, tier: Tier) -> None:
        data, key = content(BLOCK_BYTES + 10), new_key()
        tier.put(key, MemorySource(data))
        reader = tier.open(key)
        try:
            tier.delete(key)
            try:
                assert read_all(reader) == data
            except NotFound:
                assert_nothing_visible(tier, key)
        finally:
            reader.close()

    def test_what_is_not_there_is_not_found(self, tier: Tier) -> None:
        for key in (new_key("/nothing"), new_key("/nothing/deep/er"), "records/none.json"):
            for call in (tier.open, tier.stat, tier.get_document):
                with pytest.raises(NotFound) as caught:
                    call(key)
                assert caught.value.subject == key
                assert caught.value.tier == tier.facts.name

    def test_a_folder_is_no_object(self, tier: Tier) -> None:
        tier.put(new_key("/folder/file"), MemorySource(b"x"))
        for key in ("objects", "objects/folder"):
            with pytest.raises((NotFound, InvalidInput)):
                tier.open(key)
            with pytest.raises((NotFound, InvalidInput)):
                tier.stat(key)

    # -- names --------------------

    @pytest.mark.parametrize("path", ODD_PATHS)
    def test_odd_names_are_kept_exactly(self, tier: Tier, path: str) -> None:
        key = new_key(path)
        tier.put(key, MemorySource(path.encode()))
        assert stored(tier, key) == path.encode()
        assert tier.stat(key).key == key
        assert keys(tier, "objects/") == [key]
        assert keys(tier, key) == [key]
        tier.delete(key)
        assert keys(tier) == []

    def test_names_that_look_alike_stay_apart(self, tier: Tier) -> None:
        paths = ["/e\u0301", "/\u00e9", "/a b", "/a%20b", "/a+b", "/A", "/a"]
        names = [new_key(path) for path in paths]
        for path, name in zip(paths, names, strict=True):
            tier.put(name, MemorySource(path.encode()))
        assert [stored(tier, name) for name in names] == [path.encode() for path in paths]
        assert keys(tier, "objects/") == sorted(names)

    @pytest.mark.parametrize("key", HOSTILE_KEYS, ids=[repr(key)[:30] for key in HOSTILE_KEYS])
    def test_hostile_keys_are_refused_by_every_method(self, tier: Tier, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: tier.put(key, MemorySource(b"x")),
            lambda: tier.open(key),
            lambda: tier.stat(key),
            lambda: tier.delete(key),
            lambda: tier.put_document(key, b"x"),
            lambda: tier.put_document(key, b"x", exclusive=True),
            lambda: tier.get_document(key),
        ]
        for call in calls:
            with pytest.raises(InvalidInput):
                call()
        assert keys(tier) == []

    # -- list --------------------

    def test_an_empty_tier_lists_nothing(self, tier: Tier) -> None:
        assert keys(tier) == []
        assert keys(tier, "objects/") == []
        assert keys(tier, "objects/no/such/folder") == []

    def test_list_gives_what_begins_with_the_prefix(self, tier: Tier) -> None:
        names = {path: new_key(path) for path in ("/run-1/a", "/run-1/b/c", "/run-10/a", "/other")}
        for path, name in names.items():
            tier.put(name, MemorySource(path.encode()))
        tier.put_document("records/0001.json", b"{}")
        assert keys(tier) == sorted([*names.values(), "records/0001.json"])
        assert keys(tier, "objects/run-1/") == sorted([names["/run-1/a"], names["/run-1/b/c"]])
        assert keys(tier, "objects/run-1") == sorted([names["/run-1/a"], names["/run-1/b/c"], names["/run-10/a"]])
        assert keys(tier, "objects/run-1/b/c~") == [names["/run-1/b/c"]]
        assert keys(tier, "records/") == ["records/0001.json"]
        assert keys(tier, "rec") == ["records/0001.json"]

    def test_list_tells_size_and_time(self, tier: Tier) -> None:
        key = new_key()
        tier.put(key, MemorySource(content(5000)))
        (entry,) = tier.list("objects/")
        assert entry.modified_s > 1_500_000_000
        assert entry.size_bytes == 5000 or not self.lists_content_sizes

    def test_a_listing_begun_before_a_delete_goes_on(self, tier: Tier) -> None:
        names = [new_key(f"/many/{number}/x") for number in range(20)]
        for name in names:
            tier.put(name, MemorySource(b"x"))
        listing = tier.list("objects/")
        seen = {next(listing).key}
        for name in names:
            tier.delete(name)
        seen |= {entry.key for entry in listing}
        assert seen <= set(names)
        assert keys(tier) == []

    # -- documents --------------------

    @pytest.mark.parametrize(
        "data", [b"", b"{}", b"\x00\xff" * 5000, content(300_000)], ids=["empty", "json", "binary", "large"]
    )
    def test_a_document_is_read_back(self, tier: Tier, data: bytes) -> None:
        tier.put_document("records/a/b c/0001.json", data)
        assert tier.get_document("records/a/b c/0001.json") == data
        assert tier.stat("records/a/b c/0001.json").size_bytes == len(data)

    def test_a_document_is_replaced_whole(self, tier: Tier) -> None:
        tier.put_document("records/x.json", b"a long first version")
        tier.put_document("records/x.json", b"second")
        assert tier.get_document("records/x.json") == b"second"
        assert keys(tier) == ["records/x.json"]

    def test_a_document_is_deleted_like_an_object(self, tier: Tier) -> None:
        tier.put_document("tombstones/x", b"gone")
        tier.delete("tombstones/x")
        with pytest.raises(NotFound):
            tier.get_document("tombstones/x")
        assert keys(tier) == []

    def test_readers_see_the_old_or_the_new_document(self, tier: Tier) -> None:
        versions = [b"%d" % number * 2000 for number in range(10)]
        tier.put_document("records/x", versions[0])
        done = threading.Event()

        def act(number: int) -> object:
            if number == 0:
                for version in versions:
                    tier.put_document("records/x", version)
                done.set()
                return True
            seen = [tier.get_document("records/x")]
            while not done.is_set():
                seen.append(tier.get_document("records/x"))
            return set(seen) <= set(versions)

        assert all_at_once(3, act) == [True] * 3

    def test_an_exclusive_document_is_never_replaced(self, tier: Tier) -> None:
        tier.put_document("store.json", b"first", exclusive=True)
        with pytest.raises(AlreadyExists) as caught:
            tier.put_document("store.json", b"second", exclusive=True)
        assert caught.value.subject == "store.json"
        assert tier.get_document("store.json") == b"first"

    def test_eight_exclusive_writers_have_one_winner(self, tier: Tier) -> None:
        for turn in range(5):
            key = f"records/race-{turn}"
            found = all_at_once(
                8, lambda number, key=key: tier.put_document(key, b"writer %d" % number, exclusive=True)
            )
            winners = [number for number, result in enumerate(found) if result is None]
            assert len(winners) == 1
            assert all(
                isinstance(result, AlreadyExists) for number, result in enumerate(found) if number not in winners
            )
            assert tier.get_document(key) == b"writer %d" % winners[0]

    def test_a_document_beyond_the_limit_is_refused(self, tier: Tier) -> None:
        tier.put_document("records/large", bytes(1001))
        with pytest.raises((InvalidInput, ChecksumMismatch)):
            tier.get_document("records/large", limit_bytes=1000)
        assert tier.get_document("records/large", limit_bytes=1001) == bytes(1001)

    # -- the rest --------------------

    def test_sweep_leaves_whole_objects_alone(self, tier: Tier) -> None:
        key = new_key()
        object_id = key.rpartition("~")[2]
        tier.put(key, MemorySource(b"whole"))
        tier.put_document("records/0001.json", b"{}")
        assert tier.sweep([object_id, new_id(), "0001.json"]) == 0
        assert tier.sweep(None) == 0
        assert stored(tier, key) == b"whole"
        assert tier.get_document("records/0001.json") == b"{}"

    def test_usage_and_facts_are_plausible(self, tier: Tier) -> None:
        tier.put(new_key(), MemorySource(content(10_000)))
        usage = tier.usage()
        assert usage.used_bytes >= 0
        assert usage.limit_bytes is None or usage.limit_bytes > 0
        assert usage.free_bytes is None or usage.free_bytes >= 0
        assert tier.facts.name
        assert tier.facts.location
