"""What is said about a checkpoint after its save: seen everywhere at once, and there again when the catalog was lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ckptstore.errors import InvalidInput, NotFound
from ckptstore_client import Store, connect
from tests.daemon_process import DaemonProcess, run_rebuild, write_config
from tests.e2e.shell import Shell
from tests.until import until


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    tiers = [
        {"name": "nvme", "kind": "posix", "path": tmp_path / "nvme"},
        {"name": "pfs", "kind": "posix", "path": tmp_path / "pfs", "shared": True},
    ]
    write_config(tmp_path / "home", tiers=tiers, grace_s=0)
    process = DaemonProcess(tmp_path / "home")
    process.turn_s = 0.2
    with process:
        yield process


def save(store: Store, *steps: int) -> None:
    for step in steps:
        state = {"w": np.full(1000, step)}
        pending = store.save(f"/run/step-{step}", state, step=step, metadata={"draft": True}, rank=0, world_size=1)
        pending.wait("pfs", timeout_s=60)


def test_what_is_said_is_sorted_by_and_judged_by_and_comes_back_with_a_rebuilt_catalog(daemon: DaemonProcess) -> None:
    shell = Shell(daemon.home)
    with connect(home=daemon.home, start=False) as store:
        save(store, 1, 2, 3)
        assert store.tag("/run/step-1", {"loss": 0.1, "good": True}, remove=["draft"]) == {"loss": 0.1, "good": True}
        told = shell.ok("tag", "/run/step-2", "loss=0.3", "note=as it was", "ids=[1, 2]", "--remove", "draft", "--json").document
        assert told["metadata"] == {"loss": 0.3, "note": "as it was", "ids": [1, 2]}
        store.tag("/run/step-3", {"loss": 0.2})
        assert shell.ok("ls", "/run", "--sort", "loss").out.split() == ["step-1/", "step-3/", "step-2/"]
        assert "as it was" in shell.ok("tag", "/run/step-2").out
        assert store.stat("/run/@latest").metadata == {"draft": True, "loss": 0.2}
        plan = store.retention.keep("/run", "best:1:loss:min", trash_s=60)
        assert {judged.step: judged.why for judged in plan.checkpoints if judged.step == 1} == {1: "best:1:loss:min"}
        until("what is not best goes", lambda: [entry.step for entry in store.ls("/run")] == [1, 3])
        store.retention.keep_all("/run")
        assert store.load("/run/step-1")["w"][0] == 1
        assert [line for line in store.verify("/") if line.problem] == []
    daemon.stop()
    for file in daemon.home.glob("catalog.sqlite3*"):
        file.unlink()
    assert run_rebuild(daemon.home) == 0
    with daemon.start(), connect(home=daemon.home, start=False) as store:
        assert store.stat("/run/step-1").metadata == {"loss": 0.1, "good": True}
        assert store.stat("/run/step-3").metadata == {"draft": True, "loss": 0.2}


def test_watchers_hear_of_it_and_not_of_another_publish(daemon: DaemonProcess) -> None:
    with connect(home=daemon.home, start=False) as store:
        save(store, 1)
        events = store.watch("/run", since=0)
        assert next(events).event == "published"
        store.tag("/run/step-1", {"good": True})
        tagged = next(event for event in events if event.event in ("tagged", "published") and "good" in event.metadata)
        assert (tagged.event, tagged.metadata, tagged.step) == ("tagged", {"draft": True, "good": True}, 1)
        late = next(store.watch("/run", since=0))
        assert (late.event, late.metadata) == ("published", {"draft": True, "good": True})


def test_what_cannot_be_said_is_refused_by_name(daemon: DaemonProcess) -> None:
    shell = Shell(daemon.home)
    with connect(home=daemon.home, start=False) as store:
        save(store, 1)
        for values, remove, named in (
            ({"": 1}, [], "''"),
            ({"a\nb": 1}, [], "no name"),
            ({"x" * 201: 1}, [], "no name"),
            ({"loss": float("nan")}, [], "'loss'"),
            ({"loss": np.float32(1)}, [], "'loss'"),
            ({"pair": (1, 2)}, [], "'pair'"),
            ({"loss": 1}, ["loss"], "'loss'"),
            ({"text": "x" * 70000}, [], "65536"),
        ):
            with pytest.raises(InvalidInput, match=named):
                store.tag("/run/step-1", values, remove=remove)
        with pytest.raises(NotFound):
            store.tag("/run/step-2", {"loss": 1})
        assert store.stat("/run/step-1").metadata == {"draft": True}
    refused = shell("tag", "/run/step-1", "loss")
    assert (refused.code, "KEY=VALUE" in refused.err) == (InvalidInput.exit_code, True)
