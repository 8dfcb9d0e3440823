"""torchsnapshot: `Snapshot.async_take`, which returns once the state is in its host buffers. It does not fsync; that is done afterwards."""

from __future__ import annotations

import shutil
import time

from torchsnapshot import Snapshot, StateDict

from ckptstore_bench.contenders.durable import fsync_all
from ckptstore_bench.contenders.interface import Saved, Setup
from ckptstore_bench.shared_state import flat, open_state


class SnapshotSaver:
    def __init__(self, setup: Setup) -> None:
        self._state = {"state": StateDict(**flat(open_state(setup.state, setup.shape)))}
        self._disk, self._folder = setup.disk, setup.folder / "snapshot"

    def save(self, number: int) -> Saved:
        shutil.rmtree(self._folder, ignore_errors=True)
        began_s = time.perf_counter()
        pending = Snapshot.async_take(path=str(self._folder), app_state=self._state)
        stall_s = time.perf_counter() - began_s
        pending.wait()
        fsync_all(self._folder)
        return Saved(stall_s, {self._disk: time.perf_counter() - began_s})

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
