"""How does `dcp.load` read from the store? DCP's planner says which boxes it wants; only the blocks that hold something of them are read.

The metadata that DCP asks for is made of `shards.json` and of the parts that have, together, all places of the state; there is no
pickle in it. Tensors are filled in place, those of several ranks' files at the same time. Non-tensor leaves were stored as JSON; DCP wants
them as bytes of `torch.save`, so they take that form for an instant.

Leaves that ranks had their own of: as `Store.load` (`per_rank`). Each rank reads by itself; with `@latest`, rank 0 says which checkpoint
that is, which is a collective. Not for several threads.
"""

from __future__ import annotations

import io
import os
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput
from ckptstore.part_reading import Selection, TensorRef
from ckptstore.safetensors_format import Header
from ckptstore.shards import Spread
from ckptstore_client.connecting import default_store
from ckptstore_client.frameworks import framework
from ckptstore_client.loading import assembled, references
from ckptstore_client.sharding.dtensors import SCATTERED, SCATTERED_HINT, is_misplaced, wanted_box
from ckptstore_client.sharding.filling_boxes import Want, fill_boxes
from ckptstore_client.sharding.loading import PerRanks, ShardedCheckpoint, refuse
from ckptstore_client.sharding.spreading import is_alone
from ckptstore_client.store import Store
from ckptstore_client.tensors_torch import DTYPES
from ckptstore_client.torch.leaves import without_pickled_leaves
from ckptstore_client.torch.writer import path_of


class Reader(StorageReader):
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        store: Store | None = None,
        pickle: bool = False,
        per_rank: PerRanks = None,
    ) -> None:
        """`store`: else the one of `ckptstore.load`. `pickle`: whether leaves that were pickled may be loaded."""
        self._path = path_of(path)
        self._store = store
        self._pickle = pickle
        self._per_rank = per_rank
        self._checkpoint: ShardedCheckpoint | None = None
        self._header = Header({}, {}, 0)
        self._leaves: dict[str, Any] = {}  # by fqn, of an outline

    # --- StorageReader ---------------------------------------------------------------------------------------------------------

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return str(checkpoint_id).startswith("ckpt://")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._close()
        if checkpoint_id is not None:
            self._path = path_of(checkpoint_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._close()
        store = default_store() if self._store is None else self._store
        self._checkpoint, share = store.open_sharded(self._path, per_rank=self._per_rank)
        outline, self._header = self._checkpoint.outline(Selection(None), share)
        taking_apart = DefaultSavePlanner()
        taking_apart.set_up_planner(_with_stand_ins(outline))
        self._leaves = {
            fqn: leaf.ref if isinstance(leaf, _StandIn) else _without_stand_ins(leaf) for fqn, leaf in taking_apart.state_dict.items()
        }
        described = {fqn: self._described(leaf) for fqn, leaf in self._leaves.items()}
        return Metadata(described, planner_data=taking_apart.mappings, storage_meta=StorageMeta(checkpoint_id=self._path))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: `read_metadata` has opened the checkpoint."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        assert self._checkpoint is not None, "read_metadata comes first"
        tensors = framework("$torch")
        wants, targets = [], []
        state = getattr(planner, "state_dict", {})  # of DCP's own planners, and those made of them
        # Of some of these the planner asks for nothing: it believes that this rank has no rows.
        misplaced = {fqn for fqn, value in state.items() if fqn in self._leaves and is_misplaced(value)}
        for item in plan.items:
            fqn = item.storage_index.fqn
            if item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(item, self._bytes_of(fqn))
                continue
            if item.dest_index.fqn in misplaced:
                continue
            target = planner.resolve_tensor(item).detach()
            chunk = item.storage_index.offset or (0,) * len(item.lengths)
            offset = tuple(start + inside for start, inside in zip(chunk, item.storage_offsets, strict=True))
            common = not is_alone(state.get(item.dest_index.fqn))
            wants.append(Want(self._spread(self._leaves[fqn]), Box(offset, tuple(item.lengths)), tensors, target, common))
            targets.append((item, target))
        lying = [self._as_it_lies(state[fqn], fqn, planner) for fqn in sorted(misplaced)]
        wants += [want for want in lying if want.box.volume]
        fill_boxes(wants, self._checkpoint.part)
        for item, target in targets:
            planner.commit_tensor(item, target)
        self._close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _as_it_lies(self, value: Any, fqn: str, planner: LoadPlanner) -> Want:
        """All of what this rank has of a tensor whose rows DCP's planner mistakes for others."""
        box, _, local = wanted_box(value)
        why = SCATTERED if box is None else "a planner of your own would be asked for other rows than this rank has"
        if box is None or getattr(type(planner), "resolve_tensor", None) is not DefaultLoadPlanner.resolve_tensor:
            raise InvalidInput(why, operation="load into", subject=fqn, hint=SCATTERED_HINT)
        if tuple(local.shape) != box.size:
            why = f"its local tensor is {tuple(local.shape)}, its placements say {box.size}"
            raise InvalidInput(why, operation="load into", subject=fqn)
        return Want(self._spread(self._leaves[fqn]), box, framework("$torch"), local, common=not is_alone(value))

    # --- what was stored -------------------------------------------------------------------------------------------------------

    def _spread(self, ref: TensorRef) -> Spread:
        assert self._checkpoint is not None
        return self._checkpoint.spread(ref.key, self._header)

    def _described(self, leaf: Any) -> STORAGE_TYPES:
        if type(leaf) is not TensorRef:
            return BytesStorageMetadata()
        spread = self._spread(leaf)
        chunks = [ChunkStorageMetadata(torch.Size(piece.box.offset), torch.Size(piece.box.size)) for piece in spread.pieces()]
        shape = (*spread.shape[:-1], spread.shape[-1] // 2) if spread.dtype == "F4" else spread.shape
        return TensorStorageMetadata(TensorProperties(dtype=DTYPES[spread.dtype]), torch.Size(shape), chunks)

    def _bytes_of(self, fqn: str) -> io.BytesIO:
        """A leaf as DCP wants it; one that holds tensors (a tuple does, for DCP) with those."""
        assert self._checkpoint is not None
        leaf = self._leaves[fqn]
        refuse(leaf)
        tensors = {ref: framework(ref.tag).empty(self._header.tensors[ref.key]) for ref in set(references(leaf))}
        wants = (Want(self._spread(ref), Box.whole(tuple(value.shape)), framework(ref.tag), value) for ref, value in tensors.items())
        fill_boxes(wants, self._checkpoint.part)
        buffer = io.BytesIO()
        torch.save(without_pickled_leaves(assembled(leaf, tensors), self._pickle, fqn), buffer)
        buffer.seek(0)
        return buffer

    def _close(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.__exit__(None, None, None)
        self._checkpoint = None


class _StandIn(torch.Tensor):
    """Where a tensor belongs, while DCP's planner takes a state apart: it goes by the types of leaves."""

    ref: TensorRef


def _with_stand_ins(outline: Any) -> Any:
    if type(outline) is TensorRef:
        made = torch.empty(0, device="meta").as_subclass(_StandIn)
        made.ref = outline
        return made
    if isinstance(outline, dict):
        return {key: _with_stand_ins(child) for key, child in outline.items()}
    if type(outline) in (list, tuple):
        return type(outline)(_with_stand_ins(child) for child in outline)
    return outline


def _without_stand_ins(leaf: Any) -> Any:
    if isinstance(leaf, _StandIn):
        return leaf.ref
    if isinstance(leaf, dict):
        return {key: _without_stand_ins(child) for key, child in leaf.items()}
    if type(leaf) in (list, tuple):
        return type(leaf)(_without_stand_ins(child) for child in leaf)
    return leaf
