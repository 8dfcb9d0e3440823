"""A folder's policies at every door: what goes, what stays and why, what can be had back; on a real daemon, which may die."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from ckptstore import errors
from ckptstore.errors import AlreadyExists, NotFound
from ckptstore.retention import BestN, LatestN
from ckptstore_client import Store, connect
from tests.daemon_process import DaemonProcess, run_rebuild, write_config
from tests.e2e.shell import Shell
from tests.until import until


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The deeper tier is compressed: nobody can open what lies in it, so that a read would recall it if it may."""
    tiers = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True, "compression": "zstd"},
    ]
    write_config(tmp_path / "home", tiers=tiers, grace_s=0)
    return tmp_path / "home"


@pytest.fixture
def daemon(home: Path) -> Iterator[DaemonProcess]:
    process = DaemonProcess(home)
    process.turn_s = 0.2
    with process:
        yield process


def save(store: Store, *steps: int) -> None:
    for step in steps:
        metadata = {"loss": abs(step - 3) / 10}
        pending = store.save(f"/run/step-{step}", {"w": np.full(1000, step)}, step=step, metadata=metadata, rank=0, world_size=1)
    pending.wait("pfs", timeout_s=60)


def steps(store: Store) -> list[int]:
    return [int(entry.name.removeprefix("step-")) for entry in store.ls("/run")]


def owed_records(home: Path) -> list[object]:
    with closing(sqlite3.connect(f"file:{home / 'catalog.sqlite3'}?mode=ro", uri=True, timeout=10.0)) as catalog:
        return catalog.execute("SELECT publication_id FROM owed_records").fetchall()


def test_the_trash_empties_itself_and_the_space_is_free(home: Path, daemon: DaemonProcess) -> None:
    with connect(home=home, start=False) as store:
        save(store, 1, 2)
        store.retention.keep("/run", LatestN(n=1), trash_s=0.001)
        until("it went", lambda: steps(store) == [2])
        until("nothing lies in the trash", lambda: not store.retention.trash())
        until("its bytes went", lambda: {tuple(lies_in(home, tier)) for tier in ("nvme", "pfs")} == {(2,)})
        with pytest.raises(NotFound):
            store.retention.undo("/run/step-1")


def test_what_no_policy_wants_goes_and_can_be_had_back(home: Path, daemon: DaemonProcess) -> None:
    with connect(home=home, start=False) as store:
        save(store, 1, 2, 3, 4, 5)
        planned = store.retention.keep("/run", LatestN(n=1), "best:1:loss:min", dry_run=True)
        assert [(judged.step, judged.goes) for judged in planned.checkpoints] == [(1, True), (2, True), (3, False), (4, True), (5, False)]
        assert {judged.step: judged.why for judged in planned.checkpoints if not judged.goes} == {3: "best:1:loss:min", 5: "latest:1"}
        assert steps(store) == [1, 2, 3, 4, 5]
        assert store.retention.folders() == []

        store.retention.hold("/run/step-2", "the paper's")
        store.retention.keep("/run", LatestN(n=1), BestN(n=1, metric="loss"))
        until("the rest is gone", lambda: steps(store) == [2, 3, 5])
        assert sorted(lying.path for lying in store.retention.trash()) == ["/run/step-1", "/run/step-4"]
        assert [entry.name for entry in store.ls("/")] == ["run"]

        assert store.retention.undo("/run/step-4") == "/run/step-4"
        assert store.load("/run/step-4")["w"][0] == 4
        assert sorted(held.path for held in store.retention.holds()) == ["/run/step-2", "/run/step-4"]

        save(store, 6)
        until("the newest moves on", lambda: steps(store) == [2, 3, 4, 6])
        with pytest.raises(AlreadyExists, match="the paper's"):
            store.rm("/run/step-2")
        with pytest.raises(AlreadyExists, match="the paper's"):
            store.save("/run/step-2", {"w": 1}, replace=True).wait("nvme", timeout_s=60)
        store.retention.release("/run/step-2")
        until("what was released goes", lambda: steps(store) == [3, 4, 6])

        assert len(store.retention.gc(everything=True)) == 3
        until("its bytes are gone", lambda: not list((home.parent / "pfs" / "objects" / "run" / "step-1").glob("*")))
        with pytest.raises(NotFound):
            store.retention.undo("/run/step-1")
        assert [line for line in store.verify("/") if line.problem] == []


def test_nothing_goes_while_nothing_newer_is_in_the_wanted_tier(home: Path, daemon: DaemonProcess) -> None:
    pfs = home.parent / "pfs"
    with connect(home=home, start=False) as store:
        save(store, 1, 2)
        pfs.rename(pfs.with_name("away"))
        pfs.write_text("not a folder")
        for step in (3, 4):
            store.save(f"/run/step-{step}", {"w": np.full(1000, step)}, step=step, rank=0, world_size=1).wait("nvme", timeout_s=60)
        plan = store.retention.keep("/run", "latest:1")
        assert [judged.step for judged in plan.checkpoints if judged.goes] == [1]
        assert {judged.step: judged.why for judged in plan.checkpoints if not judged.goes} == {
            2: "nothing newer is safe yet",
            3: "nothing newer is safe yet",
            4: "latest:1",
        }
        until("the first is gone", lambda: steps(store) == [2, 3, 4])
        pfs.unlink()
        pfs.with_name("away").rename(pfs)
        until("the others followed", lambda: steps(store) == [4])


def test_a_daemon_that_was_killed_goes_on_where_it_was_and_a_rebuild_finds_the_trash(home: Path) -> None:
    daemon = DaemonProcess(home)
    daemon.turn_s = 0.2
    with daemon, connect(home=home, start=False) as store:
        save(store, 1, 2, 3, 4)
        store.retention.keep("/run", "latest:1")
        until("it has begun", lambda: store.retention.trash())
        daemon.kill()
        daemon.start()
        until("it is done", lambda: steps(store) == [4])
        assert len(store.retention.trash()) == 3
        until("all of it is recorded", lambda: not owed_records(home))
        daemon.stop()
    for file in home.glob("catalog.sqlite3*"):
        file.unlink()
    assert run_rebuild(home) == 0
    with daemon.start(), connect(home=home, start=False) as store:
        assert steps(store) == [4]
        assert len(store.retention.trash()) == 3
        assert store.retention.undo("/run/step-2") == "/run/step-2"
        assert store.load("/run/step-2")["w"][0] == 2


def test_what_cannot_go_holds_up_nothing_else_and_status_says_why(home: Path, daemon: DaemonProcess) -> None:
    deep = "/deep" + f"/{'d' * 180}" * 4  # in the trash a path is longer
    with connect(home=home, start=False) as store:
        for name in ("x" * 35, "2", "3"):
            pending = store.save(f"{deep}/{name}", {"w": np.arange(10)}, rank=0, world_size=1)
        pending.wait("pfs", timeout_s=60)
        store.retention.keep(deep, "latest:1")
        until("what can go is gone", lambda: [entry.name for entry in store.ls(deep)] == ["3", "x" * 35])
        (told,) = [error for error in store.status().errors if error.where == "keep what policies want"]
        assert "x" * 35 in told.what
        save(store, 1, 2)
        store.retention.keep("/run", "latest:1")
        until("other folders go on", lambda: steps(store) == [2])
        assert len([error for error in store.status().errors if error.where == "keep what policies want"]) == 1, "once is enough"


def lies_in(home: Path, tier: str) -> list[int]:
    """The steps whose files are in a tier."""
    # os.walk passes over a folder that goes while it looks.
    found = os.walk(home.parent / tier / "objects" / "run")
    return sorted(int(Path(folder).name.removeprefix("step-")) for folder, _, files in found if files)


def recorded_in(home: Path, tier: str) -> int:
    return len(list((home.parent / tier / "records").glob("*.jsonl")))


def test_each_tier_keeps_what_its_own_policies_want(home: Path, daemon: DaemonProcess) -> None:
    with connect(home=home, start=False) as store:
        save(store, 1, 2, 3, 4)
        plan = store.retention.keep("/run", "latest:2", tier="nvme", dry_run=True)
        assert [[(place.tier, place.fate) for place in judged.tiers] for judged in plan.checkpoints] == [
            [("nvme", "goes"), ("pfs", "stays")], [("nvme", "goes"), ("pfs", "stays")],
            [("nvme", "stays"), ("pfs", "stays")], [("nvme", "stays"), ("pfs", "stays")],
        ]  # fmt: skip
        assert store.retention.folders() == []
        store.retention.keep("/run", "latest:2", tier="nvme")
        until("they have left", lambda: lies_in(home, "nvme") == [3, 4])
        until("with their records", lambda: recorded_in(home, "nvme") == 2)
        assert steps(store) == [1, 2, 3, 4]
        assert store.stat("/run/step-1").durability == ["pfs"]
        assert store.load("/run/step-1")["w"][0] == 1
        assert lies_in(home, "nvme") == [3, 4], "reading does not bring it back"

        store.retention.keep("/run", "every-steps:2", tier="pfs")
        until("what no tier wants is gone", lambda: steps(store) == [2, 3, 4])
        assert [lying.path for lying in store.retention.trash()] == ["/run/step-1"]
        until("what only the near one wants", lambda: store.stat("/run/step-3").durability == ["nvme"])
        assert store.load("/run/step-3")["w"][0] == 3
        assert store.load("/run/@latest")["w"][0] == 4

        pending = store.save("/run/step-5", {"w": np.full(1000, 5)}, step=5, rank=0, world_size=1)
        pending.wait("nvme", timeout_s=60)
        with pytest.raises(errors.InvalidInput, match="never comes there"):
            pending.wait("pfs", timeout_s=60)
        with pytest.raises(errors.InvalidInput, match="no policy keeps it in pfs"):
            store.wait("/run/@latest", "pfs", timeout_s=60)
        assert 5 not in lies_in(home, "pfs"), "it was never brought there"
        until("the near tier has forgotten the third", lambda: steps(store) == [2, 4, 5])
        assert [line for line in store.verify("/") if line.problem] == []

        store.retention.hold("/run/step-5", "the paper's")
        until("what is held is wanted everywhere", lambda: store.stat("/run/step-5").durability == ["nvme", "pfs"])
        store.retention.keep_all("/run")
        store.rm("/run/step-4")
        store.wait("/run/step-5", "pfs", timeout_s=60)


@contextmanager
def died_at(home: Path, point: str, *, tier: str = "") -> Iterator[Store]:
    """Three checkpoints of which a policy keeps the newest, a daemon that died of carrying that out, and the one after it."""
    daemon = DaemonProcess(home, failpoints=f"{point}=kill@2")
    daemon.turn_s = 0.2
    with daemon:
        with connect(home=home, start=False) as store:
            save(store, 1, 2, 3)
            store.retention.keep("/run", "latest:1", tier=tier)
            assert daemon.wait_exit() is not None, "it has died"
        assert daemon.was_killed
        daemon.failpoints = ""
        daemon.start()
        with connect(home=home, start=False) as store:
            yield store


@pytest.mark.parametrize("point", ["retention.before_leaving", "retention.after_leaving", "delete.before_delete_record"])
def test_a_daemon_that_dies_while_something_leaves_a_tier_loses_nothing_and_finishes(home: Path, point: str) -> None:
    with died_at(home, point, tier="nvme") as store:
        until("the others have left", lambda: lies_in(home, "nvme") == [3] and recorded_in(home, "nvme") == 1)
        assert [store.load(f"/run/step-{step}")["w"][0] for step in (1, 2, 3)] == [1, 2, 3]
        assert [line for line in store.verify("/") if line.problem] == []


@pytest.mark.parametrize("point", ["retention.before_discard", "retention.after_discard"])
def test_a_daemon_that_dies_while_something_goes_finishes(home: Path, point: str) -> None:
    with died_at(home, point) as store:
        until("the others have gone", lambda: steps(store) == [3])
        assert [lying.path for lying in store.retention.trash()] == ["/run/step-1", "/run/step-2"]


KEPT = """
[[keep]]
folder = "/run"
tier = "nvme"
policies = "latest:9"

[[keep]]
folder = "/run"
tier = "pfs"
policies = ["every-steps:2"]
"""


def test_what_only_one_tier_keeps_comes_back_after_the_catalog_is_lost_with_the_configured_policies(home: Path) -> None:
    with open(home / "config.toml", "a", encoding="utf-8") as config:
        config.write(KEPT)
    daemon = DaemonProcess(home)
    daemon.turn_s = 0.2
    with daemon, connect(home=home, start=False) as store:
        assert [(said.tier, str(*said.policies)) for said in store.retention.folders()] == [("nvme", "latest:9"), ("pfs", "every-steps:2")]
        save(store, 2)
        for step in (3, 4, 5):
            store.save(f"/run/step-{step}", {"w": np.full(1000, step)}, step=step, rank=0, world_size=1).wait("nvme", timeout_s=60)
        until("the fourth is drained", lambda: lies_in(home, "pfs") == [2, 4])
        until("all of it is recorded", lambda: not owed_records(home))
        daemon.stop()
    for file in home.glob("catalog.sqlite3*"):
        file.unlink()
    assert run_rebuild(home) == 0
    with daemon.start(), connect(home=home, start=False) as store:
        assert steps(store) == [2, 3, 4, 5]
        assert len(store.retention.folders()) == 2
        until("the tiers are as they were", lambda: lies_in(home, "pfs") == [2, 4])
        assert store.load("/run/step-3")["w"][0] == 3
        with pytest.raises(errors.InvalidInput, match="never comes there"):
            store.wait("/run/step-5", "pfs", timeout_s=60)


def test_the_command_line_keeps_holds_and_brings_back(home: Path, daemon: DaemonProcess) -> None:
    shell = Shell(home)
    with connect(home=home, start=False) as store:
        save(store, 1, 2, 3)
        assert shell.ok("ls", "/run", "--sort", "loss").out.split() == ["step-3/", "step-2/", "step-1/"]
        assert shell.ok("ls", "/run", "--sort", "step", "--reverse").out.split() == ["step-3/", "step-2/", "step-1/"]
        assert shell.ok("ls", "/run", "--sort", "nothing").out.split() == ["step-1/", "step-2/", "step-3/"]
        assert "LOSS" in shell.ok("ls", "-l", "/run", "--sort", "loss").out
        plan = shell.ok("keep", "/run", "latest:1", "--dry-run", "--json").document
        assert [judged["goes"] for judged in plan["checkpoints"]] == [True, True, False]
        assert "would go" in shell.ok("keep", "/run", "latest:1", "--dry-run").out
        assert "everything is kept" in shell.ok("keep").out
        shell.ok("hold", "/run/step-1", "--why", "mine")
        assert "mine" in shell.ok("hold").out
        shell.ok("keep", "/run", "latest:1", "--trash", "3600")
        assert "latest:1" in shell.ok("keep").out
        until("it goes", lambda: steps(store) == [1, 3])
        assert "/run/step-2" in shell.ok("trash").out
        assert "/run/step-2" in shell.ok("undo", "/run/step-2").out
        shell.ok("release", "/run/step-1")
        until("it goes, too", lambda: steps(store) == [2, 3])
        assert "1 removed" in shell.ok("gc", "--all").out
        shell.ok("keep", "/run", "within:1h", "--tier", "nvme", "--safe-in", "pfs")
        assert "within:1h" in shell.ok("keep").out
        assert "nvme" in shell.ok("keep", "/run", "latest:1", "--dry-run").out
        assert "within:1h" in shell.ok("keep", "/run", "--all", "--tier", "nvme").out
        assert "latest:1" in shell.ok("keep", "/run", "--all").out
        assert shell("keep", "/run", "latest:1", "--tier", "tape").code == errors.InvalidInput.exit_code
        refused = shell("keep", "/run", "newest:3")
        assert refused.code == errors.InvalidInput.exit_code
        assert "newest:3" in refused.err
        assert shell("keep", "/run").code == errors.InvalidInput.exit_code
