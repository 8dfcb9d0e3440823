"""The posix tier at its worst moments: every call fails once, the process dies before each, the power is cut before each.

What holds each time: an object or document is visible whole or not at all; if the call had returned, it is there, identical;
after an error nothing is visible and the next try works; `sweep` leaves no unfinished file.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptstore import failpoints
from ckptstore.errors import ChecksumMismatch, CkptStoreError, ConfigInvalid, NotFound, TierFull, TierUnavailable
from ckptstore_tiers import disk_calls, posix, posix_probe
from ckptstore_tiers.checksums import BLOCK_BYTES, BlockDigests
from ckptstore_tiers.posix import PosixTier
from ckptstore_tiers.sources import MemorySource
from tests.contract.tier_contract import content, keys, stored
from tests.faults.power_cut import Moment, PowerCutDisk, Survives

OBJECT_ID = "0123456789abcdef0123456789abcdef"
KEY = f"objects/runs/gpt/step-000100/model.safetensors~{OBJECT_ID}"
DOCUMENT = "records/runs/0001.json"
OWNED = [OBJECT_ID, "0001.json"]
DATA = content(BLOCK_BYTES + 1234)
OLD, NEW = b"old document " * 100, b"new document"


def put(tier: PosixTier) -> None:
    tier.put(KEY, MemorySource(DATA), expected=BlockDigests.of(DATA))


def put_document(tier: PosixTier) -> None:
    tier.put_document(DOCUMENT, NEW)


def put_exclusive(tier: PosixTier) -> None:
    tier.put_document(DOCUMENT, NEW, exclusive=True)


def delete(tier: PosixTier) -> None:
    tier.delete(KEY)


def nothing(tier: PosixTier) -> None:
    return


def put_old_document(tier: PosixTier) -> None:
    tier.put_document(DOCUMENT, OLD)


#: name → what was there before, what is done, the key, what may be visible before it returned, what must be after
OPERATIONS: dict[str, tuple[Callable[[PosixTier], None], Callable[[PosixTier], None], str, list[bytes | None], bytes | None]] = {
    "put": (nothing, put, KEY, [None, DATA], DATA),
    "repeated put": (put, put, KEY, [DATA], DATA),
    "put document": (nothing, put_document, DOCUMENT, [None, NEW], NEW),
    "replace document": (put_old_document, put_document, DOCUMENT, [OLD, NEW], NEW),
    "put exclusive document": (nothing, put_exclusive, DOCUMENT, [None, NEW], NEW),
    "delete": (put, delete, KEY, [DATA, None], None),
    "repeated delete": (lambda tier: (put(tier), delete(tier))[0], delete, KEY, [None], None),
}


def visible(tier: PosixTier, key: str) -> bytes | None:
    try:
        return stored(tier, key)
    except NotFound:
        return None


def open_tier(root: Path, *, shared: bool) -> PosixTier:
    return PosixTier("nvme", root, shared=shared)


def labels_of(root: Path, operation: str, *, shared: bool) -> list[str]:
    """The labels that an undisturbed run of the operation passes, each once, in order."""
    before, act, *_ = OPERATIONS[operation]
    tier, seen = open_tier(root, shared=shared), []
    before(tier)
    with failpoints.listening(seen.append):
        act(tier)
    tier.close()
    return list(dict.fromkeys(seen))


# -- power cut --------------------


@pytest.mark.parametrize("shared", [False, True], ids=["local", "shared"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_power_cut_before_any_call_leaves_it_whole_or_absent(tmp_path: Path, operation: str, shared: bool) -> None:
    before, act, key, allowed, afterwards = OPERATIONS[operation]
    tier = open_tier(tmp_path / "root", shared=shared)
    disk = PowerCutDisk(tmp_path / "root")
    with disk_calls.witnessed_by(disk):
        before(tier)
        disk.moments.clear()
        act(tier)
        after = disk.now()
    tier.close()
    assert len(disk.moments) >= 1
    for number, moment in enumerate(disk.moments):
        check_survivors(tmp_path / f"cut-{number}", moment, key, allowed)
    check_survivors(tmp_path / "returned", after, key, [afterwards])


def check_survivors(place: Path, moment: Moment, key: str, allowed: list[bytes | None]) -> None:
    for survives in Survives:
        root = place / survives.value
        moment.images[survives].materialise(root)
        tier = open_tier(root, shared=False)
        found = visible(tier, key)
        where = f"power cut before {moment.label} ({moment.call}), {survives.value}"
        assert found in allowed, f"{where}: {None if found is None else len(found)} bytes are visible"
        assert keys(tier) == ([] if found is None else [key]), where
        tier.sweep(OWNED)
        assert list((root / "tmp").iterdir()) == [], where
        tier.close()


def test_a_put_without_its_folder_fsync_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model can fail: with one fsync left out, the object that was acknowledged is gone."""
    tier = open_tier(tmp_path / "root", shared=False)
    disk = PowerCutDisk(tmp_path / "root")
    original = disk_calls.fsync
    monkeypatch.setattr(disk_calls, "fsync", lambda label, fd: None if label == posix.SYNC_FOLDER else original(label, fd))
    with disk_calls.witnessed_by(disk):
        put(tier)
    tier.close()
    with pytest.raises(AssertionError, match="strict"):
        check_survivors(tmp_path / "returned", disk.now(), KEY, [DATA])


# -- errors --------------------

ERRORS = {"eio": TierUnavailable, "enospc": TierFull, "edquot": TierFull, "erofs": TierUnavailable, "estale": TierUnavailable}


EVERY_OPERATION = [(operation, name, False) for operation in OPERATIONS for name in ("eio", "enospc")]
EVERY_ERROR = [("put", name, False) for name in ("edquot", "erofs", "estale")] + [("put", "eio", True), ("replace document", "eio", True)]


@pytest.mark.parametrize(("operation", "name", "shared"), EVERY_OPERATION + EVERY_ERROR)
def test_an_error_of_any_call_is_clean_and_the_next_try_works(tmp_path: Path, operation: str, name: str, shared: bool) -> None:
    before, act, key, allowed, afterwards = OPERATIONS[operation]
    for number, label in enumerate(labels_of(tmp_path / "dry", operation, shared=shared)):
        root = tmp_path / str(number)
        tier = open_tier(root, shared=shared)
        before(tier)
        with failpoints.armed(f"{label}={name}"):
            try:
                act(tier)
            except CkptStoreError as error:
                assert isinstance(error, ERRORS[name]), f"{label}: {error!r}"
                assert error.tier == "nvme", label
                assert f"failpoint {label}" in str(error), label
                if operation in ("put", "put document", "put exclusive document"):
                    assert visible(tier, key) is None, label
                assert visible(tier, key) in allowed, label
            else:
                assert visible(tier, key) == afterwards, label
        assert list((root / "tmp").iterdir()) == [] or label.endswith("discard"), label
        if visible(tier, key) is None or operation != "put exclusive document":
            act(tier)
        assert visible(tier, key) == afterwards, label
        tier.sweep(OWNED)
        assert list((root / "tmp").iterdir()) == [], label
        tier.close()


def test_a_failed_fsync_has_the_file_written_anew_and_never_fsynced_again(tmp_path: Path) -> None:
    tier, seen = open_tier(tmp_path / "root", shared=False), []
    with failpoints.armed("posix.put.fsync=eio"), failpoints.listening(seen.append):
        put(tier)
    assert seen.count("posix.put.create") == 2
    assert seen.count("posix.put.fsync") == 2
    assert seen.index("posix.put.discard") < len(seen) - 1 - seen[::-1].index("posix.put.create")
    assert stored(tier, KEY) == DATA
    tier.close()


def test_a_disk_whose_fsync_always_fails_is_unavailable(tmp_path: Path) -> None:
    tier, seen = open_tier(tmp_path / "root", shared=False), []
    with failpoints.armed("posix.put.fsync=eio@*"), failpoints.listening(seen.append), pytest.raises(TierUnavailable):
        put(tier)
    assert seen.count("posix.put.fsync") == 2
    assert visible(tier, KEY) is None
    tier.close()


@pytest.mark.parametrize("call", ["posix.put.create", "posix.put.write"])
def test_a_mount_that_refuses_direct_writes_gets_buffered_ones(tmp_path: Path, call: str) -> None:
    tier = open_tier(tmp_path / "root", shared=False)
    with failpoints.armed(f"{call}=einval"):
        put(tier)
    assert stored(tier, KEY) == DATA
    tier.close()


def test_direct_io_always_does_not_fall_back(tmp_path: Path) -> None:
    tier = PosixTier("nvme", tmp_path / "root", direct_io="always")
    with failpoints.armed("posix.put.write=einval"), pytest.raises(TierUnavailable):
        put(tier)
    tier.close()


def test_a_shared_mount_that_stores_other_bytes_is_noticed_before_the_object_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = disk_calls.pwrite

    def flip(label: str, fd: int, view: memoryview, offset: int) -> int:
        if label == "posix.put.write" and offset == 0:
            view = memoryview(bytes([view[0] ^ 1]) + bytes(view[1:]))
        return original(label, fd, view, offset)

    monkeypatch.setattr(disk_calls, "pwrite", flip)
    tier = PosixTier("pfs", tmp_path / "root", shared=True, direct_io="never")
    with pytest.raises(ChecksumMismatch, match="block 0 of 2"):
        put(tier)
    assert visible(tier, KEY) is None
    assert list((tmp_path / "root/tmp").iterdir()) == []
    tier.close()


@pytest.mark.parametrize("size_bytes", [2 * BLOCK_BYTES, 5000], ids=["whole_blocks", "odd_tail"])
def test_a_byte_that_is_changed_and_changed_back_during_the_write_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    """The cleverest late write: the source looks the same before and after, but not at the moment when it is written."""
    tier, data, original = open_tier(tmp_path / "root", shared=False), bytearray(content(size_bytes)), disk_calls.pwrite

    def change_meanwhile(label: str, fd: int, view: memoryview, offset: int) -> int:
        data[100] ^= 1
        try:
            return original(label, fd, view, offset)
        finally:
            data[100] ^= 1

    monkeypatch.setattr(disk_calls, "pwrite", change_meanwhile)
    digests = tier.put(KEY, MemorySource(data, stable=False))
    assert BlockDigests.of(stored(tier, KEY)) == digests
    tier.close()


# -- SIGKILL --------------------

CHILD = textwrap.dedent(
    """
    # Forks once for each label: a fork costs a hundredth of a new interpreter. Prints how each of them ended.
    import contextlib, os, sys
    from pathlib import Path
    from tests.faults.test_posix_faults import OPERATIONS, open_tier
    from ckptstore import failpoints
    place, operation, *labels = sys.argv[1:]
    before, act, *_ = OPERATIONS[operation]
    for number, label in enumerate(labels):
        if (pid := os.fork()) == 0:
            tier = open_tier(Path(place) / str(number), shared=False)
            before(tier)
            with failpoints.armed(label + "=kill") if label != "-" else contextlib.nullcontext():
                act(tier)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
)


def killed_at(place: Path, operation: str, labels: list[str], **environment: str) -> list[int]:
    """Run the operation in one process for each label, which dies there, below `place`/0, /1, …; their exit codes."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(place), operation, *labels],
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return [int(line) for line in child.stdout.split()]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_sigkill_before_any_call_leaves_it_whole_or_absent(tmp_path: Path, operation: str) -> None:
    _, act, key, allowed, afterwards = OPERATIONS[operation]
    labels = labels_of(tmp_path / "dry", operation, shared=False)
    assert killed_at(tmp_path, operation, labels) == [-signal.SIGKILL] * len(labels)
    for number, label in enumerate(labels):
        root = tmp_path / str(number)
        tier = open_tier(root, shared=False)
        assert visible(tier, key) in allowed, label
        tier.sweep(OWNED)
        assert list((root / "tmp").iterdir()) == [], label
        if visible(tier, key) is None or operation != "put exclusive document":
            act(tier)
        assert visible(tier, key) == afterwards, label
        tier.close()


def test_the_environment_arms_a_failpoint(tmp_path: Path) -> None:
    assert killed_at(tmp_path, "put", ["-"], **{failpoints.VARIABLE: "posix.put.publish=kill@1"}) == [-signal.SIGKILL]
    assert len(list((tmp_path / "0/tmp").iterdir())) == 1


@pytest.mark.parametrize("text", ["x", "x=", "x=boom", "x=eio@0", "x=eio@-1", "=kill"])
def test_a_failpoint_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid, match="no failpoint"):
        failpoints.parse(text)


def test_a_failpoint_fires_at_the_hit_that_was_named() -> None:
    name = failpoints.declare("test.nth")
    with failpoints.armed(f"{name}=eio@3"):
        failpoints.failpoint(name)
        failpoints.failpoint(name)
        with pytest.raises(OSError, match=r"failpoint test\.nth") as caught:
            failpoints.failpoint(name)
        failpoints.failpoint(name)
    failpoints.failpoint(name)
    assert caught.value.errno == errno.EIO


def test_every_label_of_the_tier_is_declared_and_hit_by_some_operation(tmp_path: Path) -> None:
    hit: set[str] = set()
    for number, operation in enumerate(OPERATIONS):
        for shared in (False, True):
            hit |= set(labels_of(tmp_path / f"{number}-{shared}", operation, shared=shared))
    with failpoints.listening(hit.add):
        tier = open_tier(tmp_path / "rest", shared=False)
        (tmp_path / "rest/tmp" / f"{OBJECT_ID}.left").write_bytes(b"")
        assert tier.sweep(OWNED) == 1
        with failpoints.armed("posix.put.fsync_folder=eio"), pytest.raises(TierUnavailable):
            put(tier)
        tier.close()
    assert hit == set(failpoints.names("posix."))


# -- odd mounts --------------------


def test_a_mount_without_any_exclusive_create_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def everybody_wins(label: str, name: str, new_name: str, *, dir_fd: int, new_dir_fd: int) -> None:
        return

    monkeypatch.setattr(posix_probe, "PUBLISHERS", {"renameat2": everybody_wins, "link": everybody_wins})
    with pytest.raises(ConfigInvalid, match="no exclusive create"):
        open_tier(tmp_path / "root", shared=False)


def test_a_mount_without_renameat2_uses_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(label: str, name: str, new_name: str, *, dir_fd: int, new_dir_fd: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setitem(posix_probe.PUBLISHERS, "renameat2", unknown)
    tier = open_tier(tmp_path / "root", shared=False)
    assert tier.facts.details["publish"] == "link"
    put(tier)
    put(tier)
    tier.put_document(DOCUMENT, NEW, exclusive=True)
    assert stored(tier, KEY) == DATA
    assert list((tmp_path / "root/tmp").iterdir()) == []
    tier.close()


def test_a_mount_that_replaces_with_a_gap_has_its_documents_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What GlusterFS does: for a moment there is neither the old file nor the new one."""
    original_rename, original_open = disk_calls.rename, disk_calls.open_file

    def with_a_gap(label: str, name: str, new_name: str, *, dir_fd: int, new_dir_fd: int) -> None:
        os.rename(new_name, f"{new_name}.gap", src_dir_fd=new_dir_fd, dst_dir_fd=new_dir_fd)
        for _ in range(20):
            os.sched_yield()
        os.unlink(f"{new_name}.gap", dir_fd=new_dir_fd)
        original_rename(label, name, new_name, dir_fd=dir_fd, new_dir_fd=new_dir_fd)

    monkeypatch.setattr(disk_calls, "rename", with_a_gap)
    monkeypatch.setattr(posix_probe, "RENAME_ROUNDS", 2000)
    tier = open_tier(tmp_path / "root", shared=True)
    assert tier.facts.details["rename over"].startswith("not atomic")
    tier.put_document(DOCUMENT, OLD)
    misses = iter([True, True, False])

    def missing_at_first(label: str, name: str, flags: int, *, dir_fd: int, mode: int = 0o644) -> int:
        if label == "posix.open.open" and next(misses):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return original_open(label, name, flags, dir_fd=dir_fd, mode=mode)

    monkeypatch.setattr(disk_calls, "open_file", missing_at_first)
    assert tier.get_document(DOCUMENT) == OLD
    assert next(misses, None) is None
    tier.close()


def test_a_full_disk_at_start_does_not_keep_the_tier_from_opening(tmp_path: Path) -> None:
    with failpoints.armed("posix.probe=enospc@*"):
        tier = open_tier(tmp_path / "root", shared=False)
    assert "not done" in tier.facts.details["probe"]
    put(tier)
    tier.close()


def test_a_root_whose_file_system_is_gone_is_unavailable_and_not_empty(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    tier = open_tier(root, shared=False)
    put(tier)
    root.rename(tmp_path / "elsewhere")
    root.mkdir()  # what an unmounted mount point looks like
    for call in (put, delete, lambda tier: tier.open(KEY), lambda tier: tier.get_document(DOCUMENT), keys):
        with pytest.raises(TierUnavailable, match="mounted"):
            call(tier)
    assert list(root.iterdir()) == []
    tier.close()


# -- capacity --------------------


def test_the_capacity_is_kept_and_freed_by_deletes(tmp_path: Path) -> None:
    tier = PosixTier("nvme", tmp_path / "root", capacity_bytes=10_000)
    tier.put("objects/a~1", MemorySource(bytes(6000)))
    with pytest.raises(TierFull, match="6000 of 10000"):
        tier.put("objects/b~2", MemorySource(bytes(6000)))
    assert tier.usage().used_bytes == 6000
    assert tier.usage().free_bytes == 4000
    tier.put("objects/a~1", MemorySource(bytes(6000)))
    assert tier.usage().used_bytes == 6000
    tier.close()
    tier = PosixTier("nvme", tmp_path / "root", capacity_bytes=10_000)
    assert tier.usage().used_bytes == 6000
    tier.delete("objects/a~1")
    tier.delete("objects/a~1")
    assert tier.usage().used_bytes == 0
    tier.put("objects/b~2", MemorySource(bytes(6000)))
    tier.close()


def test_a_failed_put_uses_no_space(tmp_path: Path) -> None:
    tier = PosixTier("nvme", tmp_path / "root", capacity_bytes=2 * len(DATA))
    for label in ("posix.put.write", "posix.put.publish", "posix.put.fsync_folder"):
        with failpoints.armed(f"{label}=eio"), pytest.raises(TierUnavailable):
            put(tier)
        assert tier.usage().used_bytes == 0
        assert tier.usage().free_bytes == 2 * len(DATA)
    tier.close()


# -- what else may lie in the root --------------------


def test_symbolic_links_are_never_followed(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "root", shared=False)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file~1").write_bytes(b"secret")
    objects = tmp_path / "root/objects"
    objects.mkdir()
    (objects / "folder").symlink_to(secret)
    (objects / "link~1").symlink_to(secret / "file~1")
    for key in ("objects/folder/file~1", "objects/link~1"):
        with pytest.raises(NotFound):
            tier.open(key)
        with pytest.raises(NotFound):
            tier.stat(key)
        with pytest.raises(CkptStoreError):
            tier.put(key, MemorySource(b"x"))
    assert keys(tier) == []
    tier.delete("objects/folder/file~1")
    assert (secret / "file~1").read_bytes() == b"secret"
    assert len(list(secret.iterdir())) == 1
    tier.close()


def test_a_fifo_or_a_folder_in_the_place_of_an_object_is_no_object(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "root", shared=False)
    objects = tmp_path / "root/objects"
    objects.mkdir()
    os.mkfifo(objects / "fifo~1")
    (objects / "folder~1").mkdir()
    for key in ("objects/fifo~1", "objects/folder~1"):
        with pytest.raises(NotFound):
            tier.open(key)
        with pytest.raises(NotFound):
            tier.stat(key)
    assert keys(tier) == []
    tier.close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_document_that_another_node_may_be_writing_is_swept_only_when_it_is_old(tmp_path: Path, shared: bool) -> None:
    tier = open_tier(tmp_path / "root", shared=shared)
    fresh, old = (tmp_path / "root/tmp" / f"store.json.{end}" for end in ("aaaa", "bbbb"))
    mine = tmp_path / "root/tmp" / f"{OBJECT_ID}.jsonl.cccc"
    for file in (fresh, old, mine):
        file.write_bytes(b"x")
    os.utime(old, (0, fresh.stat().st_mtime - 2 * posix_probe.LEFTOVER_S))
    tier.sweep(["store.json", f"{OBJECT_ID}.jsonl"])
    assert [fresh.exists(), old.exists(), mine.exists()] == [shared, False, False]
    tier.close()


def test_sweep_takes_only_what_it_was_told(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "root", shared=False)
    for name in (f"{OBJECT_ID}.aaaa", f"{OBJECT_ID}.bbbb", "somebody-elses.cccc", OBJECT_ID):
        (tmp_path / "root/tmp" / name).write_bytes(b"x")
    assert tier.sweep(["../objects", "", OBJECT_ID]) == 2
    assert sorted(path.name for path in (tmp_path / "root/tmp").iterdir()) == sorted(["somebody-elses.cccc", OBJECT_ID])
    assert tier.sweep(None) == 1 and [path.name for path in (tmp_path / "root/tmp").iterdir()] == [OBJECT_ID]
    tier.close()
