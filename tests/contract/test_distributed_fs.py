"""The posix tier on a real distributed file system, MooseFS with two servers, through two mounts that know nothing of each other.

What one client wrote, the other reads; what one deleted, the other no longer sees; one of many clients wins an exclusive
document. MooseFS has no fallocate and keeps times in whole seconds, so it also shows that the tier adapts.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import AlreadyExists, NotFound
from ckptstore_tiers import posix
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.codecs import CodecTier
from ckptstore_tiers.interface import Tier
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.posix_probe import MountAbilities, probe_mount
from ckptstore_tiers.sources import MemorySource
from tests.contract.tier_contract import TierContract, all_at_once, assert_nothing_visible, content, keys, new_key, stored

pytestmark = pytest.mark.pfs


@pytest.fixture(scope="module")
def abilities(moosefs: tuple[Path, Path]) -> MountAbilities:
    """What the probe says of the mount. It races for it, which takes a while over a network: once is enough for all tests."""
    found: list[MountAbilities] = []

    def remembered(*arguments: Any, **named: Any) -> MountAbilities:
        found.append(probe_mount(*arguments, **named))
        return found[-1]

    root = moosefs[0] / "probed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posix, "probe_mount", remembered)
        PosixTier("pfs", root, shared=True).close()
    assert list((root / "tmp").iterdir()) == []
    return found[0]


@pytest.fixture
def clients(
    moosefs: tuple[Path, Path], abilities: MountAbilities, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[PosixTier, PosixTier]]:
    """The same root through both mounts, as two nodes would open it."""
    folder = secrets.token_hex(4)
    monkeypatch.setattr(posix, "probe_mount", lambda *_, **__: abilities)
    first, second = (PosixTier("pfs", mount / folder, shared=True) for mount in moosefs)
    yield first, second
    first.close()
    second.close()
    assert list((moosefs[0] / folder / "tmp").iterdir()) == []


class OneWritesTheOtherReads:
    """A tier whose writes go through one mount and whose reads come through the other."""

    def __init__(self, writer: PosixTier, reader: PosixTier) -> None:
        self.facts = reader.facts
        self.put, self.put_document = writer.put, writer.put_document
        self.delete, self.sweep, self.usage = writer.delete, writer.sweep, writer.usage
        self.open, self.stat, self.list, self.get_document = reader.open, reader.stat, reader.list, reader.get_document

    def close(self) -> None:
        """The mounts' own tiers are closed by their fixture."""


class TestPosixTierOnMooseFS(TierContract):
    @pytest.fixture
    def tier(self, clients: tuple[PosixTier, PosixTier]) -> Tier:
        return clients[0]


class TestTwoClientsOfMooseFS(TierContract):
    @pytest.fixture
    def tier(self, clients: tuple[PosixTier, PosixTier]) -> Tier:
        return OneWritesTheOtherReads(*clients)


def test_the_probe_finds_what_moosefs_cannot_do(clients: tuple[PosixTier, PosixTier]) -> None:
    details = clients[0].facts.details
    assert details["fallocate"] == "no"
    assert details["o_excl"] == "one winner"
    assert details["flock"] == "yes"


def test_clients_on_both_mounts_have_one_winner(clients: tuple[PosixTier, PosixTier]) -> None:
    for turn in range(5):
        key = f"records/race-{turn}"
        found = all_at_once(
            8, lambda number, key=key: clients[number % 2].put_document(key, b"writer %d" % number, exclusive=True)
        )
        winners = [number for number, result in enumerate(found) if result is None]
        assert len(winners) == 1
        assert all(isinstance(result, AlreadyExists) for number, result in enumerate(found) if number not in winners)
        assert {client.get_document(key) for client in clients} == {b"writer %d" % winners[0]}


def test_both_clients_may_put_the_same_object(clients: tuple[PosixTier, PosixTier]) -> None:
    data, key = content(BLOCK_BYTES + 77), new_key()
    found = all_at_once(4, lambda number: clients[number % 2].put(key, MemorySource(data)))
    assert found == [BlockDigests.of(data)] * 4
    assert [stored(client, key) for client in clients] == [data, data]


def test_a_deleted_object_is_gone_for_the_other_client(clients: tuple[PosixTier, PosixTier]) -> None:
    data, key = content(BLOCK_BYTES + 77), new_key()
    clients[0].put(key, MemorySource(data))
    assert stored(clients[1], key) == data
    clients[0].delete(key)
    assert_nothing_visible(clients[1], key)


def test_clients_that_put_and_delete_in_one_folder_do_not_disturb_each_other(clients: tuple[PosixTier, PosixTier]) -> None:
    def churn(number: int) -> bool:
        writer, reader = clients[number % 2], clients[1 - number % 2]
        for turn in range(5):
            key = new_key(f"/churn/deep/{number}")
            writer.put(key, MemorySource(b"%d %d" % (number, turn)))
            if stored(reader, key) != b"%d %d" % (number, turn):
                return False
            reader.delete(key)
        return True

    assert all_at_once(4, churn) == [True] * 4
    assert keys(clients[0]) == []


def test_a_replaced_document_is_seen_by_the_other_client(clients: tuple[PosixTier, PosixTier]) -> None:
    for version in (b"first", b"second, longer", b"3"):
        clients[0].put_document("records/x", version)
        assert clients[1].get_document("records/x") == version
    clients[1].delete("records/x")
    with pytest.raises(NotFound):
        clients[0].get_document("records/x")


def test_a_compressed_object_is_read_by_the_other_client(clients: tuple[PosixTier, PosixTier], tmp_path: Path) -> None:
    first, second = (CodecTier(client, tmp_path / "spool", "zstd") for client in clients)
    data, key = b"weights " * 1_000_000, new_key()
    first.put(key, MemorySource(data))
    assert stored(second, key) == data
