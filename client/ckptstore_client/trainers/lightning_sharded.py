"""PyTorch Lightning's sharded strategies: `Trainer(strategy=StoreModelParallelStrategy(checkpoints="/runs/gpt"))`.

`ModelParallelStrategy` (FSDP2, tensor parallel) and `FSDPStrategy` write their sharded checkpoints by themselves and leave the
`CheckpointIO` plugin out. So the hook is the strategy's own: `save_checkpoint`, `load_checkpoint` and `remove_checkpoint`, and the two
methods that give Lightning the states to be saved, `lightning_module_state_dict` and `optimizer_state`, which here give shards where they
lie, without a copy to the host before the store's own. `StoreShards` is the mixin for other subclasses of these strategies.

Every rank saves its shards, under the names that parameters have in the model, so that any number of ranks can load them. Everything
else of a checkpoint (loops, callbacks, schedulers) is rank 0's, as in Lightning's own sharded checkpoints. Lightning calls everything here
in the trainer's thread, on every rank. A save returns when its bytes are copied; when `fit` has returned, all of them are published.
"""

from __future__ import annotations

from importlib import import_module
from os import PathLike, fspath
from typing import Any

from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load

from ckptstore.boxes import Box
from ckptstore.errors import InvalidInput
from ckptstore_client.process_group import resolved_together
from ckptstore_client.sharding.pieces import TorchPieces
from ckptstore_client.tensors_torch import dtype_name
from ckptstore_client.torch import Reader
from ckptstore_client.trainers.folder import RunFolder, folder_options
from ckptstore_client.trainers.lightning import PYTORCH_PACKAGE, numbers_of

_strategies: Any = import_module(f"{PYTORCH_PACKAGE}.strategies")
_Path = str | PathLike[str]


class StoreShards:
    """What a sharded strategy gets by having this before it among its bases: the argument `checkpoints`, a folder in the store.

    `guard`: whether the copy of what the optimizers own overlaps the next forward and backward (nothing else may change the weights then).
    The others are those of `FolderOptions`. Whatever `save_distributed_checkpoint` or `state_dict_type` say, shards are saved.
    """

    # what a strategy has
    model: Any
    optimizers: list[Any]
    lightning_module: Any
    is_global_zero: bool

    def __init__(self, *args: Any, checkpoints: str, guard: bool = False, **kwargs: Any) -> None:
        options = folder_options(kwargs)
        super().__init__(*args, **kwargs)
        self.folder = RunFolder(checkpoints, **options)
        self._guard = guard

    def latest(self) -> str | None:
        """For `fit(ckpt_path=…)`: the newest checkpoint of the folder, None at the first start."""
        return self.folder.newest()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return dict(get_optimizer_state_dict(self.model, getattr(optimizer, "optimizer", optimizer)))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _Path, storage_options: Any = None) -> None:
        """Lightning calls it on every rank; the name is rank 0's."""
        if storage_options is not None:
            raise InvalidInput("storage_options mean nothing here", operation="save", subject=str(filepath), hint="leave them out")
        shards = {name: _in_pieces(checkpoint.pop(name)) for name in ("state_dict", "optimizer_states") if name in checkpoint}
        path = resolved_together(lambda: self.folder.path_of(fspath(filepath)))
        self.folder.save(
            path,
            shards | {"trainer": checkpoint} if self.is_global_zero else shards,
            guard=self.optimizers if self._guard else None,
            shards={},
            step=checkpoint.get("global_step"),
            metadata=numbers_of(checkpoint),
        )

    def load_checkpoint(self, checkpoint_path: _Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Fills the model and, where the trainer trains, its optimizers. Gives everything else."""
        path = resolved_together(lambda: self.folder.store.stat(self.folder.path_of(fspath(checkpoint_path))).path)
        self.folder.copied()
        state: dict[str, Any] = {"state_dict": self.lightning_module_state_dict()}
        if self.optimizers:
            state["optimizer_states"] = [self.optimizer_state(optimizer) for optimizer in self.optimizers]
        load(state, storage_reader=Reader(path, store=self.folder.store))
        set_model_state_dict(self.model, state["state_dict"], options=StateDictOptions(strict=self.lightning_module.strict_loading))
        for optimizer, saved in zip(self.optimizers, state.get("optimizer_states", ()), strict=True):
            set_optimizer_state_dict(self.model, optimizer, saved)
        rest: dict[str, Any] = self.folder.load(path, only="trainer/*")["trainer"]
        return rest

    def remove_checkpoint(self, filepath: _Path) -> None:
        """Once newer ones are published: Lightning asks as soon as these are copied."""
        if self.is_global_zero:
            self.folder.remove(self.folder.path_of(fspath(filepath)))

    def teardown(self) -> None:
        self._strategy.teardown()
        self.folder.finish()

    @property
    def _strategy(self) -> Any:
        return super()


class StoreModelParallelStrategy(StoreShards, _strategies.ModelParallelStrategy):  # type: ignore[misc]
    """`ModelParallelStrategy` with the argument `checkpoints`."""


class StoreFSDPStrategy(StoreShards, _strategies.FSDPStrategy):  # type: ignore[misc]
    """`FSDPStrategy` with the argument `checkpoints`."""


def _in_pieces(value: Any) -> Any:
    """FSDP1 without a device mesh has ShardedTensors, whose shards are boxes of the whole. DTensors stay as they are."""
    if isinstance(value, ShardedTensor):
        whole = value.metadata()
        shards = [(Box(tuple(s.metadata.shard_offsets), tuple(s.metadata.shard_sizes)), s.tensor) for s in value.local_shards()]
        return TorchPieces(tuple(whole.size), dtype_name(whole.tensor_properties.dtype, "a sharded tensor"), shards)
    if isinstance(value, dict):
        return {key: _in_pieces(child) for key, child in value.items()}
    return list(map(_in_pieces, value)) if isinstance(value, list) else value
