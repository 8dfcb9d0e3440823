"""How is it measured? This process saves; another one on the node watches, loads what it hears of, and times a plain copy of the same.

The clock starts when the catalog published the checkpoint, by the catalog's own clock, and stops when the watcher's last tensor is
filled. The state lies in memory that both processes have mapped; the copy goes from there into the same tensors that the load fills, in
the same round. The first round, which makes memory on all sides, is not counted; in it the watcher compares what it got, bit by bit.
"""

from __future__ import annotations

from ckptstore_bench.line_process import LineProcess
from ckptstore_bench.measure import Rounds
from ckptstore_bench.running import Steps
from ckptstore_bench.shape import StateShape
from ckptstore_bench.shared_state import SharedState, check_memory, open_state
from ckptstore_bench.workspace import Workspace

FOLDER = "/bench/watched"
#: Segments of the saving client, and one that is being released.
SLOTS = 3
#: From the publish until the watcher hears of it, until it holds the weights; a load of the same that nothing preceded; a copy.
TOLD, LOADED, LOAD, COPY = "told", "loaded", "load", "copy"


def measure(shape: StateShape, rounds: int, workspace: Workspace, steps: Steps) -> Rounds:
    """`workspace` is entered already."""
    check_memory((SLOTS + 2) * shape.size_bytes)
    steps.plan(rounds + 1)
    found = Rounds()
    with SharedState(shape) as shared, workspace.connect() as store:
        state = open_state(shared.path, shape)
        store.reserve(state).result()
        arguments = [str(workspace.home), FOLDER, str(shared.path), str(shape.size_bytes), str(len(shape.tensors))]
        with LineProcess("ckptstore_bench.watch.watcher", arguments) as watcher:
            watcher.answer()
            for turn in range(rounds + 1):
                steps.next(f"round {turn} of {rounds}" if turn else "warming up")
                watcher.tell(compare=turn == 0)
                taken = watcher.answer()
                store.save(f"{FOLDER}/{turn:03d}", state).wait_published()
                taken |= watcher.answer()
                for name, seconds in taken.items() if turn else ():
                    found.add(name, seconds)
    return found
