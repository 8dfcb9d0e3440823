"""Attached storage through the mount: read while it arrives, wholly old or wholly new, and hot once the node has all of it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import ckptstore
from ckptstore_client import Store
from ckptstore_client.mount.handles import OpenFile
from ckptstore_client.mount.nodes import Node
from ckptstore_client.mount.source import Copy
from ckptstore_client.mount.tensor_ahead import TensorAhead
from tests.daemon_process import DaemonProcess, write_config
from tests.mount.mounts import Mounted, can_mount, names_in
from tests.until import until

DATA = os.urandom(30_000_001)
OTHER = os.urandom(30_000_001)
READ_BEFORE = (0, 1000, 9_000_000, len(DATA))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attached")


@pytest.fixture(scope="module")
def upstream(place: Path) -> Path:
    folder = place / "upstream"
    (folder / "sub").mkdir(parents=True)
    for name in ("big.bin", "sub/other.bin", *(f"sub/replaced-{size}" for size in READ_BEFORE)):
        (folder / name).write_bytes(DATA)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    return folder


@pytest.fixture(scope="module")
def store(place: Path, upstream: Path) -> Iterator[Store]:
    home = place / "home"
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": place / "nvme"}])
    with DaemonProcess(home), ckptstore.connect(home=home, start=False) as opened:
        opened.attach(str(upstream), "/models", refresh_s=0.0)
        yield opened


@pytest.fixture(scope="module")
def mounted(place: Path, store: Store) -> Iterator[Mounted]:
    with Mounted(place, source=place / "home", plain=False, root="/models") as mount:
        yield mount


@can_mount
def test_what_is_attached_is_read_and_is_hot_once_it_is_warm(mounted: Mounted, store: Store) -> None:
    assert names_in(mounted.path) == ["big.bin", "sub"]
    assert (mounted / "big.bin").read_bytes() == DATA
    assert os.getxattr(mounted / "big.bin", "user.ckptstore.origin").endswith(b"/upstream/big.bin")
    store.warm("/models/sub/other.bin")

    def is_hot() -> bool:
        """What an open was told last: the copy is whole, once all of it is on the disk."""
        open(mounted / "sub/other.bin", "rb").close()
        return os.getxattr(mounted / "sub/other.bin", "user.ckptstore.tier") == b"local"

    until("it is hot", is_hot)
    for _ in range(2):
        with open(mounted / "sub/other.bin", "rb", buffering=0) as hot, mounted.nobody_serving():
            assert hot.read() == DATA


@can_mount
@pytest.mark.parametrize("already_read", READ_BEFORE)
def test_a_file_that_is_replaced_in_the_middle_of_reading_is_wholly_old_or_an_error(
    mounted: Mounted, upstream: Path, already_read: int
) -> None:
    name = f"sub/replaced-{already_read}"
    with open(mounted / name, "rb", buffering=0) as old:
        seen = old.read(already_read)
        (upstream / "new").write_bytes(OTHER)
        os.utime(upstream / "new", (1_700_000_500, 1_700_000_500))
        (upstream / "new").rename(upstream / name)
        try:
            while piece := old.read(1 << 20):
                seen += piece
        except OSError as error:
            assert error.errno == errno.ESTALE
        assert seen == DATA[: len(seen)]

    def is_new() -> bool:
        """For a second the name may still stand for the old version, whose bytes are gone: an error, and never a mix."""
        try:
            return (mounted / name).read_bytes() == OTHER
        except OSError as error:
            assert error.errno == errno.ESTALE
            return False

    until("the new version is what is opened", is_new)


def test_a_touched_tensor_is_wanted_to_its_end_and_what_follows_it(tmp_path: Path) -> None:
    weights = {f"layer.{number:02}": np.full(1 << 20, number, dtype=np.float32) for number in range(60)}
    save_file(weights, tmp_path / "model.safetensors")
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    wanted: list[tuple[int, int]] = []
    node = Node(5, "/model.safetensors", "file", "1", len(data), 0, None, False)
    opened = OpenFile(node)
    with open(file, "rb") as source:
        copy = opened.copy = Copy("/model.safetensors", "1", len(data), source.fileno(), whole=False)
        opened.opens = 1
        ahead = TensorAhead(lambda _, start, size: wanted.append((start, size)) or copy)  # type: ignore[func-returns-value]
        ahead.touched(opened, copy, 0, data[: 1 << 20])
        until("the header is known", lambda: ahead._layouts.get(5))
        assert wanted == [(0, header_bytes)], "whoever reads only the header gets only the header"
        start = header_bytes + json.loads(data[8:header_bytes])["layer.03"]["data_offsets"][0]
        ahead.touched(opened, copy, start + 100, data[start + 100 : start + 4196])
        until("what follows is asked for", lambda: sum(size for _, size in wanted[1:]) >= 128 << 20)
        assert all(offset >= start for offset, _ in wanted[1:])
        assert sum(size for _, size in wanted[1:]) <= (4 << 20) + (132 << 20)
        ahead.close()


@can_mount
def test_a_cold_model_is_loaded_through_the_mount(mounted: Mounted, upstream: Path) -> None:
    weights = {f"layer.{number:02}": np.full(1 << 18, number, dtype=np.float32) for number in range(30)}
    save_file(weights, upstream / "model.safetensors")
    os.utime(upstream / "model.safetensors", (1_700_000_000, 1_700_000_000))
    until("it shows", lambda: (mounted / "model.safetensors").exists())
    with safe_open(mounted / "model.safetensors", "numpy") as tensors:
        for name in sorted(weights, reverse=True):
            assert (tensors.get_tensor(name) == weights[name]).all()
