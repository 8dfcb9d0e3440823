"""Which other programs mount a bucket, and how are they started at their best for reading? Each keeps what it read on the local disk.

A program that is not installed, or does not come up, says why, and takes no part. Each is stopped and its folder removed whatever happens.
The bucket holds the same objects for all; JuiceFS has a format of its own, so its files are copied into it first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client.mount import device

UP_TIMEOUT_S = 30.0
DOWN_TIMEOUT_S = 20.0


class CannotRun(Exception):
    """Why a contender takes no part."""


@dataclass(frozen=True)
class Bucket:
    server: SeaweedS3
    name: str


class Program:
    """Another program's mount of a bucket. `root` is the folder that shows the bucket's objects."""

    def __init__(self, name: str, folder: Path, bucket: Bucket, commands: Commands) -> None:
        self.name = name
        self._folder = folder
        self._bucket = bucket
        self._commands = commands
        self._process: subprocess.Popen[bytes] | None = None
        self.root = folder / "mnt"

    def start(self, files: Sequence[Path]) -> None:
        """CannotRun."""
        self.root.mkdir(parents=True, exist_ok=True)
        program = find_program(self.name)
        for command in self._commands.prepare(program, self._folder, self._bucket):
            done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, timeout=UP_TIMEOUT_S)
            if done.returncode != 0:
                raise CannotRun(f"`{self.name} {command[1]}` failed: {done.stderr.strip()[-200:]}")
        self._mount(program)
        for file in files if self._commands.own_format else ():
            shutil.copyfile(file, self.root / file.name)

    def forget(self) -> None:
        """Its cache is empty, and nothing of it is in memory."""
        self.stop()
        shutil.rmtree(self._folder / "cache", ignore_errors=True)
        self._mount(find_program(self.name))

    def stop(self) -> None:
        if self._process is None:
            return
        if os.path.ismount(self.root):
            device.unmount(self.root, lazy=True)
        self._process.terminate()
        try:
            self._process.wait(DOWN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _mount(self, program: str) -> None:
        command = self._commands.mount(program, self._folder, self._bucket)
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, env=self._environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + UP_TIMEOUT_S
        while not os.path.ismount(self.root):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                said = (self._folder / "log").read_text("utf-8", "replace").strip()[-200:]
                self.stop()
                raise CannotRun(f"it did not mount: {said}")
            time.sleep(0.05)

    def _environment(self) -> dict[str, str]:
        server = self._bucket.server
        return os.environ | server.environment() | {"HOME": str(self._folder)}


@dataclass(frozen=True)
class Commands:
    prepare: Callable[[str, Path, Bucket], list[list[str]]]
    mount: Callable[[str, Path, Bucket], list[str]]
    own_format: bool = False


def find_program(name: str) -> str:
    """Beside this interpreter (wheels put programs there), else on PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise CannotRun("it is not installed")
    return found


def rclone_remote(bucket: Bucket) -> str:
    """The bucket as rclone's command line names it."""
    return f":s3,provider=SeaweedFS,env_auth=true,endpoint='{bucket.server.endpoint_url}':{bucket.name}"


def _rclone(program: str, folder: Path, bucket: Bucket) -> list[str]:
    cache = ["--vfs-cache-mode", "full", "--cache-dir", str(folder / "cache"), "--dir-cache-time", "1h"]
    options = ["--read-only", *cache, "--vfs-read-ahead", "256M"]
    return [program, "mount", rclone_remote(bucket), str(folder / "mnt"), *options]


def _s3fs_password(program: str, folder: Path, bucket: Bucket) -> list[list[str]]:
    place = folder / "password"
    place.write_text(f"{bucket.server.access_key}:{bucket.server.secret_key}\n", "ascii")
    place.chmod(0o600)
    return []


def _s3fs(program: str, folder: Path, bucket: Bucket) -> list[str]:
    place = [f"url={bucket.server.endpoint_url}", "use_path_request_style", f"passwd_file={folder / 'password'}"]
    reading = [f"use_cache={folder / 'cache'}", "ro", "parallel_count=8", "multipart_size=16", "kernel_cache"]
    return [program, bucket.name, str(folder / "mnt"), "-f", "-o", ",".join([*place, *reading])]


def _juicefs_format(program: str, folder: Path, bucket: Bucket) -> list[list[str]]:
    server = bucket.server
    place = ["--storage", "s3", "--bucket", f"{server.endpoint_url}/{bucket.name}-juicefs"]
    keys = ["--access-key", server.access_key, "--secret-key", server.secret_key]
    return [[program, "format", f"sqlite3://{folder / 'meta.db'}", "bench", *place, *keys]]


def _juicefs(program: str, folder: Path, bucket: Bucket) -> list[str]:
    options = ["--cache-dir", str(folder / "cache"), "--no-usage-report", "--attr-cache", "3600", "--entry-cache", "3600"]
    return [program, "mount", f"sqlite3://{folder / 'meta.db'}", str(folder / "mnt"), *options]


PROGRAMS = {
    "rclone": Commands(lambda program, folder, bucket: [], _rclone),
    "juicefs": Commands(_juicefs_format, _juicefs, own_format=True),
    "s3fs": Commands(_s3fs_password, _s3fs),
}
