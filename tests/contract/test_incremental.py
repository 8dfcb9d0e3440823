"""`save(incremental=True)`: only what changed is written, and everything is loaded as it was saved, from memory, disk and the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file

import ckptstore
from ckptstore import failpoints
from ckptstore.catalog.model import NewObject
from ckptstore.errors import InvalidInput
from ckptstore.layout import LAYOUT_KEY
from ckptstore.part import PART_KEY
from ckptstore.part_writing import write_part
from ckptstore.safetensors_format import TensorEntry, build_header
from ckptstore_bench.ports import free_port
from ckptstore_client import Store, whole_copy
from ckptstore_server.incremental import Increments, Lineage
from ckptstore_server.part_check import check_file
from ckptstore_server.tensor_digests import digest_file
from ckptstore_tiers.checksums import BlockDigests
from ckptstore_tiers.gathered_source import GatheredSource
from ckptstore_tiers.scratch import ScratchPool
from tests.daemon_process import write_config
from tests.faults.crash_story import until
from tests.faults.forked_daemon import ForkedDaemon

TOKEN = "a token of tests"
WAIT_S = 60.0
BLOCK = 4 << 20


@dataclass
class Place:
    base: Path
    daemon: ForkedDaemon
    url: str

    def connect(self, **options: Any) -> Store:
        return ckptstore.connect(home=self.base / "home", start=False, **options)

    def restart(self) -> None:
        """Without its memory, and whatever it had cached."""
        assert self.daemon.stop() == 0
        self.daemon = ForkedDaemon(self.base / "home").start()

    def objects(self, tier: str) -> dict[str, int]:
        """The files of ranks that lie in a tier, and their sizes."""
        root = self.base / tier
        return {str(file.relative_to(root)): file.stat().st_size for file in root.rglob("rank-*") if file.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    tiers: list[dict[str, Any]] = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True},
    ]
    memory = {"limit": "512MiB", "huge_pages": False, "idle_release_s": 600}
    listen = f"127.0.0.1:{free_port()}"
    write_config(tmp_path / "home", tiers=tiers, grace_s=0, memory=memory, listen=listen, token=TOKEN)
    place = Place(tmp_path, ForkedDaemon(tmp_path / "home").start(), f"http://{listen}")
    yield place
    place.daemon.kill()


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.connect() as store:
        yield store


def noise(seed: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def state_of(step: int, *, frozen: int = 3, size: int = BLOCK + 12_345) -> dict[str, Any]:
    """Some tensors that stay, and one that changes with each step."""
    base = {f"layer{number}": noise(number, size + number) for number in range(frozen)}
    return {"base": base, "lora": noise(1000 + step, size // 10), "step": step}


def save(store: Store, path: str, state: Any, tier: str = "nvme", **options: Any) -> None:
    store.save(path, state, incremental=True, rank=0, world_size=1, **options).wait(tier, timeout_s=WAIT_S)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)
    else:
        assert found == expected


def test_only_what_changed_is_written_and_all_of_it_is_loaded(place: Place, store: Store) -> None:
    for step in range(3):
        save(store, f"/run/{step}", state_of(step), "pfs")
    for tier in ("nvme", "pfs"):
        sizes = {name.split("/")[2]: size for name, size in place.objects(tier).items()}
        whole, changed = sizes["0"], BLOCK // 10
        assert sizes["1"] < 1.02 * changed + 8192
        assert sizes["2"] < 1.02 * changed + 8192
        assert whole > 3 * BLOCK
    for step in range(3):
        assert_same(store.load(f"/run/{step}"), state_of(step))
    place.restart()
    with place.connect() as cold:
        for step in range(3):
            assert_same(cold.load(f"/run/{step}"), state_of(step))


def test_a_part_of_it_and_into_and_the_network_are_served_like_any_other_checkpoint(place: Place, store: Store) -> None:
    for step in range(2):
        save(store, "/run/latest", state_of(step), replace=True)
    place.restart()
    with place.connect() as cold:
        assert_same(cold.load("/run/latest", only="base/layer1"), {"base": {"layer1": noise(1, BLOCK + 12_346)}})
        into = state_of(0)
        layer = into["base"]["layer2"]
        layer[:] = 0
        assert cold.load("/run/latest", into=into)["base"]["layer2"] is layer
        assert_same(into, state_of(1))
        assert_same(cold.load("/run/latest", mmap=True), state_of(1))
    with ckptstore.connect(place.url, token=TOKEN) as remote:
        assert_same(remote.load("/run/latest"), state_of(1))
        remote.save("/run/remote", state_of(2), incremental=True, rank=0, world_size=1).wait("nvme", timeout_s=WAIT_S)
        assert_same(remote.load("/run/remote"), state_of(2))
    assert min(place.objects("nvme").values()) < BLOCK


def test_what_was_just_saved_is_loaded_from_memory(place: Place, store: Store) -> None:
    for step in range(2):
        save(store, f"/run/{step}", state_of(step))
    for file in [*(place.base / "nvme").rglob("rank-*"), *(place.base / "pfs").rglob("rank-*")]:
        file.rename(file.with_suffix(".hidden"))
    for step in range(2):
        assert_same(store.load(f"/run/{step}"), state_of(step))


def test_a_segment_that_was_reused_is_passed_over(place: Place, store: Store) -> None:
    """With two slots, the third save takes the first one's memory: that one is then loaded from where it lies."""
    for step in range(5):
        save(store, f"/run/{step}", state_of(step))
    for step in range(5):
        assert_same(store.load(f"/run/{step}"), state_of(step))


def test_a_tensor_is_found_by_its_bytes_whatever_it_is_called_and_one_of_another_shape_is_written(place: Place, store: Store) -> None:
    weight = noise(1, BLOCK)
    save(store, "/run/0", {"weight": weight})
    save(store, "/run/1", {"model": {"renamed": weight}})
    save(store, "/run/2", {"model": {"renamed": weight[: BLOCK // 2]}})
    sizes = {name.split("/")[2]: size for name, size in place.objects("nvme").items()}
    assert sizes["1"] < 10_000
    assert sizes["2"] > BLOCK // 2
    place.restart()
    with place.connect() as cold:
        assert_same(cold.load("/run/1"), {"model": {"renamed": weight}})
        assert_same(cold.load("/run/2"), {"model": {"renamed": weight[: BLOCK // 2]}})


def test_a_copy_is_one_whole_file_that_any_reader_opens(
    place: Place, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_copy, "CHUNK_BYTES", 1_000_003)
    zeros = {f"zeros{number}": np.zeros(5000, np.float32) for number in range(3)}
    for step in range(3):
        save(store, f"/run/{step}", state_of(step) | {"moments": zeros, "scale": np.float32([step])})
    copy = store.get("/run/2", tmp_path / "copy")
    (file,) = copy.glob("rank-*")
    found = load_file(file)
    assert_same(found["base/layer2"], noise(2, BLOCK + 12_347))
    assert_same(found["lora"], noise(1002, (BLOCK + 12_345) // 10))
    assert all(np.array_equal(found[f"moments/{name}"], value) for name, value in zeros.items())
    assert len(found) == 3 + 1 + 3 + 1
    single = store.get("/run/2/rank-00000-of-00001.safetensors", tmp_path / "single")
    assert single.read_bytes() == file.read_bytes()
    place.restart()
    with place.connect() as cold:
        assert_same(cold.load("/run/2")["moments"], zeros)


def test_references_name_the_object_that_holds_the_bytes_however_long_the_chain(place: Place, store: Store) -> None:
    for step in range(4):
        save(store, f"/run/{step}", state_of(step))
    (index,) = (place.base / "nvme" / "objects" / "run" / "3").glob("checkpoint.json*")
    (part,) = json.loads(index.read_text())["parts"]
    (first,) = (key for key in place.objects("nvme") if key.startswith("objects/run/0/"))
    assert part["refers_to"] == [first]


def test_removed_in_any_order_every_other_one_stays_and_the_last_takes_everything(place: Place, store: Store) -> None:
    for step in range(4):
        save(store, f"/run/{step}", state_of(step), "pfs")
    usage, base = store.du("/run"), 3 * BLOCK
    assert usage.referred_bytes > 3 * base
    left = {0, 1, 2, 3}
    for gone in (0, 2, 3, 1):
        store.rm(f"/run/{gone}")
        left.discard(gone)
        place.restart()
        with place.connect() as cold:
            for step in left:
                assert_same(cold.load(f"/run/{step}"), state_of(step))
            if left:
                assert cold.du("/run").kept_bytes > base
                assert cold.stat(f"/run/{min(left)}").referred_bytes > base
    with place.connect() as cold:
        until(lambda: not place.objects("nvme") and not place.objects("pfs"), "the base is left", cold)


def test_a_base_that_is_damaged_or_missing_only_makes_the_save_a_full_one(place: Place, store: Store) -> None:
    save(store, "/run/0", state_of(0), "pfs")
    place.restart()
    for tier in ("nvme", "pfs"):
        (base,) = (place.base / tier).rglob("rank-*")
        data = bytearray(base.read_bytes())
        data[100] ^= 1  # in its header: it cannot be compared with
        base.write_bytes(data)
    with place.connect() as cold:
        save(cold, "/run/1", state_of(1))
        assert_same(cold.load("/run/1"), state_of(1))
        assert cold.stat("/run/1").referred_bytes == 0
        save(cold, "/run/2", state_of(2))
        assert cold.stat("/run/2").referred_bytes > 3 * BLOCK


def test_each_rank_refers_to_its_own_earlier_files(place: Place) -> None:
    with place.connect(group="job") as one, place.connect(group="job") as two:
        for step in range(2):
            pending = [
                store.save(f"/run/{step}", state_of(step, frozen=rank + 1), incremental=True, rank=rank, world_size=2)
                for rank, store in enumerate((one, two))
            ]
            for item in pending:
                item.wait("nvme", timeout_s=WAIT_S)
    place.restart()
    with place.connect() as cold:
        assert cold.stat("/run/1").referred_bytes == sum(BLOCK + 12_345 + number for number in (0, 0, 1))
        for rank in range(2):
            assert_same(cold.load("/run/1", rank=rank), state_of(1, frozen=rank + 1))


def test_with_nine_tenths_frozen_hardly_more_is_written_than_changed(place: Place, store: Store) -> None:
    """In every tier: `ckptstore bench` measures the same at 256 MiB and more."""
    state = {f"frozen{number}": noise(number, 2 << 20) for number in range(9)} | {"trained": noise(9, 2 << 20)}
    save(store, "/run/0", state, "pfs")
    state["trained"] = noise(10, 2 << 20)
    save(store, "/run/1", state, "pfs")
    for tier in ("nvme", "pfs"):
        written = sum(size for name, size in place.objects(tier).items() if name.startswith("objects/run/1/"))
        assert written <= 1.02 * (2 << 20)


def test_a_client_that_names_objects_itself_is_refused(place: Place) -> None:
    with pytest.raises(InvalidInput, match="does not say which objects"):
        check_file(memoryview(build_header([], {LAYOUT_KEY: "{}", "ckptstore": "{}"})), 0)


def test_both_digests_of_a_byte_are_those_of_its_tensor_and_its_block() -> None:
    data, entries = noise(1, BLOCK + 5), [TensorEntry("v", "U8", (3,), 0, 3), TensorEntry("w", "U8", (BLOCK + 2,), 3, BLOCK + 5)]
    with ScratchPool().borrow() as scratch:
        found = digest_file(GatheredSource([b"head", data]), 4, entries, scratch)
    assert found.tensors == {"v": xxhash.xxh3_128_hexdigest(data[:3]), "w": xxhash.xxh3_128_hexdigest(data[3:])}
    assert found.blocks == BlockDigests.of(b"head" + data.tobytes())


def test_a_write_that_comes_after_the_comparison_ends_the_save() -> None:
    """What was compared and what would be stored are not the same any more: no checkpoint may say that they are."""
    header = build_header([TensorEntry("w", "U8", (1000,), 0, 1000)], {PART_KEY: write_part({"w": {"$array": "w"}})})
    segment = memoryview(bytearray(header + bytes(1000)))
    node = SimpleNamespace(scratch=ScratchPool(), durable=(), catalog=SimpleNamespace(bases=lambda *_, **__: []))
    increments = Increments(cast(Any, node), cast(Any, None))
    arguments = ("attempt", NewObject("object", "rank", "key"), Lineage("/run/1", 0), segment, check_file(segment, 0).header)
    assert increments.prepare(*arguments) is not None

    def write_late(name: str) -> None:
        segment[-1] ^= 1

    with failpoints.listening(write_late), pytest.raises(InvalidInput, match="changed while it was stored"):
        increments.prepare(*arguments)
