"""Several processes of a node load the same part at the same time, and the disk is read once; a mapped load through the whole store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import InvalidInput
from ckptstore_client.process_group import shared_on_this_node
from tests.daemon_process import DaemonProcess, write_config

RANKS = 3
SIZE = 48 << 20
PATH = "/runs/a/step-1"

#: Loads when told to, and prints what this process had the disk read meanwhile, and whether the array is right.
RANK_PROGRAM = """
import sys, numpy as np, ckptstore
def disk_read_bytes():
    return int(dict(line.split(": ") for line in open("/proc/self/io"))["read_bytes"])
with ckptstore.connect(home=sys.argv[1], start=False) as store:
    store.load("/runs/a/warm")  # what is imported at the first load is not what is measured
    print("ready", flush=True)
    sys.stdin.readline()
    before = disk_read_bytes()
    state = store.load(sys.argv[2], shared=sys.argv[3] == "shared")
    print("read", disk_read_bytes() - before, bool(np.array_equal(state["w"], np.arange(int(sys.argv[4])))), flush=True)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store whose daemon was restarted since the save: nothing is left in memory."""
    home = tmp_path_factory.mktemp("home")
    write_config(home, tiers=[{"name": "nvme", "kind": "posix", "path": home / "nvme"}], grace_s=0, memory={"limit": "256MiB"})
    with DaemonProcess(home), ckptstore.connect(home=home, start=False) as store:
        store.save(PATH, {"w": np.arange(SIZE // 8)}).wait("nvme", timeout_s=60)
        store.save("/runs/a/warm", {"w": np.arange(4)}).wait("nvme", timeout_s=60)
    with DaemonProcess(home):
        yield home


def cold_file(home: Path) -> Path:
    """The part's file, which is not in the page cache any more."""
    file = max((file for file in (home / "nvme").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return file


def disk_reads(home: Path, how: str) -> list[int]:
    """Bytes that each of the ranks had the disk read, all of them loading at once."""
    command = [sys.executable, "-c", RANK_PROGRAM, str(home), PATH, how, str(SIZE // 8)]
    ranks = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(RANKS)]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "ready\n"
        cold_file(home)
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("go\n")
            rank.stdin.flush()
        answers = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    found = [re.fullmatch(r"read (\d+) True\n", answer) for answer in answers]
    assert all(found), answers
    return [int(match[1]) for match in found if match]


def test_ranks_that_load_the_same_part_read_the_disk_once(home: Path) -> None:
    together = sum(disk_reads(home, "shared"))
    assert SIZE <= together < 1.3 * SIZE


def test_ranks_that_do_not_share_read_past_the_cache_each_for_itself(home: Path) -> None:
    """What the test above would see if sharing did nothing."""
    assert min(disk_reads(home, "alone")) >= SIZE


def test_a_launcher_with_several_ranks_here_means_sharing_unless_each_has_a_part_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shared_on_this_node(1, 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert shared_on_this_node(1, 0)  # one file, eight readers
    assert shared_on_this_node(16, 0)  # another's part
    assert not shared_on_this_node(16, 3)


def test_mapped_tensors_outlive_the_removal_of_their_checkpoint(home: Path) -> None:
    with ckptstore.connect(home=home, start=False) as store:
        store.save("/runs/a/doomed", {"w": np.arange(1 << 20)}).wait("nvme", timeout_s=60)
        state = store.load("/runs/a/doomed", mmap=True)
        folder = home / "nvme" / "objects" / "runs" / "a" / "doomed"
        assert str(folder) in Path("/proc/self/maps").read_text("ascii")
        store.rm("/runs/a/doomed")
        store.save("/runs/a/after", {"w": np.zeros(1 << 20)}).wait("nvme", timeout_s=60)  # takes the segment, were it one
        assert np.array_equal(state["w"], np.arange(1 << 20))


def test_a_mapped_load_fills_nothing_that_exists(home: Path) -> None:
    with ckptstore.connect(home=home, start=False) as store, pytest.raises(InvalidInput, match="mmap makes new tensors"):
        store.load(PATH, into={"w": np.zeros(1)}, mmap=True)
