"""Stored bytes change behind the store's back: every reader notices, takes another replica, and the damaged one is replaced.

Bits are flipped in files, in the bucket and in memory, files are cut, removed and replaced by other things. Repairs are looked for in
the file or bucket itself, not asked of `verify`, which would repair by itself.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import ChecksumMismatch
from ckptstore.wire import VerifyLine
from ckptstore_bench.ports import free_port
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client import Store
from tests.faults.fault_store import FaultStore, assert_state, objects_below, posix_tier, state_of, tier_status, verified
from tests.faults.raw_client import RawClient, part_file
from tests.until import until

BUCKET, PREFIX = "checkpoints", "damage"
TOKEN = "a token of tests"
TIERS = ["nvme", "pfs", "object"]
#: Two blocks: the damage is in the second one, so that a reader of the first alone would miss it.
SIZE = 5 << 20
WHERE = (4 << 20) + 4242
PART = "rank-00000-of-00001.safetensors"


@dataclass
class Damaged:
    """The store, its bucket, and ways to spoil what lies in them."""

    place: FaultStore
    seaweed: SeaweedS3
    url: str

    def file(self, tier: str, path: str, name: str = PART) -> Path:
        """Where a posix tier keeps a file of a checkpoint."""
        return next(file for file in objects_below(self.place.root(tier)) if f"objects{path}/{name}~" in str(file))

    def key(self, path: str, name: str = PART) -> str:
        nvme = self.place.root("nvme")
        return f"{PREFIX}/{self.file('nvme', path, name).relative_to(nvme)}"

    def read(self, tier: str, key: str) -> bytes | None:
        """What a tier holds, read past the daemon."""
        if tier == "object":
            client = self.seaweed.client()
            there = [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix=key).get("Contents", [])]
            return client.get_object(Bucket=BUCKET, Key=key)["Body"].read() if key in there else None
        file = self.place.root(tier) / key.removeprefix(f"{PREFIX}/")
        return file.read_bytes() if file.is_file() and not file.is_symlink() else None

    def write(self, tier: str, key: str, data: bytes) -> None:
        if tier == "object":
            self.seaweed.client().put_object(Bucket=BUCKET, Key=key, Body=data)
        else:
            (self.place.root(tier) / key.removeprefix(f"{PREFIX}/")).write_bytes(data)

    def flip(self, tier: str, key: str, at: int = WHERE) -> None:
        data = bytearray(self.read(tier, key) or b"")
        data[at] ^= 1
        self.write(tier, key, bytes(data))

    def remove(self, tier: str, key: str) -> None:
        (self.place.root(tier) / key.removeprefix(f"{PREFIX}/")).unlink()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damaged]:
    folder = tmp_path_factory.mktemp("damage")
    port = free_port()
    with SeaweedS3(folder / "seaweed") as seaweed:
        seaweed.create_bucket(BUCKET)
        tiers = [
            posix_tier("nvme", folder / "nvme"),
            posix_tier("pfs", folder / "pfs", shared=True),
            {"name": "object", "kind": "object", "url": f"s3://{BUCKET}/{PREFIX}"},
        ]
        # Damage is what is tested, not restraint: drains that rest while other tests use the machine would only use up the patience.
        settings = {"listen": f"127.0.0.1:{port}", "token": TOKEN, "quiet": {"busy_share": 1.0, "nice": 0}}
        with FaultStore(folder / "home", tiers, environment=seaweed.environment(), settings=settings) as place:
            place.start()
            yield Damaged(place, seaweed, f"http://127.0.0.1:{port}")


@pytest.fixture
def store(damaged: Damaged) -> Iterator[Store]:
    with damaged.place.connect() as store:
        yield store


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    return "/" + re.sub("[^a-z]+", "-", request.node.name)


def saved(store: Store, path: str, value: int = 1) -> None:
    """A checkpoint in every tier and not in memory: a session's slots go to its next saves."""
    store.save(path, state_of(value, size_bytes=SIZE)).wait("object", timeout_s=90)
    for spare in range(2):
        store.save(f"{path}-spare-{spare}", state_of(0, size_bytes=SIZE)).wait("nvme", timeout_s=60)


# --- every way to read ---------------------------------------------------------------------------------------------------------------


def into_new_memory(damaged: Damaged, store: Store, path: str, scratch: Path) -> None:
    assert_state(store.load(path), 1, size_bytes=SIZE)


def in_place(damaged: Damaged, store: Store, path: str, scratch: Path) -> None:
    state = {"w": np.zeros(SIZE, np.uint8), "step": 0, "name": ""}
    store.load(path, into=state)
    assert_state(state, 1, size_bytes=SIZE)


def one_leaf(damaged: Damaged, store: Store, path: str, scratch: Path) -> None:
    assert np.array_equal(store.load(path, only="w")["w"], state_of(1, size_bytes=SIZE)["w"])


def over_the_network(damaged: Damaged, store: Store, path: str, scratch: Path) -> None:
    with ckptstore.connect(damaged.url, token=TOKEN) as far:
        assert_state(far.load(path), 1, size_bytes=SIZE)


def as_files(damaged: Damaged, store: Store, path: str, scratch: Path) -> None:
    from safetensors.numpy import load_file

    got = store.get(path, scratch / "got")
    assert np.array_equal(load_file(got / PART)["w"], state_of(1, size_bytes=SIZE)["w"])


READERS = [into_new_memory, in_place, one_leaf, over_the_network, as_files]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_flipped_bit_is_noticed_passed_over_and_repaired(
    damaged: Damaged, store: Store, folder: str, tmp_path: Path, reader: Callable[..., None]
) -> None:
    """In each tier in turn; what is nearer is missing, so that the damaged one is what the reader comes to."""
    for depth, tier in enumerate(TIERS[:2]):
        path = f"{folder}/{tier}"
        saved(store, path)
        key = damaged.key(path)
        whole = damaged.read(tier, key)
        for nearer in TIERS[:depth]:
            damaged.remove(nearer, key)
        damaged.flip(tier, key)
        reader(damaged, store, path, tmp_path / tier)
        for repaired in TIERS[: depth + 1]:
            until(f"{repaired} is whole again", lambda at=repaired, k=key, w=whole: damaged.read(at, k) == w)  # type: ignore[misc]
        until("durability is whole again", lambda p=path: store.stat(p).durability == TIERS)  # type: ignore[misc]
        assert verified(store, path) == []


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_with_no_good_replica_left_the_error_names_object_tier_and_file(
    damaged: Damaged, store: Store, folder: str, tmp_path: Path, reader: Callable[..., None]
) -> None:
    path = f"{folder}/lost"
    saved(store, path)
    key = damaged.key(path)
    for tier in TIERS:
        damaged.flip(tier, key)
    for _ in range(2):  # the second reader finds them marked as damaged, and gets the same answer
        with pytest.raises(ChecksumMismatch) as caught:
            reader(damaged, store, path, tmp_path / "got")
        assert key.rpartition("~")[2] in str(caught.value)
        assert PART in str(caught.value)
        assert any(tier in (caught.value.tier or "") for tier in TIERS), str(caught.value)
    assert not (tmp_path / "got" / "got").exists()
    assert {line.tier for line in verified(store, path)} == {*TIERS}
    assert all(damaged.read(tier, key) for tier in TIERS), "what no good replica can replace is not thrown away"
    store.rm(path)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_bit_flipped_in_the_bucket_is_found_by_verify_and_by_a_load_that_needs_it(
    damaged: Damaged, store: Store, folder: str, tmp_path: Path, reader: Callable[..., None]
) -> None:
    """The load finds it when nothing nearer is left: it refuses, and once a nearer replica is back it takes that one and repairs."""
    saved(store, f"{folder}/verify")
    key = damaged.key(f"{folder}/verify")
    whole = damaged.read("object", key)
    damaged.flip("object", key)
    (line,) = verified(store, f"{folder}/verify")
    assert (line.tier, line.repaired) == ("object", True)
    assert damaged.read("object", key) == whole
    assert verified(store, f"{folder}/verify") == []
    path = f"{folder}/load"
    saved(store, path)
    key = damaged.key(path)
    whole = damaged.read("object", key)
    assert whole is not None
    damaged.flip("object", key)
    spoilt = damaged.read("object", key)
    for nearer in TIERS[:2]:
        damaged.remove(nearer, key)
    with pytest.raises(ChecksumMismatch) as caught:
        reader(damaged, store, path, tmp_path / "refused")
    assert (caught.value.tier, key.rpartition("~")[2] in str(caught.value), PART in str(caught.value)) == ("object", True, True)
    assert damaged.read("object", key) == spoilt, "what no good replica can replace is not thrown away"
    assert "object" not in store.stat(path).durability
    damaged.write("pfs", key, whole)
    reader(damaged, store, path, tmp_path / "found")
    for tier in TIERS:
        until(f"{tier} is whole again", lambda at=tier: damaged.read(at, key) == whole)  # type: ignore[misc]
    until("durability is whole again", lambda: store.stat(path).durability == TIERS)
    assert verified(store, path) == []


def test_what_only_looked_damaged_on_the_way_is_believed_again(damaged: Damaged, store: Store, folder: str) -> None:
    """All replicas go bad and one comes back as it was (a broken cable, say): it was never given up for good."""
    path = f"{folder}/back"
    saved(store, path)
    key = damaged.key(path)
    whole = damaged.read("object", key)
    for tier in TIERS:
        damaged.flip(tier, key)
    with pytest.raises(ChecksumMismatch):
        store.load(path)
    damaged.flip("object", key)
    assert_state(store.load(path), 1, size_bytes=SIZE)
    for tier in TIERS:
        until(f"{tier} is whole again", lambda at=tier: damaged.read(at, key) == whole)  # type: ignore[misc]
    until("verify is clean", lambda: not verified(store, path))


def test_bytes_that_change_in_memory_after_the_save_are_never_loaded(damaged: Damaged, store: Store, folder: str) -> None:
    """A client that goes on writing into its segment spoils the memory replica: the loader takes the next one."""
    content = part_file(SIZE)
    with RawClient(damaged.place.daemon) as client:
        opened, segment = client.stage(f"{folder}/a", content)
        assert client.hand_over(opened, len(content)).status_code == 200
        assert client.outcome(opened)["state"] == "published"
        store.wait(f"{folder}/a", "nvme", timeout_s=60)
        whole = store.load(f"{folder}/a")["w"]
        segment.view[WHERE] ^= 1
        assert np.array_equal(store.load(f"{folder}/a")["w"], whole)
        assert not any(line.tier == "memory" for line in store.verify(f"{folder}/a"))


def read_by_verify(store: Store, path: str) -> tuple[set[str], list[VerifyLine]]:
    """Where `verify` has read the rank's file, and the lines of all that it finds wrong."""
    lines = list(store.verify(path))
    return {line.tier for line in lines if line.path == f"{path}/{PART}"}, [line for line in lines if line.problem is not None]


def test_a_damaged_memory_replica_is_found_by_verify_and_given_up(damaged: Damaged, store: Store, folder: str) -> None:
    """Nobody has loaded it since: `verify` reads memory too. It has no place of its own to be repaired in, and the tiers have the bytes."""
    content = part_file(SIZE)
    path = f"{folder}/a"
    with RawClient(damaged.place.daemon) as client:
        opened, segment = client.stage(path, content)
        assert client.hand_over(opened, len(content)).status_code == 200
        assert client.outcome(opened)["state"] == "published"
        store.wait(path, "object", timeout_s=90)
        assert read_by_verify(store, path) == ({"memory", *TIERS}, [])
        segment.view[WHERE] ^= 1
        (line,) = verified(store, path)
        assert (line.path, line.tier, line.repaired) == (f"{path}/{PART}", "memory", True)
        assert "block 1" in (line.problem or "")
        assert read_by_verify(store, path) == ({*TIERS}, [])
        assert np.array_equal(store.load(path)["w"], np.full(SIZE, 7, np.uint8))


def test_a_damaged_index_is_repaired_like_any_file(damaged: Damaged, store: Store, folder: str, tmp_path: Path) -> None:
    saved(store, f"{folder}/a")
    key = damaged.key(f"{folder}/a", "checkpoint.json")
    whole = damaged.read("nvme", key)
    damaged.flip("nvme", key, at=3)
    store.get(f"{folder}/a", tmp_path / "got")
    assert (tmp_path / "got" / "checkpoint.json").read_bytes() == whole
    until("the index is whole again", lambda: damaged.read("nvme", key) == whole)


# --- other things in the place of a file ---------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    os.truncate(file, WHERE)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def lengthened(file: Path) -> None:
    with open(file, "ab") as longer:
        longer.write(b"more")


def removed(file: Path) -> None:
    file.unlink()


def linked_to_a_secret(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/passwd")


def linked_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def made_a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def made_an_empty_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [cut, emptied, lengthened, removed, linked_to_a_secret, linked_to_itself, made_a_fifo, made_an_empty_folder],
    ids=lambda spoil: spoil.__name__,
)
def test_whatever_stands_in_the_place_of_a_file_the_reader_gets_what_was_saved(
    damaged: Damaged, store: Store, folder: str, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = f"{folder}/a"
    saved(store, path)
    file, key = damaged.file("nvme", path), damaged.key(path)
    whole = damaged.read("nvme", key)
    spoil(file)
    for reader in (into_new_memory, over_the_network):
        reader(damaged, store, path, tmp_path)
    store.get(path, tmp_path / "got")
    assert (tmp_path / "got" / PART).read_bytes() == whole
    list(store.verify(path))
    until("it is whole again", lambda: damaged.read("nvme", key) == whole)
    assert verified(store, path) == []
    assert Path("/etc/passwd").read_bytes() != whole


def test_a_folder_with_something_in_it_is_left_alone_and_named(damaged: Damaged, store: Store, folder: str, tmp_path: Path) -> None:
    """It is nobody's: it is not deleted, the checkpoint is read from elsewhere, and `status` says what is in the way."""
    path = f"{folder}/a"
    saved(store, path)
    file, key = damaged.file("nvme", path), damaged.key(path)
    whole = damaged.read("nvme", key)
    file.unlink()
    file.mkdir()
    (file / "precious").write_text("not ours")
    into_new_memory(damaged, store, path, tmp_path)
    until("the obstacle is named", lambda: key.rpartition("~")[2] in (tier_status(store.status(), "nvme").last_error or ""))
    assert (file / "precious").read_text() == "not ours"
    shutil.rmtree(file)
    list(store.verify(path))
    until("it is whole again", lambda: damaged.read("nvme", key) == whole)


def test_a_tier_wiped_under_a_running_daemon_is_filled_again(damaged: Damaged, store: Store, folder: str) -> None:
    saved(store, f"{folder}/a")
    shutil.rmtree(damaged.place.root("nvme") / "objects" / folder.strip("/"))
    assert_state(store.load(f"{folder}/a"), 1, size_bytes=SIZE)
    list(store.verify(folder))
    until("it is clean", lambda: not verified(store, folder))
    assert damaged.file("nvme", f"{folder}/a").stat().st_size == damaged.file("pfs", f"{folder}/a").stat().st_size


def test_a_crafted_index_put_by_hand_is_never_read_as_a_checkpoint(damaged: Damaged, store: Store, folder: str, tmp_path: Path) -> None:
    """`checkpoint.json` of a put is a file like others: nothing in it is followed."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "checkpoint.json").write_text('{"format":"ckptstore.checkpoint","files":[{"name":"../../etc/passwd"}]}')
    store.put(tmp_path / "fake", f"{folder}/fake", timeout_s=60)
    with pytest.raises(ckptstore.errors.InvalidInput):
        store.load(f"{folder}/fake")
    assert sorted(file.name for file in store.get(f"{folder}/fake", tmp_path / "back").iterdir()) == ["checkpoint.json"]


