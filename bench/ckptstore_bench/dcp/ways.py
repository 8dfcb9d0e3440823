"""What is compared? Three writers and stagers for `dcp.async_save`, and the two readers for `dcp.load`.

`fs` is DCP's FileSystemWriter as `async_save` uses it when nothing else is said; `fs-best` keeps its staging memory between saves and plans
once (`enable_plan_caching`), which is the best that DCP offers without an accelerator. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from ckptstore_client import Store
from ckptstore_client.torch import Reader, Writer

STORE, AS_CALLED, BEST = "store", "fs", "fs-best"
WAYS = (STORE, AS_CALLED, BEST)
#: How many buffers each has to fill by turns.
BUFFERS = {STORE: 2, AS_CALLED: 1, BEST: 1}
#: What the disk does by itself stands beside the loads.
FIO = "fio"


@dataclass
class Way:
    """One contender in one rank's process. `save` gives the arguments of `async_save`, `load` those of `dcp.load`."""

    save: Callable[[int], dict[str, Any]]
    load: Callable[[int], dict[str, Any]]
    close: Callable[[], None] = lambda: None


def path_of(turn: int) -> str:
    """Where a turn's checkpoint is in the store."""
    return f"/bench/{turn}"


def folder_of(folder: Path, way: str, turn: int) -> Path:
    """Where another way puts its files."""
    return folder / way / str(turn)


def ways(store: Store, folder: Path) -> dict[str, Way]:
    kept = StagingOptions(use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False)
    stager = DefaultStager(kept)

    return {
        STORE: Way(
            lambda turn: {"storage_writer": Writer(path_of(turn), store=store)},
            lambda turn: {"storage_reader": Reader(path_of(turn), store=store)},
        ),
        AS_CALLED: Way(
            lambda turn: {"storage_writer": FileSystemWriter(folder_of(folder, AS_CALLED, turn))},
            lambda turn: {"storage_reader": FileSystemReader(folder_of(folder, AS_CALLED, turn))},
        ),
        BEST: Way(
            lambda turn: {
                "storage_writer": FileSystemWriter(folder_of(folder, BEST, turn), thread_count=2),
                "async_stager": stager,
                "planner": DefaultSavePlanner(enable_plan_caching=True),
            },
            lambda turn: {"storage_reader": FileSystemReader(folder_of(folder, BEST, turn))},
            stager.close,
        ),
    }
