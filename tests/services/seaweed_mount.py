"""A SeaweedFS that is mounted as a file system (`weed mount`), for tests: needs root and /dev/fuse."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptstore_bench.services.seaweedfs import SeaweedS3, weed_program
from tests.until import until


@contextmanager
def seaweed_mount(folder: Path) -> Iterator[Path]:
    """The mount point, below `folder`."""
    mount = folder / "mount"
    mount.mkdir(parents=True)
    with SeaweedS3(folder / "servers") as servers:
        command = [weed_program(), "-logtostderr=true", "mount", f"-filer={servers.filer}", f"-dir={mount}"]
        with (folder / "mount.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, f"-cacheDir={folder}/cache", f"-localSocket={folder}/m.sock"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            until("the mount", lambda: os.path.ismount(mount) or process.poll() is not None, timeout_s=60)
            assert process.poll() is None, (folder / "mount.log").read_text("utf-8", "replace")[-2000:]
            yield mount
        finally:
            subprocess.run(["umount", "-l", mount], check=False)
            process.terminate()
            process.wait(30)
