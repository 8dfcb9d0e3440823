"""A daemon that nobody started by hand: it comes once, outlives who started it, rests without cost, and goes when it is not needed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import DaemonUnavailable
from tests.daemon_process import write_config
from tests.until import until

PATIENCE_S = 60.0
CONNECTING = 8

#: Connects when told to, says who serves it, and waits to be ended.
CONNECT_PROGRAM = """
import json, sys
import ckptstore
print("ready", flush=True)
sys.stdin.readline()
store = ckptstore.connect(home=sys.argv[1])
hello = store.hello()
print(json.dumps({"pid": hello.pid, "store": hello.store}), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose daemon, if one is left, is ended."""
    home = tmp_path / "home"
    write_config(home, tiers=two_tiers(tmp_path), grace_s=0, memory={"limit": "64MiB", "huge_pages": False})
    yield home
    stop_daemon(home)


def two_tiers(folder: Path) -> list[dict[str, Any]]:
    return [
        {"name": "nvme", "kind": "posix", "path": folder / "nvme"},
        {"name": "pfs", "kind": "posix", "path": folder / "pfs", "shared": True, "bandwidth_limit": "4MB/s"},
    ]


def daemon_pid(home: Path) -> int:
    """Who holds the home's lock, as the daemon itself wrote it."""
    return int((home / "daemon.lock").read_text("ascii"))


def is_running(pid: int) -> bool:
    """A process that ended but was not waited for, since its starter lives on here, does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def stop_daemon(home: Path) -> None:
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = daemon_pid(home)
        if str(home) in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


def log_of(home: Path) -> str:
    log = home / "daemon.log"
    return log.read_text("utf-8") if log.exists() else ""


def starts(home: Path) -> int:
    return log_of(home).count("ckptstore: serving")


def state_of(value: int, size_bytes: int = 100_000) -> dict[str, Any]:
    return {"w": np.random.default_rng(value).integers(0, 256, size_bytes, dtype=np.uint8), "step": value}


def assert_state(found: Any, value: int, size_bytes: int = 100_000) -> None:
    assert found["step"] == value
    assert np.array_equal(found["w"], state_of(value, size_bytes)["w"])


# --- coming ------------------------------------------------------------------------------------------------------------------------


def test_processes_that_connect_at_the_same_moment_start_one_daemon_which_outlives_them(home: Path) -> None:
    command = [sys.executable, "-c", CONNECT_PROGRAM, str(home)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(CONNECTING)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for process in processes if process.stdout is not None]
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)  # as a scheduler ends a job: its whole session at once
            process.communicate()
    assert len({answer["pid"] for answer in answers}) == 1
    assert len({answer["store"] for answer in answers}) == 1
    assert starts(home) == 1
    assert is_running(answers[0]["pid"])
    with ckptstore.connect(home=home, start=False) as store:
        assert store.hello().pid == answers[0]["pid"] == daemon_pid(home)


def test_a_daemon_that_cannot_start_says_why_at_the_call(home: Path, tmp_path: Path) -> None:
    (tmp_path / "nvme" / "objects").mkdir(parents=True)
    (tmp_path / "nvme" / "objects" / "a~0123456789abcdef0123456789abcdef").write_bytes(b"somebody else's")
    with pytest.raises(DaemonUnavailable, match="is not empty and says of no store that it is its own"):
        ckptstore.connect(home=home)


# --- going -------------------------------------------------------------------------------------------------------------------------


def test_an_idle_daemon_finishes_its_drains_gives_memory_back_and_goes_and_a_new_one_finds_everything(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 MB into a tier of 4 MB/s: the drain outlasts both the client and the idle time."""
    size_bytes = 12_000_000
    monkeypatch.setenv("CKPTSTORE_IDLE_EXIT_S", "1")
    with ckptstore.connect(home=home) as store:
        first = store.hello().pid
        store.save("/run/1", state_of(1, size_bytes)).wait("nvme", timeout_s=PATIENCE_S)
        assert "pfs" not in store.stat("/run/1").durability
    until("the end of an idle daemon", lambda: not is_running(first))
    objects = [file for file in (tmp_path / "pfs" / "objects").rglob("*") if file.is_file()]
    assert sorted(file.stat().st_size >= size_bytes for file in objects) == [False, True]
    assert len(list((tmp_path / "pfs" / "records").iterdir())) == 1
    with ckptstore.connect(home=home) as store:
        assert store.hello().pid != first
        until("both tiers have it", lambda: store.stat("/run/1").durability == ["nvme", "pfs"])
        assert_state(store.load("/run/@latest"), 1, size_bytes)
    assert starts(home) == 2


def test_a_daemon_that_is_in_use_stays_and_gives_back_memory_that_is_not(home: Path, tmp_path: Path) -> None:
    memory = {"limit": "64MiB", "huge_pages": False, "idle_release_s": 0}
    write_config(home, tiers=two_tiers(tmp_path), grace_s=0, memory=memory, idle_exit_s=1)
    with ckptstore.connect(home=home) as store:
        pid = store.hello().pid
        store.save("/run/1", state_of(1)).wait("pfs", timeout_s=PATIENCE_S)
        assert store.status().memory.segments > 0
        until("the segments given back", lambda: store.status().memory.segments == 0)
        assert_state(store.load("/run/1"), 1)
        assert store.hello().pid == pid
    until("the end of an idle daemon", lambda: not is_running(pid))


def test_a_daemon_that_is_about_to_leave_is_waited_for_by_who_wants_a_new_one(home: Path) -> None:
    """It holds the home's lock to its end, and answers no more: whoever connects meanwhile gets its successor."""
    home.mkdir(exist_ok=True)
    with open(home / "daemon.lock", "a+", encoding="ascii") as lock, ThreadPoolExecutor(1) as thread:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("1\n")
        lock.flush()
        connecting = thread.submit(ckptstore.connect, home=home)
        until("a daemon that finds the lock taken", lambda: "another daemon (pid 1)" in log_of(home))
        fcntl.flock(lock, fcntl.LOCK_UN)
        with connecting.result(PATIENCE_S) as store:
            assert store.hello().pid == daemon_pid(home)


def test_a_store_that_is_open_connects_again_to_a_daemon_that_it_starts_itself(home: Path) -> None:
    with ckptstore.connect(home=home) as store:
        store.save("/run/1", state_of(1)).wait("nvme", timeout_s=PATIENCE_S)
        first = store.hello().pid
        os.kill(first, signal.SIGKILL)
        until("the daemon's death", lambda: not is_running(first))
        assert_state(store.load("/run/1"), 1)
        store.save("/run/2", state_of(2)).wait("nvme", timeout_s=PATIENCE_S)
        assert store.hello().pid != first
        assert starts(home) == 2


# --- forks -------------------------------------------------------------------------------------------------------------------------


def in_forked_child(work: Callable[[], None]) -> None:
    """Run `work` in a fork of this process, and fail as it fails."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the top of a process
            said = repr(error).encode()
        os.write(writer, said)
        os._exit(0 if not said else 1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert (os.waitstatus_to_exitcode(status), said) == (0, b"")


def test_a_forked_child_has_a_session_of_its_own_and_its_parents_goes_on(home: Path) -> None:
    with ckptstore.connect(home=home) as store:
        store.save("/run/1", state_of(1)).wait("nvme", timeout_s=PATIENCE_S)
        pending = store.save("/run/parent", state_of(2))
        before = store.status().sessions

        def work() -> None:
            assert_state(store.load("/run/1"), 1)
            store.save("/run/child", state_of(3)).wait("nvme", timeout_s=PATIENCE_S)
            assert store.status().sessions == before + 1
            pending.wait("nvme", timeout_s=PATIENCE_S)  # a handle of the parent's asks over the child's own connection
            store.close()

        in_forked_child(work)
        until("the end of the child's session", lambda: store.status().sessions == before)
        pending.wait("nvme", timeout_s=PATIENCE_S)
        store.save("/run/parent-2", state_of(4)).wait("nvme", timeout_s=PATIENCE_S)
        for path, value in (("/run/parent", 2), ("/run/child", 3), ("/run/parent-2", 4)):
            assert_state(store.load(path), value)


def test_a_fork_while_other_threads_use_the_store_leaves_both_processes_working(home: Path) -> None:
    with ckptstore.connect(home=home) as store:
        store.save("/run/1", state_of(1)).wait("nvme", timeout_s=PATIENCE_S)
        stop, faults = threading.Event(), []

        def load_and_save() -> None:
            number = 0
            while not stop.is_set():
                try:
                    assert_state(store.load("/run/1"), 1)
                    store.save(f"/thread/{threading.get_ident()}-{number}", state_of(number))
                except Exception as error:  # noqa: BLE001 - the top of a thread: the test looks at it
                    faults.append(error)
                    return
                number += 1

        threads = [threading.Thread(target=load_and_save) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for number in range(3):

                def work(number: int = number) -> None:
                    assert_state(store.load("/run/1"), 1)
                    store.save(f"/fork/{number}", state_of(number)).wait("nvme", timeout_s=PATIENCE_S)

                in_forked_child(work)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert faults == []
        for number in range(3):
            assert_state(store.load(f"/fork/{number}"), number)


# --- at rest -----------------------------------------------------------------------------------------------------------------------

REST_S = 3.0
#: Of a core. The aim is 1 %, which the benchmark measures; this bound tells a loop that polls from one that sleeps.
MOST_CPU = 0.10
MOST_WAKE_UPS_PER_S = 100


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wake_ups(pid: int) -> int:
    """How often its threads have gone to sleep, all together."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines() if ":" in line)
        total += int(lines["voluntary_ctxt_switches"])
    return total


def test_a_daemon_at_rest_uses_next_to_no_processor_time(home: Path) -> None:
    with ckptstore.connect(home=home) as store:
        for number in range(3):
            store.save(f"/run/{number}", state_of(number)).wait("pfs", timeout_s=PATIENCE_S)
        pid = store.hello().pid
        cpu_before_s, woken_before, began_s = cpu_s(pid), wake_ups(pid), time.monotonic()
        time.sleep(REST_S)  # what is measured is what happens while nobody asks for anything
        rested_s = time.monotonic() - began_s
        assert (cpu_s(pid) - cpu_before_s) / rested_s < MOST_CPU
        assert (wake_ups(pid) - woken_before) / rested_s < MOST_WAKE_UPS_PER_S
