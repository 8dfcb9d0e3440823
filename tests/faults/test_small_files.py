"""Many small files that enter a posix tier together, at its worst moments: every call fails once, the power is cut before each.

What holds each time: each file is whole or absent; if the call had returned, all are there; after an error none is, and the next try works.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ckptstore import failpoints
from ckptstore.errors import AlreadyExists, ChecksumMismatch, TierFull, TierUnavailable
from ckptstore_tiers import disk_calls, posix_batch
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.sources import MemorySource
from tests.contract.tier_contract import keys, stored
from tests.faults.power_cut import PowerCutDisk, Survives

IDS = [f"{number:032x}" for number in range(4)]
#: In two folders, an empty one among them.
FILES = {
    f"objects/run/{'a' if number < 2 else 'b'}/{number}~{object_id}": bytes([number]) * 50 * number for number, object_id in enumerate(IDS)
}


def put(tier: PosixTier) -> None:
    digests = tier.put_many([(key, memoryview(data)) for key, data in FILES.items()])
    assert [found.size_bytes for found in digests] == [len(data) for data in FILES.values()]


def found_in(tier: PosixTier) -> dict[str, bytes]:
    return {key: stored(tier, key) for key in keys(tier)}


def labels_of(root: Path, *, shared: bool) -> Counter[str]:
    tier, seen = PosixTier("nvme", root, shared=shared), []
    with failpoints.listening(seen.append):
        put(tier)
    tier.close()
    return Counter(seen)


def test_many_files_cost_each_folder_one_fsync(tmp_path: Path) -> None:
    seen = labels_of(tmp_path / "root", shared=False)
    assert seen["posix.put.fsync_folder"] == 2
    assert seen["posix.put.fsync"] == seen["posix.put.publish"] == len(FILES)


@pytest.mark.parametrize("shared", [False, True], ids=["local", "shared"])
def test_a_power_cut_leaves_each_file_whole_or_absent(tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix_batch, "WRITERS", 1)  # the model sees one thread at a time
    tier = PosixTier("nvme", tmp_path / "root", shared=shared)
    disk = PowerCutDisk(tmp_path / "root")
    with disk_calls.witnessed_by(disk):
        put(tier)
        after = disk.now()
    tier.close()
    for number, moment in enumerate([*disk.moments, after]):
        for survives in Survives:
            root = tmp_path / f"cut-{number}-{survives.value}"
            moment.images[survives].materialise(root)
            left = PosixTier("nvme", root)
            found = found_in(left)
            assert found.items() <= FILES.items(), f"before {moment.label} ({moment.call}), {survives.value}"
            if moment is after:
                assert found == FILES, survives.value
            left.sweep(IDS)
            assert list((root / "tmp").iterdir()) == []
            left.close()


@pytest.mark.parametrize(("name", "error"), [("eio", TierUnavailable), ("enospc", TierFull)])
@pytest.mark.parametrize("shared", [False, True], ids=["local", "shared"])
def test_an_error_of_any_call_leaves_none_of_them_and_the_next_try_works(
    tmp_path: Path, name: str, error: type[Exception], shared: bool
) -> None:
    for label, hits in labels_of(tmp_path / "dry", shared=shared).items():
        if label == "posix.put.fsync" or label.startswith("posix.folder"):
            hits = 1
        root = tmp_path / f"{label}-{name}"
        tier = PosixTier("nvme", root, shared=shared)
        with failpoints.armed(f"{label}={name}@{hits}"):
            try:
                put(tier)
            except error:
                assert found_in(tier) == {}, label
                assert list((root / "tmp").iterdir()) == [], label
            else:
                assert label == "posix.put.fsync" and name == "eio", f"{label}: the error was passed over"  # written anew
        put(tier)
        assert found_in(tier) == FILES, label
        tier.close()


def test_a_repeated_put_succeeds_and_other_bytes_under_a_key_are_refused(tmp_path: Path) -> None:
    tier = PosixTier("nvme", tmp_path / "root")
    put(tier)
    put(tier)
    assert tier.usage().used_bytes == sum(map(len, FILES.values()))
    key = next(iter(FILES))
    with pytest.raises((AlreadyExists, ChecksumMismatch)):
        tier.put_many([("objects/new~" + "f" * 32, memoryview(b"new")), (key, memoryview(b"other"))])
    assert found_in(tier) == FILES
    tier.close()


def test_a_batch_that_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    tier = PosixTier("nvme", tmp_path / "root", capacity_bytes=sum(map(len, FILES.values())) - 1)
    with pytest.raises(TierFull):
        put(tier)
    assert found_in(tier) == {} and tier.usage().used_bytes == 0
    tier.put("objects/one~" + "f" * 32, MemorySource(b"fits"))
    tier.close()
