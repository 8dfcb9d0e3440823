"""The node of the demo: a home, an NVMe folder, a folder that stands for a parallel file system, and a real S3 server.

Everything lies under one temporary folder and listens on loopback or on unix sockets. The daemon is started by the first trainer that finds
none, as on a user's machine, so it is not our child; `adopt_orphans` makes it one when its trainer dies, and leaving the `with` block ends
every process that is left, also after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import ckptstore
from ckptstore_bench.demo.life import NotAsClaimed
from ckptstore_bench.services.seaweedfs import SeaweedS3

BUCKET = "checkpoints"
TIERS = ("nvme", "pfs", "object")
#: Slow enough that saves outrun it: there is always something to drain when the story kills the daemon.
OBJECT_BANDWIDTH = "40MB/s"
STOP_TIMEOUT_S = 60.0
_PR_SET_CHILD_SUBREAPER = 36

CONFIGURATION = """\
[memory]
limit = "512MiB"

[[tiers]]
name = "nvme"
kind = "posix"
path = "{folder}/nvme"

[[tiers]]
name = "pfs"
kind = "posix"
path = "{folder}/pfs"
shared = true

[[tiers]]
name = "object"
kind = "object"
url = "s3://{bucket}/demo"
options = {{ endpoint_url = "{endpoint_url}" }}
bandwidth_limit = "{bandwidth}"
"""


def adopt_orphans() -> None:
    """From now on, a descendant whose parent dies becomes our child (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def own_children() -> Iterator[int]:
    for file in Path("/proc/self/task").glob("*/children"):
        yield from map(int, file.read_text("ascii").split())


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.s3 = SeaweedS3(folder / "s3")

    def __enter__(self) -> Cluster:
        adopt_orphans()
        try:
            self.s3.start()
            self.s3.create_bucket(BUCKET)
            self.home.mkdir(mode=0o700)
            for name in ("nvme", "pfs"):
                (self.folder / name).mkdir()
            text = CONFIGURATION.format(
                folder=self.folder, bucket=BUCKET, endpoint_url=self.s3.endpoint_url, bandwidth=OBJECT_BANDWIDTH
            )
            (self.home / "config.toml").write_text(text, "utf-8")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """End the S3 server, then whatever process is left: the daemon."""
        self.s3.stop()
        for pid in list(own_children()):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def environment(self) -> dict[str, str]:
        """What a trainer is started with; the daemon that it starts inherits the S3 credentials."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTSTORE_", "AWS_"))}
        return {**kept, **self.s3.environment(), "CKPTSTORE_HOME": str(self.home), "AWS_EC2_METADATA_DISABLED": "true"}

    # --- the daemon --------------------------------------------------------------------------------------------------------------

    def store(self) -> ckptstore.Store:
        """The store as it is now; DaemonUnavailable if no daemon runs."""
        return ckptstore.connect(home=self.home, start=False)

    def end_daemon(self, how: signal.Signals) -> int:
        """Send the daemon a signal and wait until it is gone; its pid."""
        with self.store() as store:
            pid = store.hello().pid
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, how)
            readable, _, _ = select.select([handle], [], [], STOP_TIMEOUT_S)
        finally:
            os.close(handle)
        if not readable:
            raise NotAsClaimed(f"the daemon (pid {pid}) did not end within {STOP_TIMEOUT_S:g} s of {how.name}")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        return pid

    # --- the tiers ---------------------------------------------------------------------------------------------------------------

    def wipe(self, name: str) -> int:
        """Empty a tier's folder, as a new disk would be; how many bytes were there."""
        root = self.folder / name
        lost_bytes = self.stored_bytes(name)
        shutil.rmtree(root)
        root.mkdir()
        return lost_bytes

    def lose_catalog(self) -> None:
        for file in self.home.glob("catalog.sqlite3*"):
            file.unlink()

    def rebuild_catalog(self) -> str:
        """Run `ckptstore catalog rebuild` as an operator would; what it printed. NotAsClaimed, with what it said, if it fails."""
        command = [str(Path(sys.executable).with_name("ckptstore")), "catalog", "rebuild", "--yes"]
        answer = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=STOP_TIMEOUT_S)
        if answer.returncode != 0:
            raise NotAsClaimed(f"catalog rebuild ended with {answer.returncode}: {answer.stderr.strip()}")
        return answer.stdout.strip()

    def stored_bytes(self, name: str) -> int:
        return sum(file.stat().st_size for file in (self.folder / name).rglob("*") if file.is_file())
