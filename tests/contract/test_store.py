"""The store keeps its promises to a client on the daemon's node and to one over the network: slower, never different."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore import manifest
from ckptstore.errors import (
    AlreadyExists,
    AttemptAborted,
    Busy,
    ChecksumMismatch,
    CkptStoreError,
    DaemonUnavailable,
    InvalidInput,
    NotFound,
    NotStorable,
    TierFull,
    Unauthorized,
    WaitTimeout,
)
from ckptstore.wire import AttemptOpened, OpenAttempt
from ckptstore_bench.ports import free_port
from ckptstore_client import Store
from ckptstore_client.replicas import ContentStream
from tests.contract.store_place import TOKEN, WAIT_S, Place, start
from tests.daemon_process import DaemonProcess
from tests.until import until


def state_of(value: float, size: int = 300_000) -> dict[str, Any]:
    weight = torch.full((size,), value)
    return {
        "model": {"w": weight, "tied": weight, "b": torch.tensor(value).bfloat16()},
        "n": np.full(3, value),
        "step": int(value),
        "o": [None, ("é", 1)],
    }


def assert_state(found: Any, value: float, size: int = 300_000) -> None:
    expected = state_of(value, size)
    assert torch.equal(found["model"]["w"], expected["model"]["w"])
    assert found["model"]["tied"] is found["model"]["w"]
    assert torch.equal(found["model"]["b"], expected["model"]["b"])
    assert np.array_equal(found["n"], expected["n"])
    assert (found["step"], found["o"]) == (expected["step"], expected["o"])


# --- save and load -----------------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(store: Store, folder: str) -> None:
    pending = store.save(f"{folder}/a", state_of(1), step=5, metadata={"note": "é"})
    pending.wait("snapshot", timeout_s=WAIT_S)
    pending.wait("pfs", timeout_s=WAIT_S)
    until("both tiers have it", lambda: pending.durability == ["nvme", "pfs"])
    assert_state(store.load(f"{folder}/a"), 1)
    entry = store.stat(f"{folder}/a")
    assert (entry.kind, entry.step, entry.world_size, entry.metadata) == ("checkpoint", 5, 1, {"note": "é"})


def test_both_ways_see_the_same_bytes(daemon: tuple[DaemonProcess, str], folder: str) -> None:
    process, url = daemon
    with ckptstore.connect(home=process.home, start=False) as near, ckptstore.connect(url, token=TOKEN) as far:
        near.save(f"{folder}/near", state_of(1)).wait("nvme", timeout_s=WAIT_S)
        far.save(f"{folder}/far", state_of(2)).wait("nvme", timeout_s=WAIT_S)
        assert_state(far.load(f"{folder}/near"), 1)
        assert_state(near.load(f"{folder}/far"), 2)


def test_the_tensors_may_change_the_moment_save_returns(store: Store, folder: str) -> None:
    state = state_of(1, size=3_000_000)
    pendings = []
    for value in range(1, 5):
        state["model"]["w"].fill_(value)
        state["step"] = value
        pendings.append(store.save(f"{folder}/{value}", state))
        state["model"]["w"].fill_(-1)
    for value, pending in enumerate(pendings, 1):
        pending.wait("nvme", timeout_s=WAIT_S)
        found = store.load(f"{folder}/{value}")
        assert found["step"] == value
        assert bool((found["model"]["w"] == value).all())


def test_latest_is_the_newest(store: Store, folder: str) -> None:
    for value in (1, 2, 3):
        store.save(f"{folder}/step-{value}", state_of(value)).wait("nvme", timeout_s=WAIT_S)
    assert_state(store.load(f"{folder}/@latest"), 3)
    store.rm(f"{folder}/step-3")
    assert_state(store.load(f"{folder}/@latest"), 2)


def test_load_into_fills_in_place_and_only_reads_a_part(store: Store, folder: str) -> None:
    store.save(f"{folder}/a", state_of(3)).wait("nvme", timeout_s=WAIT_S)
    into = state_of(0)
    weight = into["model"]["w"]
    assert store.load(f"{folder}/a", into=into) is into
    assert into["model"]["w"] is weight
    assert_state(into, 3)
    assert set(store.load(f"{folder}/a", only="model/b")) == {"model"}
    with pytest.raises(InvalidInput, match="model/w"):
        store.load(f"{folder}/a", into=state_of(0, size=7))


def test_saving_over_a_checkpoint_needs_replace(store: Store, folder: str) -> None:
    store.save(f"{folder}/a", state_of(1)).wait("nvme", timeout_s=WAIT_S)
    with pytest.raises(AlreadyExists):
        store.save(f"{folder}/a", state_of(2))
    assert_state(store.load(f"{folder}/a"), 1)
    store.save(f"{folder}/a", state_of(3), replace=True).wait("nvme", timeout_s=WAIT_S)
    assert_state(store.load(f"{folder}/a"), 3)


def test_ranks_of_one_group_save_one_checkpoint(place: Place, folder: str) -> None:
    with place.connect(group="one incarnation") as zero, place.connect(group="one incarnation") as one:
        first = zero.save(f"{folder}/a", {"rank": 0, "w": torch.zeros(3)}, rank=0, world_size=2)
        with pytest.raises(WaitTimeout):
            first.wait("snapshot", timeout_s=0.0)
        with pytest.raises(NotFound, match=r"on its way there.*wait_published"):
            zero.load(f"{folder}/a")
        one.save(f"{folder}/a", {"rank": 1, "w": torch.ones(3)}, rank=1, world_size=2)
        first.wait("nvme", timeout_s=WAIT_S)
        assert [zero.load(f"{folder}/a", rank=rank)["rank"] for rank in (0, 1)] == [0, 1]
        with pytest.raises(InvalidInput, match="outside the 2 ranks"):
            zero.load(f"{folder}/a", rank=2)


def test_a_rank_whose_state_can_never_fit_ends_the_attempt_for_all(place: Place, folder: str) -> None:
    with place.connect(group="incarnation three") as zero, place.connect(group="incarnation three") as one:
        pending = zero.save(f"{folder}/a", {"w": torch.ones(3)}, rank=0, world_size=2)
        with pytest.raises(TierFull):
            one.save(f"{folder}/a", {"w": torch.empty(300 << 20, dtype=torch.uint8)}, rank=1, world_size=2)
        with pytest.raises(AttemptAborted, match="rank 1 failed"):
            pending.wait("nvme", timeout_s=WAIT_S)


def test_a_segment_that_cannot_be_mapped_ends_the_attempt_for_all_and_is_given_back(
    daemon: tuple[DaemonProcess, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CkptStoreError("no address space is left", operation="map segment")

    def connect() -> Store:
        return ckptstore.connect(home=daemon[0].home, start=False, group="incarnation four")

    with connect() as zero, connect() as one:
        pending = zero.save(f"{folder}/a", {"w": torch.ones(3)}, rank=0, world_size=2)
        with monkeypatch.context() as patched:
            patched.setattr("ckptstore_client.descriptors.DescriptorConnection.segment", refuse)
            for _ in range(3):  # one more than there are slots
                with pytest.raises(CkptStoreError, match="address space"):
                    one.save(f"{folder}/b", {"w": torch.ones(3)}, on_busy="fail", rank=0, world_size=1)
            with pytest.raises(CkptStoreError, match="address space"):
                one.save(f"{folder}/a", {"w": torch.ones(3)}, rank=1, world_size=2)
        with pytest.raises(AttemptAborted, match="rank 1 failed"):
            pending.wait("nvme", timeout_s=WAIT_S)
        one.save(f"{folder}/c", {"w": torch.ones(3)}, on_busy="fail", rank=0, world_size=1).wait("nvme", timeout_s=WAIT_S)


def test_a_rank_whose_state_is_refused_ends_the_attempt_for_all_and_the_next_works(place: Place, folder: str) -> None:
    with place.connect(group="incarnation two") as zero, place.connect(group="incarnation two") as one:
        pending = zero.save(f"{folder}/a", {"w": torch.ones(3)}, rank=0, world_size=2)
        with pytest.raises(NotStorable, match="optim"):
            one.save(f"{folder}/a", {"optim": object()}, rank=1, world_size=2)
        with pytest.raises(AttemptAborted, match="rank 1 failed"):
            pending.wait("snapshot", timeout_s=WAIT_S)
        again = zero.save(f"{folder}/a", {"w": torch.ones(3)}, rank=0, world_size=2)
        one.save(f"{folder}/a", {"w": torch.ones(3)}, rank=1, world_size=2)
        again.wait("nvme", timeout_s=WAIT_S)
        assert torch.equal(zero.load(f"{folder}/a", rank=1)["w"], torch.ones(3))


def test_several_ranks_without_a_group_are_refused_by_name(store: Store, folder: str) -> None:
    with pytest.raises(InvalidInput, match="group="):
        store.save(f"{folder}/a", {}, rank=0, world_size=2)
    with pytest.raises(InvalidInput, match="outside a world"):
        store.save(f"{folder}/a", {}, rank=3, world_size=2)


def test_threads_may_save_and_load_at_once(store: Store, folder: str) -> None:
    def run(value: int) -> None:
        store.save(f"{folder}/{value}", state_of(value)).wait("nvme", timeout_s=WAIT_S)
        assert_state(store.load(f"{folder}/{value}"), value)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(run, range(12)))
    assert len(list(store.ls(folder))) == 12


def test_a_save_without_a_slot_waits_is_skipped_or_fails_as_chosen(daemon: tuple[DaemonProcess, str], folder: str) -> None:
    process, _ = daemon
    with ckptstore.connect(home=process.home, start=False) as store:
        huge = {"w": torch.empty(300 << 20, dtype=torch.uint8)}  # more than the daemon's whole memory
        with pytest.raises((Busy, ckptstore.errors.TierFull)):
            store.save(f"{folder}/huge", huge, on_busy="fail")
        store.save(f"{folder}/next", state_of(1)).wait("nvme", timeout_s=WAIT_S)
        assert [entry.name for entry in store.ls(folder)] == ["next"]


def test_on_busy_chooses_to_skip_to_fail_or_to_wait(daemon: tuple[DaemonProcess, str], folder: str) -> None:
    home = daemon[0].home
    state = {"w": torch.ones(150 << 20, dtype=torch.uint8)}
    with ckptstore.connect(home=home, start=False) as store:
        holder = ckptstore.connect(home=home, start=False)
        hold = OpenAttempt(path=f"{folder}/held", token="t" * 16, ordinal=0, rank=0, world_size=1, size_bytes=200 << 20)
        holder._connection.transport().api.call("POST", "attempts", AttemptOpened, hold)  # most of the memory, and no hand-over
        skipped = store.save(f"{folder}/a", state, on_busy="skip")
        assert skipped.skipped
        with pytest.raises(AttemptAborted, match="skipped"):
            skipped.wait("snapshot")
        with pytest.raises(Busy):
            store.save(f"{folder}/a", state, on_busy="fail")
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(store.save, f"{folder}/a", state)
            holder.close()
            waiting.result(WAIT_S).wait("nvme", timeout_s=WAIT_S)
        assert torch.equal(store.load(f"{folder}/a")["w"], state["w"])


# --- waiting -----------------------------------------------------------------------------------------------------------------------


def test_waiting_for_an_unknown_tier_names_the_known_ones(store: Store, folder: str) -> None:
    pending = store.save(f"{folder}/a", state_of(1))
    with pytest.raises(InvalidInput, match=r"snapshot, .*nvme, pfs"):
        pending.wait("tape")
    pending.wait("nvme", timeout_s=WAIT_S)
    with pytest.raises(InvalidInput, match="tape"):
        store.wait(f"{folder}/a", "tape")
    assert "pfs" in store.wait(f"{folder}/a", "pfs", timeout_s=WAIT_S).durability
    assert {"snapshot_s", "nvme_s", "stall_s", "copy_s"} <= pending.timings.keys()


def test_a_process_group_agrees_on_its_token_and_on_what_is_latest(place: Place, folder: str) -> None:
    program = f"""
import datetime, os, sys, torch, torch.distributed as dist, ckptstore
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=90))
rank = dist.get_rank()
store = ckptstore.connect({place.url!r}, token={TOKEN!r}) if {place.over_network} else ckptstore.connect(home={str(place.daemon.home)!r})
for step in range(2):
    store.save(f"{folder}/{{step}}", {{"rank": rank, "step": step, "w": torch.full((3,), rank)}}).wait("nvme", timeout_s=60)
found = store.load("{folder}/@latest")
assert (found["rank"], found["step"], found["w"].tolist()) == (rank, 1, [rank] * 3), found
try:
    store.load("{folder}/none/@latest")
except ckptstore.errors.NotFound:
    print("both were told", flush=True)
dist.barrier()
os._exit(0)
"""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, "RANK": rank}
        )
        for rank in "01"
    ]
    for process in processes:
        output, errors = process.communicate(timeout=180)
        assert output == "both were told\n", errors
    with place.connect() as store:
        assert store.stat(f"{folder}/1").world_size == 2
        assert store.load(f"{folder}/1", rank=1)["rank"] == 1


def test_listing_tells_at_the_call_what_is_wrong(store: Store, folder: str) -> None:
    with pytest.raises(InvalidInput):
        store.ls("relative")
    with pytest.raises(NotFound):
        store.ls(f"{folder}/nothing")


# --- the namespace -----------------------------------------------------------------------------------------------------------------


def test_a_move_is_one_step_and_what_was_moved_is_loaded_from_its_new_path(store: Store, folder: str) -> None:
    for value in (1, 2):
        store.save(f"{folder}/step-{value}", state_of(value)).wait("pfs", timeout_s=WAIT_S)
    assert store.mv(folder, f"{folder}-kept") == [f"{folder}-kept/step-1", f"{folder}-kept/step-2"]
    assert_state(store.load(f"{folder}-kept/@latest"), 2)
    assert "pfs" in store.wait(f"{folder}-kept/step-1", "pfs", timeout_s=WAIT_S).durability
    with pytest.raises(NotFound):
        store.stat(folder)
    with pytest.raises(AlreadyExists):
        store.mv(f"{folder}-kept/step-1", f"{folder}-kept/step-2")
    store.mv(f"{folder}-kept/step-1", f"{folder}-kept/step-2", replace=True)
    assert_state(store.load(f"{folder}-kept/step-2"), 1)
    summary = list(store.verify(f"{folder}-kept"))[-1]
    assert (summary.problems, summary.records) == (0, 2)


def test_ls_stat_du_rm_and_verify(store: Store, folder: str) -> None:
    for name in ("b", "a", "é"):
        store.save(f"{folder}/{name}", state_of(1)).wait("pfs", timeout_s=WAIT_S)
    assert [entry.name for entry in store.ls(folder)] == ["a", "b", "é"]
    assert store.du(folder).publications == 3
    assert list(store.verify(folder))[-1].problems == 0
    assert store.rm(f"{folder}/a") == [f"{folder}/a"]
    with pytest.raises(NotFound):
        store.rm(f"{folder}/a")
    assert sorted(store.rm(folder, recursive=True)) == [f"{folder}/b", f"{folder}/é"]
    with pytest.raises(NotFound):
        store.stat(f"{folder}/b")


BAD_PATHS = ["relative", "", "/", "/a/../b", "/a//b", "/a\0b", "/" + "x" * 300, "/@latest/x", "/a/@reserved", "/a/"]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_bad_path_is_refused_by_name(store: Store, path: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: store.save(path, {}),
        lambda: store.load(path),
        lambda: store.put(__file__, path),
        lambda: store.stat(path),
    ]
    for call in calls:
        with pytest.raises(InvalidInput):
            call()


def test_arguments_that_make_no_sense_are_refused(store: Store, folder: str) -> None:
    bad: list[dict[str, Any]] = [
        {"on_busy": "later"},
        {"metadata": {1: 2}},
        {"metadata": {"a": object()}},
        {"step": "x"},
        {"step": 1 << 70},
    ]
    for options in bad:
        with pytest.raises(InvalidInput):
            store.save(f"{folder}/a", {}, **options)
    with pytest.raises(NotFound):
        store.load(f"{folder}/a")


# --- files -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").touch()
    (root / "config.json").write_text("{}")
    (root / "deep" / "er" / "weights.bin").write_bytes(os.urandom(9_000_001))
    (root / "link").symlink_to(root / "config.json")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_folder_is_put_and_got_whole(store: Store, folder: str, tree: Path, tmp_path: Path) -> None:
    pending = store.put(tree, f"{folder}/model")
    assert pending.durability
    out = store.get(f"{folder}/model", tmp_path / "out")
    assert contents(out) == contents(tree)
    assert store.get(f"{folder}/model/deep/er/weights.bin", tmp_path / "one").read_bytes() == (tree / "deep/er/weights.bin").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_file_is_put_and_got(store: Store, folder: str, tree: Path, tmp_path: Path) -> None:
    store.put(tree / "config.json", f"{folder}/file", metadata={"a": 1})
    assert store.stat(f"{folder}/file").kind == "file"
    target = store.get(f"{folder}/file", tmp_path / "new" / "file")
    assert target.read_text() == "{}"
    with pytest.raises(AlreadyExists):
        store.get(f"{folder}/file", target)
    store.put(tree / "empty", f"{folder}/file", replace=True)
    assert store.get(f"{folder}/file", target, replace=True).read_bytes() == b""
    with pytest.raises(InvalidInput, match="get"):
        store.load(f"{folder}/file")


def test_a_checkpoint_can_be_got_as_files(store: Store, folder: str, tmp_path: Path) -> None:
    store.save(f"{folder}/a", state_of(1), step=1).wait("nvme", timeout_s=WAIT_S)
    out = store.get(f"{folder}/a", tmp_path / "out")
    index = manifest.read_index((out / "checkpoint.json").read_bytes())
    assert [part.file for part in index.parts] == [manifest.part_file_name(0, 1)]
    assert (out / index.parts[0].file).stat().st_size == index.parts[0].size_bytes
    from safetensors.torch import load_file

    assert torch.equal(load_file(out / index.parts[0].file)["model/w"], state_of(1)["model"]["w"])


def test_special_files_loops_and_missing_files_are_refused_by_name(store: Store, folder: str, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    os.mkfifo(odd / "pipe")
    with pytest.raises(InvalidInput, match="pipe"):
        store.put(odd, f"{folder}/a")
    (odd / "pipe").unlink()
    (odd / "loop").symlink_to(odd)
    with pytest.raises(InvalidInput, match="loop"):
        store.put(odd, f"{folder}/a")
    (odd / "loop").unlink()
    with pytest.raises(InvalidInput, match="no file"):
        store.put(odd, f"{folder}/a")
    (odd / "dangling").symlink_to(odd / "nowhere")
    with pytest.raises(InvalidInput, match="dangling"):
        store.put(odd, f"{folder}/a")
    with pytest.raises(NotFound):
        store.put(odd / "missing", f"{folder}/a")
    with pytest.raises(NotFound):
        store.get(f"{folder}/a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- connections -------------------------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_refused(daemon: tuple[DaemonProcess, str]) -> None:
    for token in (None, "wrong token"):
        with pytest.raises(Unauthorized):
            ckptstore.connect(daemon[1], token=token)


def test_a_url_that_is_none_is_refused() -> None:
    for url in ("host:80", "ftp://host", "http://", "http://user:secret@host"):
        with pytest.raises(InvalidInput) as refusal:
            ckptstore.connect(url)
        assert "secret" not in str(refusal.value)


def test_nobody_there_is_daemon_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnavailable):
        ckptstore.connect(home=tmp_path, start=False)
    with pytest.raises(DaemonUnavailable):
        ckptstore.connect(f"http://127.0.0.1:{free_port()}", timeout_s=1)


def test_a_forked_child_has_a_session_of_its_own(place: Place, folder: str) -> None:
    if threading.active_count() > 50:
        pytest.fail("threads were left over by earlier tests")
    program = f"""
import os, sys, torch, ckptstore
store = ckptstore.connect({place.url!r}, token={TOKEN!r}) if {place.over_network} else ckptstore.connect(home={str(place.daemon.home)!r})
store.save("{folder}/parent", {{"w": torch.ones(3)}}).wait("nvme", timeout_s=60)
child = os.fork()
if child == 0:
    store.save("{folder}/child", {{"w": store.load("{folder}/parent")["w"] * 2}}).wait("nvme", timeout_s=60)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(store.load("{folder}/child")["w"].tolist())
store.save("{folder}/after", {{}}).wait("nvme", timeout_s=60)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout == "[2.0, 2.0, 2.0]\n", run.stderr


def test_the_next_call_after_a_restart_of_the_daemon_connects_anew(tmp_path: Path) -> None:
    port = free_port()
    with start(tmp_path / "home", port) as process:
        places = [Place(process, f"http://127.0.0.1:{port}", over_network) for over_network in (False, True)]
        stores = [place.connect() for place in places]
        for number, store in enumerate(stores):
            store.save(f"/a/{number}", state_of(number)).wait("nvme", timeout_s=WAIT_S)
        process.kill()
        process.start()
        for number, store in enumerate(stores):
            assert_state(store.load(f"/a/{number}"), number)
            store.save(f"/b/{number}", state_of(number)).wait("nvme", timeout_s=WAIT_S)
            assert_state(store.load(f"/b/{number}"), number)
            store.close()


def test_a_load_after_a_restart_of_the_daemon_opens_the_files_and_streams_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the daemon's stream once, at a quarter of the speed: the session was lost, and only opening the file noticed."""
    with start(tmp_path / "home", free_port()) as process, ckptstore.connect(home=process.home, start=False) as store:
        store.save("/a", state_of(1)).wait("nvme", timeout_s=WAIT_S)
        process.kill()
        process.start()
        monkeypatch.setattr(ContentStream, "read", lambda *_, **__: pytest.fail("streamed"))
        assert_state(store.load("/a"), 1)


def test_a_save_that_the_daemon_lost_is_told_as_aborted(tmp_path: Path) -> None:
    with start(tmp_path / "home", free_port()) as process, ckptstore.connect(home=process.home, start=False, group="all ranks") as store:
        pending = store.save("/a", {"w": torch.ones(3)}, rank=0, world_size=2)
        process.kill()
        with pytest.raises(DaemonUnavailable):
            pending.wait("snapshot", timeout_s=WAIT_S)
        process.start()
        with pytest.raises(AttemptAborted):
            pending.wait("snapshot", timeout_s=WAIT_S)
        with pytest.raises(NotFound):
            store.load("/a")


def test_a_damaged_replica_is_passed_over_and_without_another_the_mismatch_has_a_name(tmp_path: Path) -> None:
    with start(tmp_path / "home", free_port()) as process:
        with ckptstore.connect(home=process.home, start=False) as store:
            store.save("/a", state_of(1)).wait("pfs", timeout_s=WAIT_S)
        process.kill()  # the memory replica goes with it
        process.start()
        (nvme,) = (process.home / "nvme" / "objects").rglob("*.safetensors~*")
        (pfs,) = (process.home / "pfs" / "objects").rglob("*.safetensors~*")
        with ckptstore.connect(home=process.home, start=False) as store:
            flip(nvme)
            assert_state(store.load("/a"), 1)
        process.kill()
        process.start()
        for replica in (process.home / "nvme" / "objects").rglob("*.safetensors~*"):
            replica.write_bytes(pfs.read_bytes())
            flip(replica)
        flip(pfs)
        with ckptstore.connect(home=process.home, start=False) as store, pytest.raises(ChecksumMismatch) as mismatch:
            store.load("/a")
        assert "rank-00000-of-00001.safetensors (object " in str(mismatch.value)
        assert mismatch.value.tier in ("nvme", "pfs", "nvme, pfs")


def flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-100, io.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-100, io.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_a_daemon_is_started_when_none_answers_once_for_all_ranks(tmp_path: Path) -> None:
    home = tmp_path / "home"
    program = f"import ckptstore; print(ckptstore.connect(home={str(home)!r}).hello().pid)"
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    pids = {int(process.communicate(timeout=120)[0]) for process in processes}
    assert len(pids) == 1
    with ckptstore.connect(home=home, start=False) as store:  # it outlives those who started it
        store.save("/a", {"w": torch.ones(2)}).wait("nvme", timeout_s=WAIT_S)
        assert store.hello().pid in pids
    os.kill(pids.pop(), 15)


def test_a_daemon_that_cannot_start_is_reported_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('unknown_key = "x"\n')
    with pytest.raises((DaemonUnavailable, InvalidInput), match="unknown_key"):
        ckptstore.connect(home=tmp_path)


def test_the_facade_is_light() -> None:
    program = "import sys, ckptstore, json; print(json.dumps([m for m in ('torch', 'numpy', 'httpx', 'pydantic') if m in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(run.stdout) == []


def test_the_functions_of_the_module_use_the_default_store(daemon: tuple[DaemonProcess, str], folder: str) -> None:
    program = f"""
import sys, ckptstore
ckptstore.save("{folder}/a", {{"x": [1, 2]}}).wait("nvme", timeout_s=60)
print(ckptstore.load("{folder}/a"), ckptstore.__version__, "torch" in sys.modules)
"""
    environment = {**os.environ, "CKPTSTORE_HOME": str(daemon[0].home)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment)
    assert run.stdout == "{'x': [1, 2]} 0.1.0 False\n", run.stderr
