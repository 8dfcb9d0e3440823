"""Commit records that rot in the tiers: `verify` finds them and writes them anew, so that a lost catalog still finds everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptstore.records import read_record, write_record
from ckptstore_client import Store
from tests.daemon_process import run_rebuild
from tests.faults.fault_store import FaultStore, assert_state, posix_tier, state_of, verified

SIZE = 100_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStore]:
    folder = tmp_path_factory.mktemp("records")
    tiers = [posix_tier("nvme", folder / "nvme"), posix_tier("pfs", folder / "pfs", shared=True)]
    with FaultStore(folder / "home", tiers) as place:
        yield place.start()


@pytest.fixture
def store(place: FaultStore) -> Iterator[Store]:
    with place.connect() as store:
        yield store


def record_of(place: FaultStore, store: Store, tier: str, path: str) -> Path:
    return place.root(tier) / "records" / f"{store.stat(path).publication_id}.jsonl"


def removed(file: Path) -> None:
    file.unlink()


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def older(file: Path) -> None:
    """A whole record, digest and all, that says something else than the catalog."""
    record = read_record(file.read_bytes(), subject=file.name)
    header = record.header.model_copy(update={"sequence": record.header.sequence + 5, "metadata": '{"said": "otherwise"}'})
    file.write_bytes(b"".join(write_record(header, record.files(), record.references())))


def of_another(file: Path) -> None:
    other = next(record for record in file.parent.iterdir() if record != file)
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("tier", ["nvme", "pfs"])
@pytest.mark.parametrize("spoil", [removed, cut_off, emptied, flipped, older, of_another])
def test_a_record_that_is_missing_damaged_or_differs_is_found_and_written_anew(
    spoil: Callable[[Path], None], tier: str, place: FaultStore, store: Store
) -> None:
    path = f"/records/{spoil.__name__}-{tier}"
    for name in (path, f"{path}-beside"):
        store.save(name, state_of(1, size_bytes=SIZE), metadata={"run": 7}).wait("pfs", timeout_s=60)
    file = record_of(place, store, tier, path)
    before = file.read_bytes()
    spoil(file)
    (line,) = verified(store, path)
    assert (line.path, line.tier, line.record, line.repaired) == (path, tier, True, True)
    assert "commit record" in (line.problem or "")
    assert file.read_bytes() == before
    assert verified(store, path) == []


def test_the_sums_count_records_and_replicas(store: Store) -> None:
    store.save("/sums/one", state_of(1, size_bytes=SIZE)).wait("pfs", timeout_s=60)
    store.save("/sums/two", state_of(2, size_bytes=SIZE)).wait("pfs", timeout_s=60)
    *lines, last = store.verify("/sums")
    assert last.records == sum(line.record for line in lines) == 4
    assert last.replicas == len(lines) - 4
    *lines, last = store.verify("/sums/one/checkpoint.json")
    assert (last.records, last.problems) == (0, 0), "a file in a checkpoint has no record of its own"


def test_what_was_removed_gets_no_record_again(place: FaultStore, store: Store) -> None:
    store.save("/gone/one", state_of(1, size_bytes=SIZE)).wait("pfs", timeout_s=60)
    file = record_of(place, store, "pfs", "/gone/one")
    store.rm("/gone/one")
    assert verified(store, "/") == []
    assert not file.exists()


def test_a_rebuild_after_verify_brings_back_what_rotten_records_would_have_lost(tmp_path: Path) -> None:
    tiers = [posix_tier("nvme", tmp_path / "nvme"), posix_tier("pfs", tmp_path / "pfs", shared=True)]
    with FaultStore(tmp_path / "home", tiers) as place:
        place.start()
        with place.connect() as store:
            store.save("/run/1", state_of(1, size_bytes=SIZE)).wait("pfs", timeout_s=60)
            for tier in ("nvme", "pfs"):
                cut_off(record_of(place, store, tier, "/run/1"))
            assert [line.repaired for line in verified(store)] == [True, True]
        place.daemon.stop()
        for file in place.home.glob("catalog.sqlite3*"):
            file.unlink()
        assert run_rebuild(place.home) == 0
        place.start()
        with place.connect() as store:
            assert_state(store.load("/run/1"), 1, size_bytes=SIZE)
            assert verified(store) == [], "the records of a rebuilt catalog are its own"
