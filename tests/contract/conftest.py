"""What the contract suites run on: a real distributed file system, started once a run and mounted twice."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.store_place import daemon, folder, place, store

__all__ = ["daemon", "folder", "moosefs", "place", "store"]

SERVICES = Path(__file__).parents[1] / "services"
MOOSEFS_PROGRAMS = ("mfsmaster", "mfschunkserver", "mfsmount", "mfssetgoal")


@pytest.fixture(scope="session")
def moosefs() -> Iterator[tuple[Path, Path]]:
    """Two mounts of one MooseFS: two clients that share nothing but the file system."""
    if missing := [program for program in MOOSEFS_PROGRAMS if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]:
        pytest.fail(f"the distributed file system is not installed ({', '.join(missing)} missing): run `make setup`")
    folder = tempfile.mkdtemp(prefix="ckptstore-moosefs-")
    try:
        # Output goes to a file: the servers live on and would hold a pipe open for ever.
        with tempfile.TemporaryFile("w+") as output:
            started = subprocess.run([SERVICES / "moosefs_up.sh", folder], stdout=output, stderr=output, timeout=120)
            output.seek(0)
            text = output.read()
        if started.returncode != 0:
            pytest.fail(f"the distributed file system did not start (it needs root and /dev/fuse):\n{text}")
        yield Path(folder, "mnt1"), Path(folder, "mnt2")
    finally:
        subprocess.run([SERVICES / "moosefs_down.sh", folder], check=True, capture_output=True, timeout=120)
