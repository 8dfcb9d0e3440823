"""How fast do parallel clients of S3 bring a file onto the disk, for a program that would read it there? What a cold mount is held against.

boto3's transfers, on their threads and on the AWS CRT, and `rclone copyto`: eight parts of 16 MiB at once each. One that is not installed
says why. None of them waits until the disk has the bytes, as no mount does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ckptstore.config import TierSettings
from ckptstore_bench.mount.programs import Bucket, CannotRun, find_program, rclone_remote
from ckptstore_bench.s3.clients import Boto3, Boto3Crt, Place

PART_BYTES, PARALLEL = 16 << 20, 8
TIMEOUT_S = 600.0

#: Brings the object to a place of the disk where nothing is.
Download = Callable[[Path], None]


def downloads(bucket: Bucket, key: str, folder: Path, stack: ExitStack) -> tuple[dict[str, Download], dict[str, str]]:
    """By name, and why others cannot run. Credentials are those of the environment; `stack` closes what was opened."""
    options = {"endpoint_url": bucket.server.endpoint_url}
    settings = TierSettings(name="object", kind="object", url=f"s3://{bucket.name}", options=options)
    found: dict[str, Download] = {}
    why_not: dict[str, str] = {}
    for name, make in {"boto3": Boto3, "boto3-crt": Boto3Crt}.items():
        try:
            client = make(Place(settings, PART_BYTES, PARALLEL))
            stack.callback(client.close)
            found[name] = partial(client.download, key)
        except ImportError as error:
            why_not[name] = f"the module {error.name} is not installed"
    try:
        found["rclone copyto"] = _by_rclone(find_program("rclone"), bucket, key, folder)
    except CannotRun as error:
        why_not["rclone copyto"] = str(error)
    return found, why_not


def _by_rclone(program: str, bucket: Bucket, key: str, folder: Path) -> Download:
    streams = ["--multi-thread-streams", str(PARALLEL), "--multi-thread-cutoff", "16M", "--multi-thread-chunk-size", f"{PART_BYTES >> 20}M"]
    environment = os.environ | bucket.server.environment() | {"HOME": str(folder)}

    def copy(place: Path) -> None:
        command = [program, "copyto", f"{rclone_remote(bucket)}/{key}", str(place), *streams]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            raise CannotRun(f"`rclone copyto` failed: {done.stderr.strip()[-200:]}")

    return copy
