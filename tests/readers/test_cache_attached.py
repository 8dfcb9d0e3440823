"""The cache between readers and a real S3 server: read once by many, replaced in the middle, down, and under a daemon that is killed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

import ckptstore
from ckptstore.config import read_settings
from ckptstore.errors import CkptStoreError, DaemonUnavailable, NotFound, StaleVersion, TierUnavailable
from ckptstore_bench.services.seaweedfs import SeaweedS3
from ckptstore_client.descriptors import DescriptorConnection
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.cache_bed import content
from tests.daemon_process import DaemonProcess, write_config
from tests.services.s3_fault_proxy import S3FaultProxy
from tests.until import until

BUCKET, ACCESS, SECRET = "models", "AKTHEACCESSKEY", "thesecretthatnobodymaysee"
BLOCKS = 4
SIZE_BYTES = (BLOCKS - 1) * BLOCK_BYTES + 999
#: What a test does when its daemon is killed under it.
LOST = (httpx.TransportError, DaemonUnavailable)


@dataclass
class Place:
    """A daemon with a bucket attached at /m, and the bucket behind a proxy that counts."""

    daemon: DaemonProcess
    client: Any
    proxy: S3FaultProxy

    def upload(self, name: str, data: bytes) -> str:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)
        return f"/m/{name}"

    def fetched_bytes(self, name: str) -> int:
        return self.proxy.answered_bytes(f"/{BUCKET}/{name}")

    def stream(self, path: str, version: str = "") -> bytes:
        """All of a file by HTTP; what the daemon says of it otherwise is raised."""
        with self.daemon.http() as http:
            answer = http.get("/v1/tree/content", params={"path": path, "version": version})
            if answer.status_code != 200:
                raise ckptstore.errors.from_wire(answer.json())
            return answer.content

    def descriptors(self) -> DescriptorConnection:
        return DescriptorConnection(read_settings(self.daemon.home / "config.toml", home=self.daemon.home).fd_socket)

    def lent(self, path: str) -> bytes:
        """All of a file by descriptor, need by need, opened again when its copy gave way."""
        with self.descriptors() as connection:
            version, found = "", bytearray()
            while True:
                file, fd = connection.open_file(path, version)
                assert fd is not None
                try:
                    version = file.version
                    while len(found) < file.size_bytes:
                        size_bytes = min(1 << 20, file.size_bytes - len(found))
                        if not file.whole:
                            connection.need(version, file.copy_id, len(found), size_bytes, timeout_s=60)
                        found += os.pread(fd, size_bytes, len(found))
                    return bytes(found)
                except NotFound:
                    continue
                finally:
                    os.close(fd)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("attached")
    write_config(folder / "home", tiers=[{"name": "nvme", "kind": "posix", "path": folder / "nvme"}], memory={"limit": "64MiB"})
    environment = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    with (
        SeaweedS3(folder / "seaweed", access_key=ACCESS, secret_key=SECRET) as server,
        S3FaultProxy(server.endpoint_url) as proxy,
        DaemonProcess(folder / "home", environment=environment) as daemon,
    ):
        server.create_bucket(BUCKET)
        impatient = {"retry_for_s": "2", "read_timeout_s": "2", "connect_timeout_s": "1"}
        options = {"endpoint_url": proxy.endpoint_url, "region": "us-east-1"} | impatient
        with ckptstore.connect(home=daemon.home, start=False) as store:
            store.attach(f"s3://{BUCKET}", "/m", refresh_s=0, options=options)
        yield Place(daemon, server.client(), proxy)


def test_sixteen_readers_by_both_doors_read_a_cold_file_of_a_bucket_once(place: Place) -> None:
    data = content(1, SIZE_BYTES)
    path = place.upload("cold.safetensors", data)
    doors = [place.stream, place.lent] * 8
    with ThreadPoolExecutor(16) as readers:
        found = [future.result() for future in [readers.submit(door, path) for door in doors]]
    assert all(one == data for one in found)
    assert place.fetched_bytes("cold.safetensors") == SIZE_BYTES


def test_a_file_that_is_replaced_while_it_is_read_is_wholly_old_wholly_new_or_an_error(place: Place) -> None:
    versions = [content(seed, SIZE_BYTES) for seed in range(10, 15)]
    path = place.upload("replaced.bin", versions[0])
    ended = threading.Event()

    def read(door: Any) -> int:
        right = 0
        while not ended.is_set():
            try:
                assert door(path) in versions
                right += 1
            except (StaleVersion, httpx.RemoteProtocolError):
                continue
        return right

    with ThreadPoolExecutor(4) as readers:
        reading = [readers.submit(read, door) for door in (place.stream, place.lent) * 2]
        for data in versions[1:]:
            place.upload("replaced.bin", data)
            until("a reader sees the new version", lambda data=data: place.stream(path) == data)
        ended.set()
        assert sum(future.result() for future in reading) > 0


def test_with_the_bucket_down_what_is_whole_here_is_read_and_the_rest_is_an_error(place: Place) -> None:
    here, away = content(20, SIZE_BYTES), content(21, SIZE_BYTES)
    place.upload("here.bin", here)
    place.upload("away.bin", away)
    assert place.stream("/m/here.bin") == here
    place.proxy.down()
    try:
        assert place.stream("/m/here.bin") == here
        assert place.lent("/m/here.bin") == here
        with pytest.raises(TierUnavailable):
            place.stream("/m/away.bin")
    finally:
        place.proxy.up()
    until("the bucket is asked again", lambda: _read_if_up(place, "/m/away.bin") == away)


def _read_if_up(place: Place, path: str) -> bytes | None:
    try:
        return place.stream(path)
    except TierUnavailable:
        return None


def test_a_daemon_that_is_killed_under_its_readers_gives_no_wrong_byte_and_fetches_little_again(place: Place) -> None:
    files = {f"killed-{number}.bin": content(30 + number, SIZE_BYTES) for number in range(4)}
    paths = {place.upload(name, data): data for name, data in files.items()}
    ended = threading.Event()

    def read(door: Any) -> int:
        right = 0
        while not ended.is_set():
            for path, data in paths.items():
                try:
                    assert door(path) == data
                    right += 1
                except (*LOST, CkptStoreError) as error:
                    assert isinstance(error, LOST) or error.retryable, error
        return right

    kills = 3
    with ThreadPoolExecutor(4) as readers:
        reading = [readers.submit(read, door) for door in (place.stream, place.lent) * 2]
        for number in range(kills):
            before = sum(map(place.fetched_bytes, files))
            until("something was read", lambda before=before, number=number: sum(map(place.fetched_bytes, files)) > before or number)
            place.daemon.kill()
            place.daemon.start()
        until("all of it is here", lambda: all(place.stream(path) == data for path, data in paths.items()))
        ended.set()
        assert sum(future.result() for future in reading) > 0
    in_the_air_bytes = 2 * BLOCK_BYTES * len(files) * kills  # what each dead daemon had received, and not kept yet
    assert sum(map(place.fetched_bytes, files)) <= SIZE_BYTES * len(files) + in_the_air_bytes
