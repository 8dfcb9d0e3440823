"""The posix tier on real file systems that are full or read-only: small ones, mounted in a namespace of the test's own.

Injected errors (test_posix_faults) come one at a time; a real full disk goes on failing, also while the tier cleans up.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PRELUDE = textwrap.dedent(
    """
    import os, subprocess, sys
    from pathlib import Path
    from ckptstore.errors import NotFound, TierFull, TierUnavailable
    from ckptstore_tiers.posix import PosixTier
    from ckptstore_tiers.sources import MemorySource
    from tests.contract.tier_contract import content, keys, new_key, stored

    mount = Path(sys.argv[1])
    def remount(options):
        subprocess.run(["mount", "-o", "remount," + options, mount], check=True)
    def refused(call, error):
        try:
            call()
        except error as caught:
            print(caught)
            return
        raise AssertionError(f"no {error.__name__}")
    """
)


def run_on(file_system: str, folder: Path, script: str) -> str:
    """Run `script` with a fresh file system mounted at `mount`, in a mount namespace that ends with it."""
    mount = folder / "mount"
    mount.mkdir()
    if file_system == "ext4":
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(32 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True, timeout=60)
        how = f"mount -o loop {image} {mount}"
    else:
        how = f"mount -t tmpfs -o size=24m none {mount}"
    program = folder / "script.py"
    program.write_text(PRELUDE + textwrap.dedent(script))
    command = f"{how} && PYTHONPATH=. {sys.executable} {program} {mount}"
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", command], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("file_system", ["ext4", "tmpfs"])
def test_a_full_disk_refuses_cleanly_and_recovers_when_space_is_freed(tmp_path: Path, file_system: str) -> None:
    output = run_on(
        file_system,
        tmp_path,
        """
        tier = PosixTier("nvme", mount / "root")
        first, second = new_key("/a"), new_key("/b")
        data = content(15 << 20)
        tier.put(first, MemorySource(data))
        refused(lambda: tier.put(second, MemorySource(data)), TierFull)
        refused(lambda: tier.open(second), NotFound)
        assert list((mount / "root/tmp").iterdir()) == []
        with open(mount / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
        refused(lambda: tier.put_document("records/x", bytes(20_000)), TierFull)
        again = PosixTier("nvme", mount / "root")  # a daemon must start on a full disk, or nobody could free it
        print(again.facts.details)
        assert stored(again, first) == data
        again.delete(first)
        os.unlink(mount / "filler")
        again.put(second, MemorySource(data))
        assert stored(again, second) == data and keys(again) == [second]
        assert list((mount / "root/tmp").iterdir()) == []
        """,
    )
    assert "No space left on device" in output


def test_a_read_only_file_system_serves_reads_and_recovers(tmp_path: Path) -> None:
    output = run_on(
        "ext4",
        tmp_path,
        """
        tier, key, data = PosixTier("nvme", mount / "root"), new_key(), content(5 << 20)
        tier.put(key, MemorySource(data))
        tier.put_document("records/x", b"x")
        remount("ro")
        for call in (
            lambda: tier.put(new_key(), MemorySource(data)),
            lambda: tier.put_document("records/y", b"y"),
            lambda: tier.put_document("records/x", b"y"),
            lambda: tier.delete(key),
        ):
            refused(call, TierUnavailable)
        again = PosixTier("nvme", mount / "root")
        print(again.facts.details)
        assert stored(again, key) == data and again.get_document("records/x") == b"x"
        remount("rw")
        again.delete(key)
        again.put(key, MemorySource(data))
        assert stored(again, key) == data
        """,
    )
    assert "not done: Read-only file system" in output
