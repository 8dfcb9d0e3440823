"""How long does a save hold training up, and how soon is it on the disk? Beside a plain memory copy, dcp.async_save and fio, in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import ckptstore
from ckptstore_bench.figures.peers import AS_CALLED, SHARED_MEMORY, AsyncSave, close_process_group, open_process_group
from ckptstore_bench.fio import Fio
from ckptstore_bench.measure import Result, Rounds, figure
from ckptstore_bench.report import Figure
from ckptstore_bench.state import WarmCopy, make_state
from ckptstore_bench.workspace import Workspace

COPY, COPIED = "memory copy", "save: the copy"
STALL, FSYNCED, HANDED = "save: stall", "save: call until fsynced", "save: hand-over until fsynced"
FIO = "fio write"
#: A size's first saves make segments and map them; the figures are about the steady state.
WARM_UP_ROUNDS = 2
WAIT_S = 300.0


def measure(workspace: Workspace, size_bytes: int, count: int, say: Callable[[str], None]) -> Result:
    state = make_state(size_bytes)
    rounds = Rounds()
    warm_copy, fio = WarmCopy(state), Fio(workspace.folder / "fio", size_bytes)
    open_process_group(workspace.folder)
    peers = {AS_CALLED: AsyncSave(workspace.folder, shared_memory=False), SHARED_MEMORY: AsyncSave(workspace.folder, shared_memory=True)}
    try:
        with workspace.connect() as store:
            for number in range(-WARM_UP_ROUNDS, count):
                say(f"save: round {number + 1} of {count}" if number >= 0 else "save: warming up")
                into = rounds if number >= 0 else Rounds()
                with into.timed(COPY):
                    warm_copy()
                _save(store, f"/figures/save-{number}", state, into)
                for name, peer in peers.items():
                    os.sync()
                    stall_s, fsynced_s = peer(state)
                    into.add(f"{name}: stall", stall_s)
                    into.add(f"{name}: call until fsynced", fsynced_s)
                os.sync()
                into.add(FIO, fio.write_s())
                os.sync()
    finally:
        for peer in peers.values():
            peer.close()
        close_process_group()
    return Result(_figures(rounds), rounds, {"size_bytes": size_bytes, "fio": fio.version})


def _save(store: ckptstore.Store, path: str, state: dict[str, Any], into: Rounds) -> None:
    began_s = time.perf_counter()
    pending = store.save(path, state)
    into.add(STALL, time.perf_counter() - began_s)
    pending.wait("nvme", timeout_s=WAIT_S)
    into.add(FSYNCED, time.perf_counter() - began_s)
    timings_s = pending.timings
    into.add(COPIED, timings_s["copy_s"])
    into.add(HANDED, timings_s["nvme_s"] - timings_s["snapshot_s"])
    store.rm(path)


def _figures(rounds: Rounds) -> list[Figure]:
    as_called, shared = (f"{name}: stall" for name in (AS_CALLED, SHARED_MEMORY))
    return [
        figure("save.copy", "speed of the copy in save / warm memory copy", rounds.ratio(COPY, COPIED), 0.75),
        figure("save.stall.shared", f"stall of save / of {SHARED_MEMORY}", rounds.ratio(STALL, shared), 1.1, at_least=False),
        figure("save.stall.as_called", f"stall of save / of {AS_CALLED}", rounds.ratio(STALL, as_called), 0.5, at_least=False),
        figure("save.fsynced.fio", "speed of hand-over until fsynced / fio O_DIRECT write", rounds.ratio(FIO, HANDED), 0.6),
        figure(
            "save.fsynced.as_called",
            f"call until fsynced: {AS_CALLED} / save",
            rounds.ratio(f"{AS_CALLED}: call until fsynced", FSYNCED),
            2.5,
        ),
    ]
