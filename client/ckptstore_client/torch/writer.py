"""How does `dcp.save` or `dcp.async_save` save into the store? As `Store.save` does: one copy, one safetensors file a rank, no pickle.

`async_save`: the writer is its own stager. `stage` copies the state into the daemon's memory, and training may change it. Behind that it is
handed over together with what this rank says of its shards; when `staging_completion` is done, the trainer may die: the daemon stores and
publishes without DCP. What DCP does afterwards, in its thread, is to gather plans (empty ones, since nothing is left to plan), and to wait
until the checkpoint is published. What goes wrong after the copy is told there, by `upload_completion`, to all ranks: a stager whose future
failed would leave the other ranks waiting for this one's plan.

`save`: with DCP's default planner the same, inside `write_data`. Another planner may change what is saved; then its items are taken as
they are, tensors by `resolve_data`, everything else by `lookup_object`. With `async_save` a planner of the user's comes too late, and
is refused. Plans, headers and views are kept by the store, so a writer is made anew for each checkpoint at no cost.

When `save` returns, or `upload_completion` is done, the checkpoint is published, and so in a durable tier. Not for several threads.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future as StagingFuture
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_saver as _saver
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput, NotStorable
from ckptstore.paths import check_path
from ckptstore_client.connecting import default_store
from ckptstore_client.pending import PendingCheckpoint
from ckptstore_client.sharding.pieces import TorchPieces
from ckptstore_client.store import Store
from ckptstore_client.tensors_torch import dtype_name
from ckptstore_client.torch.leaves import with_pickled_leaves

#: Torch that gives a stager's future back to the caller, beside that of the upload.
_TAKES_FUTURES = hasattr(_saver, "AsyncSaveResponse")


def path_of(checkpoint_id: str | os.PathLike[str]) -> str:
    """The path in the store: as it is, or behind "ckpt://"."""
    return check_path(str(checkpoint_id).removeprefix("ckpt://"), operation="save", latest_allowed=True)


class Writer(StorageWriter, AsyncStager):
    """`options` are those of `Store.save`: step, metadata, replace, on_busy, guard, incremental, shards, expect, rank, world_size."""

    def __init__(self, path: str | os.PathLike[str], *, store: Store | None = None, pickle: bool = False, **options: Any) -> None:
        """`store`: else the one of `ckptstore.save`. `pickle`: whether objects that JSON cannot hold may be pickled."""
        self._path = path_of(path)
        self._store = store
        self._pickle = pickle
        self._options = {"shards": {}, **options}
        self._staged: deque[PendingCheckpoint] = deque()
        #: of the last save: durability, timings, `wait` for a deeper tier
        self.pending: PendingCheckpoint | None = None

    def __getstate__(self) -> Any:
        hint = "leave async_checkpointer_type as it is: what is left to do after staging is to wait"
        raise InvalidInput("a writer holds a session of this process", operation="save", subject=self._path, hint=hint)

    # --- AsyncStager -----------------------------------------------------------------------------------------------------------

    def stage(self, state_dict: dict[str, Any]) -> Any:
        """The state is in the daemon's memory when this returns, and handed over when its future is done. DCP is left with an empty one."""
        pending = self._save(state_dict, behind=True)
        self._staged.append(pending)
        if not _TAKES_FUTURES:
            return {}
        staged: StagingFuture[dict[str, Any]] = StagingFuture()
        pending.when_handed_over(lambda: staged.set_result({}))
        return staged

    @property
    def should_synchronize_after_execute(self) -> bool:
        return False

    def synchronize_staging(self) -> None:
        """`stage` has waited for the copy."""

    def close(self) -> None:
        """The store stays open: it is the caller's, or the process's."""

    def _save(self, state: Any, *, behind: bool = False) -> PendingCheckpoint:
        store = default_store() if self._store is None else self._store
        told = with_pickled_leaves(state) if self._pickle else state
        self.pending = store.save(self._path, told, **{"behind": behind} | self._options)
        return self.pending

    # --- StorageWriter ---------------------------------------------------------------------------------------------------------

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return str(checkpoint_id).startswith("ckpt://")

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self._path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is None:
            return
        path = path_of(checkpoint_id)
        if self._staged and path != self._path:
            why = f"it was staged for {self._path}, before DCP said checkpoint_id={path}"
            raise InvalidInput(why, operation="save", subject=path, hint="give the path to Writer, and no checkpoint_id")
        self._path = path

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the store is connected when it is first used."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if self._staged:
            if type(planner) is not DefaultSavePlanner:
                hint = "use dcp.save with this planner, or change the state before async_save"
                raise InvalidInput("the state was staged before the planner saw it", operation="save", subject=self._path, hint=hint)
            pending = self._staged.popleft()
        elif type(planner) is DefaultSavePlanner and planner.flatten_state_dict:
            pending = self._save(_nested(planner.state_dict, planner))
        else:
            pending = self._save(_nested(_from_items(plan.items, planner), planner))
        pending.wait_published()
        written: Future[list[WriteResult]] = Future()
        sizes = ((item, item.tensor_storage_size() if hasattr(item, "tensor_storage_size") else 0) for item in plan.items)
        written.set_result([WriteResult(index=item.index, size_in_bytes=size or 0, storage_data=None) for item, size in sizes])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The catalog has published it already. `metadata` is what DCP gives to those who ask its future: at least where it is."""
        metadata.storage_meta = self.storage_meta()


def _nested(flat: dict[str, Any], planner: SavePlanner) -> Any:
    """A planner's flat state as it was before the planner took it apart, as far as it says how."""
    mappings = getattr(planner, "mappings", None) or {}
    nested: dict[str, Any] = {}
    for fqn, value in flat.items():
        *parents, last = mappings.get(fqn, (fqn,))
        node: Any = nested
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return _with_lists(nested)


def _with_lists(node: Any) -> Any:
    """Where all keys count from 0 on, as numbers, a list was taken apart."""
    if type(node) is not dict:
        return node
    children = {name: _with_lists(child) for name, child in node.items()}
    is_list = bool(children) and all(type(name) is int for name in children) and sorted(children) == list(range(len(children)))
    return [children[i] for i in range(len(children))] if is_list else children


def _from_items(items: Sequence[WriteItem], planner: SavePlanner) -> dict[str, Any]:
    """fqn → what is to be saved of it, as the planner's items say."""
    pieces: dict[str, list[tuple[Box, torch.Tensor]]] = defaultdict(list)
    wholes: dict[str, WriteItem] = {}
    state: dict[str, Any] = {}
    for item in items:
        fqn = item.index.fqn
        if item.type is WriteItemType.BYTE_IO:
            lookup = getattr(planner, "lookup_object", None)
            if lookup is None:
                why = f"{type(planner).__name__} gives it as bytes alone"
                raise InvalidInput(why, operation="save", subject=fqn, hint="a planner needs lookup_object, as DefaultSavePlanner has it")
            state[fqn] = lookup(item.index)
            continue
        assert item.tensor_data is not None
        data = planner.resolve_data(item)
        assert isinstance(data, torch.Tensor)
        if item.type is WriteItemType.TENSOR:
            state[fqn] = data.detach()
            continue
        chunk = item.tensor_data.chunk
        if data.shape != chunk.sizes:
            why = f"its local tensor is {tuple(data.shape)}, the planner says {tuple(chunk.sizes)}"
            hint = "torch's planners mistake rows that FSDP cut after tensor parallelism and that do not divide; leave planner= out"
            raise NotStorable(why, operation="save", subject=fqn, hint=hint)
        pieces[fqn].append((Box(tuple(chunk.offsets), tuple(chunk.sizes)), data.detach()))
        wholes[fqn] = item
    for fqn, item in wholes.items():
        assert item.tensor_data is not None
        state[fqn] = TorchPieces(tuple(item.tensor_data.size), dtype_name(pieces[fqn][0][1].dtype, fqn), pieces[fqn])
    return state
