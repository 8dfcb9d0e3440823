"""The node's copies as a daemon lends them: by descriptor and by HTTP, of what lies whole on the node and of what does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import ckptstore
from ckptstore.config import read_settings
from ckptstore.errors import CkptStoreError, NotFound
from ckptstore.tree_messages import TreeInfo
from ckptstore_client.descriptors import DescriptorConnection
from ckptstore_tiers.checksums import BLOCK_BYTES
from tests.cache_bed import content
from tests.daemon_process import DaemonProcess, write_config
from tests.until import until

SIZE_BYTES = 3 * BLOCK_BYTES + 777


@dataclass
class Home:
    """A daemon whose files lie on a shared mount: the node's own disk has only copies."""

    daemon: DaemonProcess
    folder: Path

    def put(self, path: str, data: bytes) -> None:
        source = self.folder / "source"
        source.write_bytes(data)
        with ckptstore.connect(home=self.daemon.home, start=False) as store:
            store.put(source, path, replace=True)

    def descriptors(self) -> DescriptorConnection:
        return DescriptorConnection(read_settings(self.daemon.home / "config.toml", home=self.daemon.home).fd_socket)

    def copies(self) -> list[Path]:
        return sorted((self.folder / "copies" / "files").glob("*.data"))


def configured(folder: Path, *tiers: dict[str, Any]) -> DaemonProcess:
    cache = {"folder": folder / "copies"}
    write_config(folder / "home", tiers=list(tiers), grace_s=0, memory={"limit": "64MiB"}, cache=cache)
    return DaemonProcess(folder / "home")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("cache")
    with configured(folder, {"name": "pfs", "kind": "posix", "path": folder / "pfs", "shared": True}) as daemon:
        yield Home(daemon, folder)


def get(home: Home, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    with home.daemon.http() as http:
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        return http.request(method, "/v1/tree/content", params={"path": path}, headers=spelled)


# --- by HTTP --------------------------------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_in_ranges_and_by_its_tag(home: Home) -> None:
    data = content(1, SIZE_BYTES)
    home.put("/m/ranges", data)
    whole = get(home, "/m/ranges")
    assert (whole.status_code, whole.content) == (200, data)
    tag = whole.headers["etag"]
    part = get(home, "/m/ranges", range=f"bytes={BLOCK_BYTES - 5}-{BLOCK_BYTES + 4}")
    assert (part.status_code, part.content) == (206, data[BLOCK_BYTES - 5 : BLOCK_BYTES + 5])
    assert part.headers["content-range"] == f"bytes {BLOCK_BYTES - 5}-{BLOCK_BYTES + 4}/{SIZE_BYTES}"
    assert get(home, "/m/ranges", range="bytes=-7").content == data[-7:]
    assert get(home, "/m/ranges", range=f"bytes={SIZE_BYTES - 3}-").content == data[-3:]
    assert get(home, "/m/ranges", if_none_match=f'"other", W/{tag}').status_code == 304
    assert get(home, "/m/ranges", range="bytes=0-4", if_range=tag).status_code == 206
    assert get(home, "/m/ranges", range="bytes=0-4", if_range='"other"').status_code == 200


def test_a_range_behind_the_end_is_refused_and_one_that_is_none_is_ignored(home: Home) -> None:
    home.put("/m/refused", content(2, 1000))
    refused = get(home, "/m/refused", range="bytes=1000-")
    assert (refused.status_code, refused.headers["content-range"], refused.content) == (416, "bytes */1000", b"")
    for none in ("bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=-"):
        assert get(home, "/m/refused", range=none).status_code == 200, none


def test_head_says_what_get_would(home: Home) -> None:
    home.put("/m/head", content(3, 5000))
    told = get(home, "/m/head", "HEAD")
    assert (told.status_code, told.headers["content-length"], told.content) == (200, "5000", b"")
    assert told.headers["etag"] == get(home, "/m/head").headers["etag"]
    assert get(home, "/m/nothing", "HEAD").status_code == 404


def test_a_version_that_is_replaced_is_still_given_to_who_asks_for_it(home: Home) -> None:
    home.put("/m/replaced", content(4, 100))
    version = get(home, "/m/replaced").headers["etag"].strip('"')
    home.put("/m/replaced", content(5, 100))
    with home.daemon.http() as http:
        old = http.get("/v1/tree/content", params={"path": "/m/replaced", "version": version})
    assert old.content == content(4, 100)
    assert get(home, "/m/replaced").content == content(5, 100)


# --- by descriptor --------------------------------------------------------------------------------------------------------------------


def test_what_is_at_a_path_is_the_same_by_descriptor_socket_and_by_http(home: Home) -> None:
    home.put("/m/looked", content(11, 2000))
    with home.descriptors() as connection, home.daemon.http() as http:
        for path in ("/", "/m", "/m/looked", "/m/looked/below", "/m/nothing", "/m/../m", "m"):
            told = http.get("/v1/tree/info", params={"path": path})
            if told.status_code == 200:
                assert connection.look(path) == TreeInfo.model_validate_json(told.content)
            else:
                with pytest.raises(CkptStoreError) as refused:
                    connection.look(path)
                assert refused.value.to_wire() == told.json()
        assert connection.look("/m/looked").size_bytes == 2000  # a refusal leaves the connection as it was


def test_what_was_warmed_is_whole_at_its_next_open(home: Home) -> None:
    with home.descriptors() as connection, ckptstore.connect(home=home.daemon.home, start=False) as store:
        for number in range(5):
            home.put(f"/m/warmed-{number}", content(20 + number, SIZE_BYTES))
            store.warm(f"/m/warmed-{number}")
            file, fd = connection.open_file(f"/m/warmed-{number}")
            assert file.whole
            assert fd is not None
            os.close(fd)
            assert connection.look(f"/m/warmed-{number}").whole


def test_sixteen_connections_that_need_a_cold_file_read_it_once_each_block_when_it_is_there(home: Home) -> None:
    data = content(6, SIZE_BYTES)
    home.put("/m/cold", data)

    def read_all(_: int) -> bytes:
        with home.descriptors() as connection:
            file, fd = connection.open_file("/m/cold")
            assert fd is not None
            for offset in range(0, SIZE_BYTES, BLOCK_BYTES):
                connection.need(file.version, file.copy_id, offset, min(BLOCK_BYTES, SIZE_BYTES - offset), timeout_s=60)
            found = os.pread(fd, SIZE_BYTES, 0)
            os.close(fd)
            return found

    with ThreadPoolExecutor(16) as readers:
        assert set(readers.map(read_all, range(16))) == {data}


def test_a_whole_copy_is_lent_as_such_and_survives_a_restart(home: Home) -> None:
    data = content(7, SIZE_BYTES)
    home.put("/m/whole", data)
    get(home, "/m/whole")
    for _ in range(2):
        with home.descriptors() as connection:

            def opened(connection: DescriptorConnection = connection) -> tuple[str, int] | None:
                file, fd = connection.open_file("/m/whole")
                assert fd is not None
                if file.whole:
                    return file.copy_id, fd
                os.close(fd)
                return None

            _, fd = until("the copy is whole", opened)
            assert os.pread(fd, SIZE_BYTES, 0) == data
            os.close(fd)
        home.daemon.kill()
        home.daemon.start()


def test_a_need_outlives_the_daemon_that_lent_the_descriptor(home: Home) -> None:
    data = content(8, SIZE_BYTES)
    home.put("/m/outlived", data)
    with home.descriptors() as connection:
        file, fd = connection.open_file("/m/outlived")
    assert fd is not None
    home.daemon.kill()
    home.daemon.start()
    with home.descriptors() as connection:
        connection.need(file.version, file.copy_id, 2 * BLOCK_BYTES, 100, timeout_s=60)
        assert os.pread(fd, 100, 2 * BLOCK_BYTES) == data[2 * BLOCK_BYTES :][:100]
        with pytest.raises(NotFound, match="open the file again"):
            connection.need(file.version, "0" * 32, 0, 100, timeout_s=60)
    os.close(fd)


def test_what_lies_whole_in_a_tier_of_the_node_is_lent_itself_and_not_cached_again(tmp_path: Path) -> None:
    with configured(tmp_path, {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"}) as daemon:
        home, data = Home(daemon, tmp_path), content(9, SIZE_BYTES)
        home.put("/m/own", data)
        with home.descriptors() as connection:
            file, fd = connection.open_file("/m/own")
            assert file.whole
            assert fd is not None
            assert os.pread(fd, SIZE_BYTES, 0) == data
            assert (tmp_path / "nvme") in Path(f"/proc/self/fd/{fd}").readlink().parents
            connection.need(file.version, file.copy_id, 0, SIZE_BYTES, timeout_s=60)
            os.close(fd)
        assert get(home, "/m/own").content == data
        assert home.copies() == []
