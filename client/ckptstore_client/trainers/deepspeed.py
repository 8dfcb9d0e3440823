"""DeepSpeed: `StoreCheckpoints(engine, "/runs/gpt")`; from then on `engine.save_checkpoint` and `load_checkpoint` use the store.

DeepSpeed chooses its checkpoint engine (what writes and reads one file) from a fixed list. So one is put into the place of the chosen one,
`engine.checkpoint_engine`, which DeepSpeed asks for every file of a checkpoint: ZeRO's, pipeline layers', experts'. It collects what a
rank would write, and saves it in one piece when DeepSpeed says `commit`. Around that, DeepSpeed looks into the folder itself: it reads
`latest`, looks for files by patterns, copies scripts there. That is why the two methods are replaced as well, on this engine alone: they
call DeepSpeed's with a temporary folder, in which empty files stand for those of the checkpoint.

A checkpoint is `/runs/gpt/<tag>`; each rank's part has, by file name, what DeepSpeed gave it to write, and its random number generators.
Rank 0's knows which rank has which file. ZeRO's partitions load at the world size they were saved at, as in DeepSpeed. What DeepSpeed
itself would pickle (loss scalers, fragments' addresses) is written as plain values. One thread, the trainer's. A save returns when its
bytes are copied; `finish` waits until everything is published.
"""

from __future__ import annotations

import tempfile
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import torch.distributed
from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from ckptstore.errors import InvalidInput
from ckptstore_client.trainers.deepspeed_guard import EngineGuard
from ckptstore_client.trainers.folder import FolderOptions, RunFolder
from ckptstore_client.trainers.leaves import Word
from ckptstore_client.trainers.random_states import random_states, set_random_states

_Path = str | PathLike[str]


class StoreCheckpoints:
    """Made after `deepspeed.initialize`, on every rank.

    `guard`: whether the copy of weights and optimizer state overlaps the next forward and backward (nothing else may change them then).
    The others are those of `FolderOptions`.
    """

    def __init__(self, engine: Any, checkpoints: str, *, guard: bool = False, **options: Unpack[FolderOptions]) -> None:
        _refuse_other_ways(engine, checkpoints)
        self.folder = RunFolder(checkpoints, words=_WORDS, **options)
        self._engine = engine
        self._files = StoreCheckpointEngine(self.folder, EngineGuard(engine, checkpoints) if guard else None)
        self._save, self._load = engine.save_checkpoint, engine.load_checkpoint
        engine.checkpoint_engine = self._files
        engine.save_checkpoint, engine.load_checkpoint = self.save, self.load

    def latest(self) -> str | None:
        """The newest checkpoint of the folder, None at the first start. Collective where there are several ranks."""
        return self.folder.newest()

    def finish(self) -> None:
        """Wait until every save is published. Raises why the last one failed, if it did."""
        self.folder.finish()

    def save(self, save_dir: _Path | None = None, tag: Any = None, client_state: dict[str, Any] | None = None, **options: Any) -> bool:
        """As `engine.save_checkpoint`, into the folder in the store, whatever `save_dir` is. On every rank."""
        self._files.step = self._engine.global_steps
        with tempfile.TemporaryDirectory(prefix="ckptstore-") as stand_in:
            return bool(self._save(stand_in, tag, client_state or {}, **options | {"save_latest": False}))

    def load(self, load_dir: _Path | None = None, tag: Any = None, **options: Any) -> tuple[str | None, dict[str, Any] | None]:
        """As `engine.load_checkpoint`, from the folder in the store; without `tag`, the newest. On every rank."""
        path = self.latest() if tag is None else self.folder.path_of(str(tag))
        if path is None:
            return None, None
        with tempfile.TemporaryDirectory(prefix="ckptstore-") as stand_in:
            here = Path(stand_in, _TAG)
            here.mkdir()
            for name in self._files.open(path):
                (here / name).touch()
            _, client_state = self._load(stand_in, _TAG, **options)
        random = self._files.random_of(torch.distributed.get_rank(), torch.distributed.get_world_size())
        if random is not None:
            set_random_states(random)
        return path, client_state


class StoreCheckpointEngine(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's interface: `create`, a `save` for each file, `commit`; or, after `open`, a `load` for each file."""

    def __init__(self, folder: RunFolder, guard: EngineGuard | None = None) -> None:
        self.name = type(self).__name__
        self.step: int | None = None
        self._folder = folder
        self._guard = guard
        self._given: dict[str, Any] = {}
        self._path = ""
        self._holders: dict[str, int] = {}
        self._ranks = 0

    def preserves_storage_sharing(self) -> bool:
        """A tensor's own bytes are stored, not its storage's: nobody needs to clone it before."""
        return False

    # --- saving --------------------------------------------------------------------------------------------------------------------

    def create(self, info: CheckpointCommitInfo) -> None:
        self._given = {}

    def save(self, state_dict: Any, path: str) -> None:
        """Kept as it is until `commit`: nothing is trained between the two."""
        self._given[Path(path).name] = state_dict

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Collective: rank 0 learns who has which file."""
        given, self._given = self._given, {}
        state: dict[str, Any] = {"files": given, "random": random_states()}
        holders = _holders(list(given))
        if holders is not None:
            state |= {"holders": holders, "ranks": torch.distributed.get_world_size()}
        if self._guard is not None:
            self._guard.look_through(given)
        self._folder.save(self._folder.path_of(str(info.tag)), state, guard=self._guard, step=self.step)
        return True

    # --- loading -------------------------------------------------------------------------------------------------------------------

    def open(self, path: str) -> list[str]:
        """From now on files are those of this checkpoint. Their names."""
        index = self._folder.load(path, only=["holders/*", "ranks"])
        self._path, self._holders, self._ranks = path, index["holders"], index["ranks"]
        return list(self._holders)

    def load(self, path: str, map_location: Any = None) -> Any:
        """On the CPU: DeepSpeed carries it to where it belongs."""
        name = Path(path).name
        place = f"files/{name}"  # itself, too: the file of a layer without parameters is empty
        return self._folder.load(self._path, only=[place, f"{place}/*"], rank=self._holders[name])["files"][name]

    def random_of(self, rank: int, ranks: int) -> Any:
        """The random number generators of this rank; None if the checkpoint is of another number of ranks."""
        return self._folder.load(self._path, only="random/*", rank=rank)["random"] if ranks == self._ranks else None


#: What the folder that stands for a checkpoint is called.
_TAG = "checkpoint"


def _holders(mine: list[str]) -> dict[str, int] | None:
    """On rank 0: which rank has which file."""
    distributed = torch.distributed
    names: list[Any] | None = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(mine, names, dst=0)
    return None if names is None else {name: rank for rank, given in enumerate(names) for name in given}


def _by_attributes(kind: type) -> Word:
    return Word(kind, f"deepspeed.{kind.__name__}", lambda value: (dict(vars(value)),), partial(_with_attributes, kind))


def _with_attributes(kind: type, attributes: dict[str, Any]) -> Any:
    made: Any = object.__new__(kind)
    vars(made).update(attributes)
    return made


_WORDS = (
    *map(_by_attributes, (LossScaler, DynamicLossScaler, fragment_address)),
    Word(ZeroStageEnum, "deepspeed.ZeroStageEnum", lambda value: (int(value),), ZeroStageEnum),
)


def _refuse_other_ways(engine: Any, checkpoints: str) -> None:
    ways = {
        "optimizer state offloaded to NVMe": engine.zero_nvme_offload_optimizer(),
        "universal checkpoints": engine.load_universal_checkpoint(),
    }
    for name, used in ways.items():
        if used:
            why = f"with {name}, DeepSpeed copies files by itself"
            raise InvalidInput(why, operation="make checkpoints", subject=checkpoints, hint="save and load these in a folder on disk")
